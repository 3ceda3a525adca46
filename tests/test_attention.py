import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.attention import attention


def numpy_attention(query, key, value, mask):
    """Attention in float64, a head and a query at a time."""
    out = np.zeros(query.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        scores = key[b, mask[b], n] @ query[b, t, n] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ value[b, mask[b], n]
    return out


@pytest.fixture
def qkv():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 7, 3, 8)).astype(np.float32) for _ in range(3)]


def test_equals_numpy(qkv):
    mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
    out = attention(*map(jnp.asarray, qkv), jnp.asarray(mask))
    np.testing.assert_allclose(out, numpy_attention(*qkv, mask), atol=1e-6)


def test_masked_keys_and_values_do_not_matter(qkv):
    mask = jnp.asarray([[True] * 7, [True, False, True] + [False] * 4])
    query, key, value = map(jnp.asarray, qkv)
    before = attention(query, key, value, mask)
    hidden = ~mask[..., None, None]
    after = attention(query, jnp.where(hidden, 99.0, key), jnp.where(hidden, -99.0, value), mask)
    np.testing.assert_array_equal(before, after)


def test_mask_keeps_exactly_its_keys():
    # One-hot values show each query's weights: even over the kept keys, as all scores are equal.
    zeros = jnp.zeros((1, 4, 1, 4))
    mask = jnp.asarray([[False, True, True, False]])
    weights = attention(zeros, zeros, jnp.eye(4).reshape(1, 4, 1, 4), mask)[0, :, 0]
    np.testing.assert_allclose(weights, np.tile([0.0, 0.5, 0.5, 0.0], (4, 1)))


def test_row_without_tokens_is_finite(qkv):
    out = attention(*map(jnp.asarray, qkv), jnp.zeros((2, 7), bool))
    assert np.isfinite(out).all()


def test_bfloat16_accumulates_in_float32():
    # 512 keys of equal weight: a bfloat16 sum of 512 ones would stop at 256.
    query = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    key = jnp.zeros((1, 512, 1, 8), jnp.bfloat16)
    value = jnp.ones((1, 512, 1, 8), jnp.bfloat16)
    out = attention(query, key, value, jnp.ones((1, 512), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=1e-2)
