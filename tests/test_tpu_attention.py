"""Attention of TPUs: interpreted, against NumPy and the reference; compiled where libtpu is."""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from published import SMALL, published_config

from jina_jax.config import Config
from jina_jax.nn import kernels as kernels_module
from jina_jax.nn.attention import attention as reference
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.kernels import choose
from jina_jax.nn.protocol import REFERENCE, Kernels, Rows, by_heads
from jina_jax.nn.rope import rotary_angles
from jina_jax.nn.tpu import check, heads
from jina_jax.nn.tpu.attention import attention, padded_length, prepare
from jina_jax.nn.tpu.blocks import block_attention, block_ranges
from jina_jax.runtime.compiling import compiler_options

BASE = 10000.0


def draw(rows, tokens, number=2):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, tokens, 3, number * 64), np.float32)


def packed(rows, tokens, seed=0, most=None):
    """Numbers of texts, 1, 2, … and 0 for padding, of lengths drawn at random."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, tokens), np.int32)
    for row in ids:
        start, number = 0, 0
        stop = tokens - int(rng.integers(0, tokens // 4 + 1))
        while start < stop:
            length, number = int(rng.integers(1, (most or tokens) + 1)), number + 1
            row[start : min(start + length, stop)] = number
            start += length
    return ids


def positions(ids):
    """Each token's position in its text."""
    change = np.diff(ids, axis=1, prepend=-1) != 0
    at = np.arange(ids.shape[1])
    return at - np.maximum.accumulate(np.where(change, at, 0), axis=1)


def rows_of(ids, rotary=True):
    ids = jnp.asarray(ids)
    angles = rotary_angles(jnp.asarray(positions(np.asarray(ids))), 64, BASE) if rotary else None
    return Rows(ids > 0, ids, angles)


def numpy_attention(qkv, ids, rotary=True):
    """Attention in float64 over tokens of the same number, queries and keys rotated before."""
    rows, tokens, _, width = qkv.shape
    query, key, value = qkv.astype(np.float64).reshape(rows, tokens, 3, -1, 64).swapaxes(0, 2)
    if rotary:
        angles = positions(ids)[..., None] * BASE ** (-np.arange(0, 64, 2) / 64)
        turns = np.exp(1j * angles).swapaxes(0, 1)[:, :, None]
        query, key = (a[..., :32] + 1j * a[..., 32:] for a in (query, key))
        query, key = (np.concatenate((a.real, a.imag), -1) for a in (query * turns, key * turns))
    scores = np.einsum("tbnh,sbnh->bnts", query, key) / 8
    same = ids[:, None, :, None] == ids[:, None, None, :]
    weights = np.where(same, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,sbnh->btnh", weights, value).reshape(rows, tokens, width)


def attend(qkv, rows, dtype="float32", mesh=None, interpret=True):
    return attention(qkv, 64, dtype, prepare(rows), mesh=mesh, interpret=interpret)


# Compiled quickly; a test takes the shapes of another where it can.
FAST = {"xla_backend_optimization_level": 0, **compiler_options()}
interpreted = jax.jit(attend, static_argnames=("dtype", "mesh", "interpret"), compiler_options=FAST)


# ---------------------------------------------------------------- whole rows


# Rows of 16, of 64, which are joined, and of 256.
@pytest.mark.parametrize("tokens", [1, 40, 200])
def test_equals_numpy(tokens):
    qkv, ids = draw(5, tokens), packed(5, tokens)
    found, kept = np.asarray(interpreted(qkv, rows_of(ids))), ids > 0
    assert found.shape == (5, tokens, 128)
    np.testing.assert_allclose(found[kept], numpy_attention(qkv, ids)[kept], atol=3e-6)
    assert np.isfinite(found).all()


def test_without_rotation_and_an_odd_number_of_pairs():
    qkv, ids = draw(2, 128, number=6), packed(2, 128)
    found = interpreted(qkv, rows_of(ids, rotary=False))
    np.testing.assert_allclose(found, numpy_attention(qkv, ids, rotary=False), atol=3e-6)


def test_rows_of_one_text_share_their_angles():
    tokens = 24
    qkv, mask = draw(3, tokens), np.arange(tokens) < np.array([[tokens], [tokens - 7], [1]])
    rows = Rows(jnp.asarray(mask), None, rotary_angles(jnp.arange(tokens)[None], 64, BASE))
    expected = numpy_attention(qkv, mask.astype(np.int32))
    alone = REFERENCE.attention(jnp.asarray(qkv), 64, "float32", rows)
    found = np.asarray(interpreted(qkv, rows))
    np.testing.assert_allclose(found[mask], np.asarray(alone)[mask], atol=3e-6)
    np.testing.assert_allclose(found[0], expected[0], atol=3e-6)


@pytest.mark.parametrize("kind", ["all padding", "one token", "a text per token"])
def test_extreme_rows(kind):
    ids = np.zeros((2, 128), np.int32)
    if kind == "one token":
        ids[:, 0] = 1
    elif kind == "a text per token":
        ids[:] = np.arange(1, 129)
    qkv = draw(2, 128)
    found = np.asarray(interpreted(qkv, rows_of(ids)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[ids > 0], numpy_attention(qkv, ids)[ids > 0], atol=3e-6)


def test_texts_do_not_see_each_other():
    qkv, ids = draw(2, 128), packed(2, 128, seed=3)
    second = (ids == 2)[..., None, None]
    before, after = (interpreted(a, rows_of(ids)) for a in (qkv, np.where(second, 9.0, qkv)))
    np.testing.assert_array_equal(np.asarray(before)[ids != 2], np.asarray(after)[ids != 2])
    assert not np.isclose(before, after)[ids == 2].any()


def test_bfloat16_is_as_near_to_float32_as_the_reference():
    qkv, rows = draw(2, 128), rows_of(packed(2, 128))
    exact = np.asarray(interpreted(qkv, rows))
    found = interpreted(qkv, rows, "bfloat16")
    plain = jax.jit(REFERENCE.attention, static_argnums=(1, 2))(qkv, 64, "bfloat16", rows)
    assert (found.dtype, found.shape) == (jnp.bfloat16, exact.shape)
    kept = np.asarray(rows.attention_mask)
    error, usual = (
        np.linalg.norm(np.asarray(a, np.float32)[kept] - exact[kept]) for a in (found, plain)
    )
    assert error < 1.2 * usual


@functools.cache
def packings():
    """A function that computes two rows of 64 tokens, compiled once."""
    qkv = draw(2, 64)
    run = jax.jit(lambda ids, at: attend(qkv, Rows(ids > 0, ids, at)), compiler_options=FAST)
    return qkv, run


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 100))
def test_any_packing_equals_numpy(lengths, start):
    qkv, run = packings()
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    ids = np.pad(ids, (0, 256))[start : start + 128].reshape(2, 64).astype(np.int32)
    found = run(ids, rotary_angles(jnp.asarray(positions(ids)), 64, BASE))
    np.testing.assert_allclose(found, numpy_attention(qkv, ids), atol=3e-6)


