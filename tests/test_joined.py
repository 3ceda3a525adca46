"""The encoder of joined weights, interpreted on CPU, against the encoder that they were made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from published import SMALL, published_config

from jina_jax.config import Config
from jina_jax.nn.dropout import Dropout
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.joined import abstract_joined
from jina_jax.nn.kernels import KernelChoice
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.nn.protocol import REFERENCE
from jina_jax.nn.tpu.norm import pallas_sum_norm
from jina_jax.runtime.engine import Engine, Step
from jina_jax.runtime.joining import join_state, split_state
from jina_jax.runtime.packing import Batch
from jina_jax.runtime.sharding import make_mesh, placer

SIZE = {**SMALL, "width": 128, "layers": 2, "heads": 2, "inner": 256}
FIELDS = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
CONFIG = Config.from_dict({**published_config(SIZE), **FIELDS})
PLAIN = CONFIG.merged("separation")
SPANS = np.array([[[0, 9], [9, 10], [10, 25]], [[0, 32], [0, 0], [0, 0]]], np.int32)
TASK_IDS = {"mixed": [[4, -1, 0], [2, -1, -1]], "one": [[3, 3, 3], [3, -1, -1]], "none": None}
KERNELS = {
    "plain forms": REFERENCE,
    "kernels": REFERENCE._replace(sum_norm=functools.partial(pallas_sum_norm, interpret=True)),
}


def weights(config, dtype, scan_layers=False):
    """Random weights, none of them zero, of an encoder: (graph, state)."""
    graph, abstract = abstract_encoder(config, dtype, scan_layers=scan_layers)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        if "embeddings" not in path:
            is_factor = path.endswith(("lora_b", "bias"))
            values *= leaf.shape[-1 if "lora_a" not in path else -2] ** (0 if is_factor else -0.5)
        return jnp.asarray(1 + 0.1 * values if path.endswith("scale") else values, dtype)

    arrays = {path: draw(path, leaf) for path, leaf in to_dict(abstract).items()}
    return graph, from_dict(abstract, arrays)


def vectors(graph, state, task_ids, kernels=REFERENCE):
    ids = np.random.default_rng(1).integers(4, SIZE["vocab"], (2, 32)).astype(np.int32)
    inputs = Inputs(ids, SPANS, None if task_ids is None else np.array(task_ids, np.int32))
    run = jax.jit(lambda state: encode_batch(graph, state, inputs, pooling=None, kernels=kernels))
    kept = np.arange(32) < np.array([[25], [32]])
    return np.asarray(run(state))[kept]


@pytest.mark.parametrize(
    ("config", "scan_layers"), [(CONFIG, False), (CONFIG, True), (PLAIN, False)]
)
def test_back_and_forth_are_the_same_bits(config, scan_layers):
    _, state = weights(config, jnp.bfloat16, scan_layers)
    joined = join_state(config, state, None, scan_layers=scan_layers)
    _, abstract = abstract_joined(config, scan_layers=scan_layers)
    shapes = {path: leaf.shape for path, leaf in to_dict(abstract).items()}
    assert {path: array.shape for path, array in to_dict(joined).items()} == shapes
    back = to_dict(split_state(config, joined, None, scan_layers=scan_layers))
    assert back.keys() == to_dict(state).keys()
    for path, array in to_dict(state).items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("tasks", "form"), [*((tasks, "plain forms") for tasks in TASK_IDS), ("mixed", "kernels")]
)
def test_float32_equals_the_encoder(tasks, form):
    graph, state = weights(CONFIG, jnp.float32)
    expected = vectors(graph, state, TASK_IDS[tasks])
    joined, _ = abstract_joined(CONFIG, jnp.float32)
    found = join_state(CONFIG, state, None, scan_layers=False)
    found = vectors(joined, found, TASK_IDS[tasks], KERNELS[form])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_stacked_layers_equal_the_encoder():
    graph, state = weights(CONFIG, jnp.float32, scan_layers=True)
    joined, _ = abstract_joined(CONFIG, jnp.float32, scan_layers=True)
    found = join_state(CONFIG, state, None, scan_layers=True)
    expected = vectors(graph, state, TASK_IDS["mixed"])
    np.testing.assert_allclose(vectors(joined, found, TASK_IDS["mixed"]), expected, atol=2e-5)


def test_hidden_states_and_pooler_equal_the_encoders():
    _, state = weights(CONFIG, jnp.float32)
    forms = {abstract_encoder(CONFIG)[0]: state}
    forms[abstract_joined(CONFIG, jnp.float32)[0]] = join_state(
        CONFIG, state, None, scan_layers=False
    )
    ids, mask = jnp.arange(32, dtype=jnp.int32).reshape(2, 16), jnp.ones((2, 16), bool)

    def run(graph, state):
        encoder = nnx.merge(graph, state)
        return encoder(ids, mask, jnp.array([3, -1], jnp.int32), output_hidden_states=True)

    expected, found = (jax.jit(run, static_argnums=0)(*form) for form in forms.items())
    assert len(found.hidden_states) == SIZE["layers"] + 1
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


def test_bfloat16_is_as_near_to_float32_as_the_encoder():
    exact = vectors(*weights(CONFIG, jnp.float32), TASK_IDS["mixed"])
    graph, state = weights(CONFIG, jnp.bfloat16)
    joined, _ = abstract_joined(CONFIG)
    found = join_state(CONFIG, state, None, scan_layers=False)
    plain = vectors(graph, state, TASK_IDS["mixed"])
    ours = vectors(joined, found, TASK_IDS["mixed"], KERNELS["kernels"])
    rounding, other = (np.linalg.norm(one - exact) for one in (plain, ours))
    assert 0 < other < 1.2 * rounding


def test_heads_shared_by_devices():
    mesh = make_mesh(model=2, devices=jax.devices()[:4])
    graph, state = weights(CONFIG, jnp.float32)
    expected = vectors(graph, state, TASK_IDS["mixed"])
    place = placer(mesh)
    arrays = {path: place(path, np.asarray(array)) for path, array in to_dict(state).items()}
    state = from_dict(state, arrays)
    found = join_state(CONFIG, state, mesh, scan_layers=False)
    kernel = to_dict(found)["layers.0.attention.qkv_proj.kernel"]
    assert kernel.sharding.spec == P(None, "model")
    joined, _ = abstract_joined(CONFIG, jnp.float32, groups=2)
    np.testing.assert_allclose(vectors(joined, found, TASK_IDS["mixed"]), expected, atol=2e-5)
    back = to_dict(split_state(CONFIG, found, mesh, scan_layers=False))
    for path, array in arrays.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
        assert back[path].sharding == array.sharding


def test_dropout_is_refused():
    graph, _ = abstract_joined(CONFIG, jnp.float32)
    _, state = weights(CONFIG, jnp.float32)
    found = join_state(CONFIG, state, None, scan_layers=False)
    encoder = nnx.merge(graph, found)
    ids, mask = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    with pytest.raises(ValueError, match="dropout: joined weights are for inference"):
        encoder(ids, mask, dropout=Dropout(jax.random.key(0), 0.1))


class TestEngine:
    """An engine that takes its device for a TPU, with the plain forms of kernels."""

    @pytest.fixture
    def engines(self, monkeypatch):
        _, state = weights(CONFIG, jnp.bfloat16)
        plain = Engine(CONFIG, state)
        monkeypatch.setattr("jina_jax.runtime.weights.platform_of", lambda _: "tpu")
        choice = KernelChoice("reference", REFERENCE, {})
        monkeypatch.setattr("jina_jax.runtime.engine.choose", lambda *_, **__: choice)
        return plain, Engine(CONFIG, state)

    def test_state_and_names_are_those_of_the_encoder(self, engines):
        plain, joined = engines
        assert joined.device == plain.device
        for ours in (to_dict(joined.state), joined.functional()[1]):
            assert ours.keys() == to_dict(plain.state).keys()
            for path, array in to_dict(plain.state).items():
                np.testing.assert_array_equal(ours[path], array, err_msg=path)

    def test_runs_joined_weights(self, engines):
        plain, joined = engines
        ids = np.random.default_rng(1).integers(4, SIZE["vocab"], (2, 32)).astype(np.int32)
        batch = Batch(np.arange(4), np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]), ids, SPANS)
        step = Step(batch, "mean", np.array(TASK_IDS["mixed"], np.int32))
        (_, expected), (_, found) = (next(engine.run([step])) for engine in engines)
        assert "word_embeddings.lora_a" not in to_dict(joined.placed_state)
        filled = np.array([[True, True, True], [True, False, False]])
        cosine = (expected * found).sum(-1)[filled]
        cosine /= np.linalg.norm(expected, axis=-1)[filled] * np.linalg.norm(found, axis=-1)[filled]
        assert cosine.min() > 0.9995
        doubled = jax.tree.map(lambda leaf: leaf * 2, plain.state)
        other = joined.with_state(doubled)
        np.testing.assert_array_equal(
            to_dict(other.state)["embedding_norm.scale"],
            to_dict(doubled)["embedding_norm.scale"],
        )
        assert not np.allclose(next(other.run([step]))[1], found)

    def test_widths_that_do_not_fill_the_lanes_run_as_they_are(self, engines):
        many = dataclasses.replace(CONFIG, lora_rank=16)  # with both tables' factors 160 lanes
        _, state = weights(many, jnp.bfloat16)
        assert Engine(many, state).state is state
        with pytest.raises(ValueError, match="'pallas_fused': takes a width that is a multiple of"):
            Engine(many, state, attn_implementation="pallas_fused")
        uneven = dataclasses.replace(CONFIG, intermediate_size=200)
        _, state = weights(uneven, jnp.bfloat16)
        with pytest.raises(ValueError, match="intermediate_size that is a multiple of 128"):
            Engine(uneven, state, attn_implementation="pallas_fused")
