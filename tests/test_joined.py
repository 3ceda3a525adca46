"""The encoder of joined weights, interpreted on CPU, against the encoder that they were made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import SMALL, published_config

from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.joined import abstract_joined
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.nn.protocol import REFERENCE
from jina_jax.nn.tpu.norm import pallas_sum_norm
from jina_jax.runtime.joining import join_state, split_state

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


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["adapters", "no adapters"])
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


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize("tasks", TASK_IDS)
def test_float32_equals_the_encoder(tasks, form):
    graph, state = weights(CONFIG, jnp.float32)
    expected = vectors(graph, state, TASK_IDS[tasks])
    joined, _ = abstract_joined(CONFIG, jnp.float32)
    found = join_state(CONFIG, state, None, scan_layers=False)
    found = vectors(joined, found, TASK_IDS[tasks], KERNELS[form])
    np.testing.assert_allclose(found, expected, atol=2e-5)