# ---------------------------------------------------------------- long rows


@functools.partial(jax.jit, static_argnames=("queries", "keys", "interpret"), compiler_options=FAST)
def in_blocks(qkv, rows, queries=256, keys=128, interpret=True):
    table = None if rows.angles is None else heads.angle_table(*rows.angles)
    ranges = block_ranges(rows.segment_ids, queries=queries, keys=keys)
    joined = qkv.reshape(*qkv.shape[:2], -1)
    return block_attention(joined, table, rows.segment_ids, ranges, keys=keys, interpret=interpret)


@pytest.mark.parametrize(("queries", "keys", "rotary"), [(256, 128, True), (128, 256, False)])
def test_blocks_equal_numpy(queries, keys, rotary):
    qkv, ids = draw(2, 512), np.stack((packed(1, 512)[0], np.ones(512, np.int32)))
    found = in_blocks(qkv, rows_of(ids, rotary), queries, keys)
    np.testing.assert_allclose(found, numpy_attention(qkv, ids, rotary), atol=3e-6)


@pytest.mark.parametrize(("kernel", "tokens"), [(interpreted, 128), (in_blocks, 256)])
def test_memory_of_a_tpu_is_written_before_it_is_read_and_without_races(kernel, tokens, capfd):
    qkv, ids = draw(2, tokens), packed(2, tokens)
    found = kernel(qkv, rows_of(ids), interpret=pltpu.InterpretParams(detect_races=True))
    np.testing.assert_allclose(found, numpy_attention(qkv, ids), atol=3e-6)
    assert "RACE" not in "".join(capfd.readouterr())


def test_scores_that_grow_from_block_to_block():
    qkv, ids = draw(2, 512), np.ones((2, 512), np.int32)
    qkv[:, :, 1] *= np.linspace(0.1, 4, 512)[None, :, None]
    found = in_blocks(qkv, rows_of(ids, rotary=False), 128, 256)
    np.testing.assert_allclose(found, numpy_attention(qkv, ids, rotary=False), atol=1e-5)


