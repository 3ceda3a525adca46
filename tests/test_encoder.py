"""The encoder against the NumPy form of the published network, and its own invariants."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published import SMALL, published_config, published_shapes, random_tensor, write_published
from reference import Reference
from xla_flags import usual_options

from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.encoder import Context, Encoder, abstract_encoder
from jina_jax.nn.lora import Adapter
from jina_jax.nn.parameters import merge_task
from jina_jax.nn.protocol import REFERENCE

TASKS = [None, 0, 1, 2, 3, 4]
IDS = np.random.default_rng(1).integers(4, SMALL["vocab"], (len(TASKS), 19)).astype(np.int32)
LENGTHS = np.array([19, 7, 12, 2, 19, 16])
MASK = np.arange(19) < LENGTHS[:, None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(write_published(tmp_path_factory.mktemp("published")))


@pytest.fixture(scope="module")
def encode(checkpoint):
    """A jitted forward pass: (state, ids, mask, task_ids, …) → EncoderOutput."""
    graph, _ = abstract_encoder(checkpoint.config)

    def run(state, *args, **kwargs):
        return nnx.merge(graph, state)(*args, **kwargs)

    return jax.jit(run, static_argnames="output_hidden_states")


@pytest.fixture(scope="module")
def state(checkpoint):
    return to_state(checkpoint.config, checkpoint.tensors)


@pytest.fixture(scope="module")
def expected():
    """Hidden states (L + 1, T, D) and pooler output of each row, from the NumPy reference."""
    shapes = published_shapes(SMALL)
    tensors = {k: random_tensor(k, s, np.dtype("float32"), 0) for k, s in shapes.items()}
    reference = Reference(tensors, published_config(SMALL))
    rows = []
    for ids, length, task in zip(IDS, LENGTHS, TASKS, strict=True):
        hidden = reference(ids[:length], task)
        rows.append((np.stack(hidden), reference.pooler(hidden[-1], task)))
    return rows


def test_mixed_tasks_equal_numpy_in_every_layer(encode, state, expected):
    task_ids = np.array([-1 if task is None else task for task in TASKS])
    out = encode(state, IDS, MASK, task_ids, output_hidden_states=True)
    assert len(out.hidden_states) == SMALL["layers"] + 1
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    for row, (hidden, pooled) in enumerate(expected):
        ours = np.stack([h[row, : LENGTHS[row]] for h in out.hidden_states])
        np.testing.assert_allclose(ours, hidden, atol=1e-5)
        np.testing.assert_allclose(out.pooler_output[row], pooled, atol=1e-5)


def test_no_adapter_in_a_batch_skips_the_work_and_equals_minus_one(encode, state, expected):
    run = jax.jit(lambda *args: encode(*args), compiler_options=usual_options())
    skipped = run(state, IDS, MASK, None)
    explicit = run(state, IDS, MASK, np.full(len(TASKS), -1))
    np.testing.assert_allclose(
        skipped.last_hidden_state[MASK], explicit.last_hidden_state[MASK], atol=1e-6
    )
    np.testing.assert_allclose(skipped.last_hidden_state[0], expected[0][0][-1], atol=1e-5)
    graph = jax.make_jaxpr(encode)(state, IDS, MASK, None)
    with_tasks = jax.make_jaxpr(encode)(state, IDS, MASK, np.full(len(TASKS), -1))
    assert str(graph).count("dot_general") < str(with_tasks).count("dot_general")


@pytest.mark.parametrize("task", range(5))
def test_each_adapter_changes_the_result(encode, state, task):
    base = encode(state, IDS, MASK, None).last_hidden_state
    adapted = encode(state, IDS, MASK, np.full(len(TASKS), task)).last_hidden_state
    assert np.abs(base - adapted)[MASK].mean() > 0.1


def test_task_a_token_equals_task_a_row(encode, state):
    rows = np.arange(len(TASKS)) - 1
    a_row = encode(state, IDS, MASK, rows).last_hidden_state
    a_token = encode(state, IDS, MASK, np.tile(rows[:, None], (1, IDS.shape[1])))
    np.testing.assert_allclose(a_row[MASK], a_token.last_hidden_state[MASK], atol=1e-6)


@pytest.mark.parametrize("task", ["retrieval.query", "text-matching"])
def test_merged_weights_equal_the_adapter(encode, state, checkpoint, task):
    config = checkpoint.config
    merged = merge_task(state, task, config)
    graph, abstract = abstract_encoder(config.merged(task))
    assert jax.tree.structure(abstract) == jax.tree.structure(merged)
    ours = jax.jit(lambda s: nnx.merge(graph, s)(IDS, MASK))(merged)
    adapted = encode(state, IDS, MASK, np.full(len(TASKS), config.task_id(task)))
    np.testing.assert_allclose(
        ours.last_hidden_state[MASK], adapted.last_hidden_state[MASK], atol=1e-5
    )
    np.testing.assert_allclose(ours.pooler_output, adapted.pooler_output, atol=1e-5)


def test_merge_sums_in_float32_and_casts_once(checkpoint):
    state = to_state(checkpoint.config, checkpoint.tensors, "bfloat16")
    merged = merge_task(state, "separation", checkpoint.config)
    linear = state["layers"][0]["mlp"]["fc1"]
    kernel, a, b = (
        np.asarray(linear[name][...], np.float64) for name in ("kernel", "lora_a", "lora_b")
    )
    exact = (kernel + a[2] @ b[2] / 4).astype(np.float32).astype(jnp.bfloat16)
    ours = np.asarray(merged["layers"][0]["mlp"]["fc1"]["kernel"][...])
    # A tie of float32 sums may round either way; more than that would be a rounding too many.
    assert (ours != exact).mean() < 1e-3


def test_merging_an_unknown_task_is_refused(state, checkpoint):
    with pytest.raises(ValueError, match=r"task='search'.*'retrieval\.query'"):
        merge_task(state, "search", checkpoint.config)


def test_adapters_are_a_variable_type_of_their_own(state):
    adapters, rest = nnx.split_state(state, Adapter, ...)
    names = {path[-1] for path, _ in nnx.to_flat_state(adapters)}
    assert names == {"lora_a", "lora_b"}
    assert {path[-1] for path, _ in nnx.to_flat_state(rest)}.isdisjoint(names)
    # Two embeddings, four linear layers in each of three layers, and the pooler.
    assert len(jax.tree.leaves(adapters)) == 2 * (2 + 4 * 3 + 1)


def test_gradient_reaches_exactly_the_rows_own_adapters(checkpoint, state):
    graph, _ = abstract_encoder(checkpoint.config)
    adapters, rest = nnx.split_state(state, Adapter, ...)

    def loss(adapters):
        encoder = nnx.merge(graph, adapters, rest)
        return encoder(IDS, MASK, np.full(len(TASKS), 3)).last_hidden_state.sum()

    gradients = jax.jit(jax.grad(loss))(adapters)
    for path, gradient in nnx.to_flat_state(gradients):
        values = np.abs(np.asarray(gradient[...])).reshape(5, -1).sum(-1)
        assert (values[[0, 1, 2, 4]] == 0).all(), path
        assert values[3] > 0 or path[0] == "pooler", path


@pytest.mark.parametrize("task", [None, 2])
def test_padding_and_batch_mates_change_nothing(encode, state, task):
    task_ids = None if task is None else np.full(len(TASKS), task)
    together = encode(state, IDS, MASK, task_ids).last_hidden_state
    for row, length in ((1, 7), (3, 2)):
        mine = None if task is None else task_ids[:1]
        alone = encode(state, IDS[row : row + 1, :length], MASK[row : row + 1, :length], mine)
        np.testing.assert_allclose(together[row, :length], alone.last_hidden_state[0], atol=1e-5)


def test_absolute_positions_start_behind_the_pad_id(checkpoint):
    config = dataclasses.replace(
        checkpoint.config, position_embedding_type="absolute", rotary_emb_base=None
    )
    encoder = nnx.jit(lambda: Encoder(config, rngs=nnx.Rngs(0)))()
    table = encoder.position_embeddings.embedding[...]
    run = nnx.jit(lambda encoder: encoder(IDS[:1], MASK[:1]).last_hidden_state)
    before = run(encoder)
    # Rows 0 and 1, and those behind the text, are never used; row 2 is the first token's.
    encoder.position_embeddings.embedding[...] = table.at[:2].set(9.0).at[21:].set(9.0)
    np.testing.assert_array_equal(before, run(encoder))
    encoder.position_embeddings.embedding[...] = table.at[2].set(9.0)
    assert np.abs(before - run(encoder)).max() > 0.1


@pytest.mark.parametrize(
    ("kind", "pads", "expected"),
    [
        ("absolute", [0, 7, 1, 8, 1, 1, 9, 2], [2, 3, 1, 4, 1, 1, 5, 6]),
        ("absolute_from_zero", [0, 7, 1, 8, 1, 1, 9, 2], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_pads_inside_a_text_are_not_counted_as_in_xlm_roberta(checkpoint, kind, pads, expected):
    config = dataclasses.replace(
        checkpoint.config, position_embedding_type=kind, rotary_emb_base=None
    )
    encoder = nnx.jit(lambda: Encoder(config, rngs=nnx.Rngs(0)))()
    found = []
    encoder.position_embeddings = lambda ids, _: found.append(ids) or jnp.zeros((*ids.shape, 64))
    encoder._embed(jnp.array([pads]), jnp.arange(8)[None], Context(None, False, None, REFERENCE))
    assert found[0].tolist() == [expected]


def test_given_positions_are_used(encode, state):
    usual = encode(state, IDS, MASK, None, np.tile(np.arange(19), (len(IDS), 1)))
    default = encode(state, IDS, MASK)
    shifted = encode(state, IDS, MASK, None, np.tile(np.arange(19) * 3, (len(IDS), 1)))
    np.testing.assert_allclose(usual.last_hidden_state, default.last_hidden_state, atol=1e-6)
    assert np.abs(shifted.last_hidden_state - default.last_hidden_state)[MASK].max() > 1e-2


def test_bfloat16_stays_close_to_float32(checkpoint, encode, state):
    low = to_state(checkpoint.config, checkpoint.tensors, "bfloat16")
    task_ids = np.arange(len(TASKS)) - 1
    exact = np.asarray(encode(state, IDS, MASK, task_ids).last_hidden_state)
    rounded = encode(low, IDS, MASK, task_ids).last_hidden_state
    assert rounded.dtype == jnp.bfloat16
    rounded = np.asarray(rounded.astype(jnp.float32))
    cosine = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1)
    cosine /= np.linalg.norm(rounded, axis=-1)
    assert cosine[MASK].min() >= 0.999


def test_every_matmul_on_cpu_returns_float32(checkpoint, encode):
    low = to_state(checkpoint.config, checkpoint.tensors, "bfloat16")
    program = encode.lower(low, IDS, MASK, np.zeros(len(TASKS), np.int32)).as_text()
    results = re.findall(r"stablehlo\.dot_general.*-> tensor<\S*x(\w+)>", program)
    assert len(results) == program.count("stablehlo.dot_general") > 0
    assert set(results) == {"f32"}


def test_float32_is_multiplied_in_full(state, encode):
    jaxpr = str(jax.make_jaxpr(encode)(state, IDS, MASK, np.zeros(len(TASKS), np.int32)))
    products = jaxpr.count("dot_general[")
    assert products > 0
    assert jaxpr.count("precision=HIGHEST") + jaxpr.count("Precision.HIGHEST") >= products


def test_fresh_adapters_change_nothing(checkpoint):
    @jax.jit
    def outputs():
        encoder = Encoder(checkpoint.config, rngs=nnx.Rngs(0))
        tasks = np.zeros(len(TASKS), np.int32)
        return encoder(IDS, MASK).last_hidden_state, encoder(IDS, MASK, tasks).last_hidden_state

    np.testing.assert_allclose(*outputs(), atol=1e-6)
