import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jina_jax.nn import splash
from jina_jax.nn.attention import attention
from jina_jax.nn.splash import splash_attention


def interpreted(query, key, value, segment_ids, mesh=None):
    """The kernel as it runs on a TPU, a step after another on CPU."""
    arrays = (jnp.asarray(a) for a in (query, key, value, segment_ids > 0, segment_ids))
    return np.asarray(splash_attention(*arrays, mesh=mesh, interpret=True))


def numpy_attention(query, key, value, segment_ids):
    """Attention in float64 over tokens of the same number."""
    query, key, value = (a.astype(np.float64) for a in (query, key, value))
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    weights = np.where(same, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights, value)


def draw(rows, tokens, heads=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(rows, tokens, heads, 64)).astype(np.float32) for _ in range(3)]


def segments(tokens):
    """Two rows: three texts and padding, of odd lengths; one text that fills its row."""
    ids = np.ones((2, tokens), np.int32)
    ids[0, 37:] = 2
    ids[0, tokens // 2 + 5 :] = 3
    ids[0, tokens - 11 :] = 0
    return ids


@pytest.mark.parametrize("tokens", [128, 256, 1152])  # one block, one block, 3 × 3 blocks
def test_equals_numpy(tokens):
    qkv, ids = draw(2, tokens), segments(tokens)
    np.testing.assert_allclose(interpreted(*qkv, ids), numpy_attention(*qkv, ids), atol=1e-5)


@pytest.mark.parametrize("tokens", [128, 640])  # one block, 5 × 5 blocks in the backward kernels
def test_gradients_equal_those_of_the_reference(tokens):
    qkv, ids = tuple(map(jnp.asarray, draw(2, tokens))), jnp.asarray(segments(tokens))
    direction = jnp.asarray(draw(2, tokens)[0][..., ::-1])

    def gradients(attend):
        def objective(qkv):
            return (attend(*qkv, ids > 0, ids) * direction).sum()

        return jax.tree.map(np.asarray, jax.grad(objective)(qkv))

    kernel = gradients(lambda *operands: splash_attention(*operands, interpret=True))
    for ours, reference in zip(kernel, gradients(attention), strict=True):
        real = np.asarray(ids) > 0
        np.testing.assert_allclose(ours[real], reference[real], atol=2e-5)


def test_texts_do_not_see_each_other():
    (query, key, value), ids = draw(2, 256), segments(256)
    second = (ids == 2)[..., None, None]
    before = interpreted(query, key, value, ids)
    after = interpreted(query, np.where(second, 9.0, key), np.where(second, -9.0, value), ids)
    np.testing.assert_array_equal(before[ids != 2], after[ids != 2])
    assert not np.isclose(before[ids == 2], after[ids == 2]).any()


def test_bool_mask_is_one_text_and_padding():
    qkv, mask = draw(2, 128), np.arange(128) < np.array([[128], [90]])
    alone = splash_attention(*map(jnp.asarray, (*qkv, mask)), interpret=True)
    np.testing.assert_array_equal(alone, interpreted(*qkv, mask.astype(np.int32)))


def test_bfloat16():
    qkv, ids = draw(2, 128), segments(128)
    out = interpreted(*(a.astype(jnp.bfloat16) for a in qkv), ids)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float64), numpy_attention(*qkv, ids), atol=3e-2)


def test_mesh_changes_nothing():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axes, devices=jax.devices()[:4])
    qkv, ids = draw(2, 128), segments(128)
    np.testing.assert_array_equal(interpreted(*qkv, ids, mesh), interpreted(*qkv, ids))


@pytest.mark.parametrize("tokens", [1, 64, 200])
def test_refuses_rows_that_do_not_fill_the_lanes(tokens):
    rule = f"T must be a multiple of 128 .*got T = {tokens}$"
    with pytest.raises(ValueError, match=rule):
        interpreted(*draw(1, tokens), np.ones((1, tokens), np.int32))


def test_what_does_not_suit():
    assert "multiple of 128" in splash.does_not_suit(1000)
    assert "512 tokens and more" in splash.does_not_suit(384)
    assert splash.does_not_suit(512) is None


@pytest.mark.parametrize(
    ("tokens", "block", "compute"),
    [(128, 128, 128), (768, 768, 384), (1152, 384, 384), (1536, 768, 384), (8192, 1024, 512)],
)
def test_blocks_divide_the_row(tokens, block, compute):
    sizes = splash._block_sizes(tokens)
    assert (sizes.block_q, sizes.block_kv, sizes.block_kv_compute) == (block, block, compute)


# In a process of its own: libtpu wants its settings before jax starts, and stays in the process.
# It opens no device, so other processes need not be kept from loading it.
SETTINGS = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
COMPILE = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jina_jax.nn.splash import splash_attention

devices = np.array(topologies.get_topology_desc("v5e:2x2", "tpu").devices).reshape(2, 2)
mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
at = lambda *axes: NamedSharding(mesh, P(*axes))
x = jax.ShapeDtypeStruct((2, 2048, 4, 64), jnp.bfloat16, sharding=at("data", None, "model"))
ids = jax.ShapeDtypeStruct((2, 2048), jnp.int32, sharding=at("data"))
run = jax.jit(lambda q, k, v, ids: splash_attention(q, k, v, ids > 0, ids, mesh=mesh))
print(run.lower(x, x, x, ids).compile().as_text())
"""


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (jax[tpu])")
def test_compiles_for_v5e():
    command = [sys.executable, "-c", COMPILE]
    environment = os.environ | SETTINGS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tpu_custom_call" in done.stdout
    # Devices hold whole rows and heads, and exchange nothing.
    assert "all-gather" not in done.stdout
    assert "all-reduce" not in done.stdout