def test_blocks_of_other_texts_are_skipped():
    ids = np.repeat([[1, 1, 2, 3, 3, 0, 0, 0]], 64, axis=1).reshape(1, 512).astype(np.int32)
    ranges = block_ranges(jnp.asarray(ids), queries=128, keys=128)
    assert ranges.tolist() == [[[0, 1], [1, 3], [1, 4], [2, 4]]]
    # Queries of the first block never meet the keys from 256, which are padding here.
    ids = np.tile(np.repeat([[1, 2, 0, 0]], 128, axis=1), (2, 1)).astype(np.int32)
    qkv, first = draw(2, 512), np.arange(512) < 256
    expected = numpy_attention(qkv, ids, rotary=False)
    qkv[:, 256:] = np.nan
    found = in_blocks(qkv, rows_of(ids, rotary=False), 128, 256)
    np.testing.assert_allclose(found[:, first], expected[:, first], atol=3e-6)


def test_8192_tokens():
    qkv, ids = draw(1, 8192), packed(1, 8192, most=600)
    found = interpreted(qkv, rows_of(ids), "bfloat16")
    for number in (1, ids.max(), 0):
        own = ids[0] == number
        expected = numpy_attention(qkv[:, own], ids[:, own])
        np.testing.assert_allclose(found[:, own], expected, atol=4e-2)


def test_padded_lengths():
    lengths = [1, 16, 17, 96, 128, 129, 512, 768, 1000, 1024, 1100, 1536, 8192]
    expected = [16, 16, 32, 128, 128, 256, 512, 768, 1024, 1024, 1536, 1536, 8192]
    assert list(map(padded_length, lengths)) == expected


# ---------------------------------------------------------------- within programs


def test_gradients_equal_those_of_the_reference():
    tokens = 40
    qkv, rows = jnp.asarray(draw(3, tokens)), rows_of(packed(3, tokens))
    direction = np.where(rows.attention_mask[..., None], draw(3, tokens)[:, :, 0], 0)

    def gradient(kernel):
        total = jax.grad(lambda qkv: (kernel(qkv) * direction).sum())
        return jax.jit(total, compiler_options=FAST)(qkv)

    found = gradient(lambda qkv: attend(qkv, rows))
    expected = gradient(lambda qkv: by_heads(reference)(qkv, 64, "float32", rows))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_mesh_changes_nothing():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axes, devices=jax.devices()[:4])
    qkv, rows = draw(2, 32, number=4), rows_of(packed(2, 32))
    np.testing.assert_array_equal(interpreted(qkv, rows, mesh=mesh), interpreted(qkv, rows))


def test_the_encoder_with_the_kernels():
    sizes = {**SMALL, "width": 128, "heads": 2, "ffn": 128, "layers": 1, "vocab": 64}
    fields = {"default_prompt": "", "add_pooling_layer": False, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config(sizes), **fields})
    assert config.head_dim == 64
    rng = np.random.default_rng(1)
    graph, shapes = abstract_encoder(config)
    state = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    ids = packed(2, 48)
    inputs = rng.integers(4, 64, ids.shape).astype(np.int32)
    tasks = np.where(ids > 0, ids % config.num_tasks, -1)

    @functools.partial(jax.jit, static_argnames="kernels", compiler_options=FAST)
    def run(state, kernels):
        encoder = nnx.merge(graph, state)
        at = (inputs, ids > 0, jnp.asarray(tasks), jnp.asarray(positions(ids)))
        return encoder(*at, segment_ids=jnp.asarray(ids), kernels=kernels).last_hidden_state

    pallas = Kernels(functools.partial(attention, interpret=True), prepare)
    found, expected = (np.asarray(run(state, kernels)) for kernels in (pallas, REFERENCE))
    np.testing.assert_allclose(found[ids > 0], expected[ids > 0], atol=1e-5)


@pytest.mark.parametrize(("tokens", "shared"), [(128, True), (128, False), (2048, False)])
def test_declared_costs_are_true(tokens, shared):
    """Every operand and the result once, whatever the kernel passes twice."""
    angle = jax.ShapeDtypeStruct((1 if shared else 2, tokens, 32), jnp.float32)
    rows = Rows(jax.ShapeDtypeStruct((2, tokens), bool), None, (angle, angle))
    qkv = jax.ShapeDtypeStruct((2, tokens, 3, 256), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda qkv, rows: attend(qkv, rows, "bfloat16"))(qkv, rows)
    (call,) = pallas_calls(jaxpr.jaxpr)
    arrays = {id(v): v.aval for v in (*call.invars, *call.outvars)}.values()
    estimate = call.params["cost_estimate"]
    assert estimate.bytes_accessed == sum(a.size * a.dtype.itemsize for a in arrays)
    assert estimate.flops == 2 * 2 * 2 * tokens**2 * 256


def pallas_calls(jaxpr):
    """Return the calls of kernels at any depth of a program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(equation)
            continue
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += pallas_calls(inner) if hasattr(inner, "eqns") else []
    return found


# ---------------------------------------------------------------- choice and start-up check


@pytest.fixture
def fresh():
    """Forget earlier choices and checks, before and after."""
    for remembered in (choose, check.refusal):
        remembered.cache_clear()
    yield
    for remembered in (choose, check.refusal):
        remembered.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "heads_", "reason"),
    [
        ("float16", 64, 16, "takes bfloat16 and float32, the weights are float16"),
        ("bfloat16", 32, 16, "takes heads of 64, these have 32"),
        ("bfloat16", 64, 3, r"takes pairs of heads, these are 3 on 1 device\(s\)"),
    ],
)
def test_what_the_kernels_do_not_take(fresh, dtype, head_dim, heads_, reason):
    choice = choose("tpu", dtype, 512, 1, head_dim, heads=heads_)
    assert choice.name == "reference"
    assert choose("tpu", dtype, 2048, 1, head_dim, heads=heads_).name == "blocked"
    with pytest.raises(ValueError, match=f"attn_implementation='pallas': {reason}"):
        choose("tpu", dtype, 512, 1, head_dim, None, "pallas", heads=heads_)


def test_small_chips_take_short_rows(fresh, monkeypatch):
    class Device:
        device_kind = "TPU v4"

    monkeypatch.setattr(kernels_module, "_devices", lambda mesh: ([Device()], None))
    assert choose("tpu", "bfloat16", 512, 1, 64).name == "pallas"
    assert "TPU v4" in choose("tpu", "bfloat16", 1024, 1, 64).refusals["pallas"]
    assert choose("tpu", "float32", 128, 1, 64).name == "reference"


@pytest.fixture
def on_device(fresh, monkeypatch):
    """Choose as on a TPU that is here; the check interprets the kernels."""
    device = jax.devices()[0]
    monkeypatch.setattr(kernels_module, "_devices", lambda mesh: ([device], device))
    monkeypatch.setattr(check, "row_of", lambda tokens: 128)


def test_a_right_kernel_is_chosen(on_device):
    choice = choose("tpu", "float32", 384, 1, 64)
    assert (choice.name, choice.refusals) == ("pallas", {})


def test_the_row_that_is_computed_is_for_the_kernel_of_the_length():
    assert [check.row_of(tokens) for tokens in (16, 1024, 1025, 8192)] == [512, 512, 2048, 2048]


def test_a_wrong_kernel_is_passed_over(on_device, monkeypatch):
    roll = pltpu.roll
    monkeypatch.setattr(pltpu, "roll", lambda x, shift, axis: roll(x, -shift % 128, axis))
    choice = choose("tpu", "float32", 512, 1, 64)
    # Rolled to the other side, a half finds that of the other head.
    assert choice.name == "reference"
    assert choice.refusals["pallas"].startswith("differs from the reference on cpu, by ")


def test_a_kernel_that_fails_is_passed_over(on_device, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("Unsupported shape")

    monkeypatch.setattr(heads, "rotate", refuse)
    choice = choose("tpu", "float32", 256, 1, 64, None, "pallas")
    reason = "fails on cpu: NotImplementedError: Unsupported shape"
    assert (choice.name, choice.refusals) == ("blocked", {"pallas": reason})


# ---------------------------------------------------------------- compiled


# In a process of its own: libtpu wants its settings before jax starts, and stays in the process.
# It opens no device, so other processes need not be kept from loading it.
SETTINGS = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
COMPILE = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jina_jax.nn.kernels import choose
from jina_jax.nn.protocol import Rows

devices = np.array(topologies.get_topology_desc("v5e:2x2", "tpu").devices).reshape(2, 2)
mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
at = lambda *axes: NamedSharding(mesh, P(*axes))
for tokens in map(int, sys.argv[1:]):
    choice = choose("tpu", "bfloat16", tokens, 8, 64, mesh, heads=4)
    assert choice.name == "pallas" and not choice.refusals, choice
    parts = at("data", None, None, "model")
    qkv = jax.ShapeDtypeStruct((4, tokens, 3, 256), "bfloat16", sharding=parts)
    ids = jax.ShapeDtypeStruct((4, tokens), jnp.int32, sharding=at("data"))
    angle = jax.ShapeDtypeStruct((4, tokens, 32), jnp.float32, sharding=at("data"))
    def run(qkv, ids, cos, sin):
        rows = choice.kernels.prepare(Rows(ids > 0, ids, (cos, sin)))
        return choice.kernels.attention(qkv, 64, "bfloat16", rows)
    print(jax.jit(run).lower(qkv, ids, angle, angle).compile().as_text())
"""


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (jax[tpu])")
def test_compiles_for_v5e():
    command = [sys.executable, "-c", COMPILE, "64", "256", "2048"]
    environment = os.environ | SETTINGS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('custom_call_target="tpu_custom_call"') == 3
    # Devices have whole rows and pairs of heads, and exchange nothing.
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in done.stdout
