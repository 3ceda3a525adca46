import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import POOLERS
from jina_jax.nn.pooling import cut_and_normalize, pool, pool_masked

HIDDEN = jnp.asarray([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[4.0, 4.0], [0.0, 0.0], [2.0, 5.0]]])


def spans(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_mean_is_over_each_span():
    pooled = pool(HIDDEN, spans([[0, 2], [1, 2]], [[0, 3], [2, 3]]), "mean")
    np.testing.assert_allclose(pooled, [[[2.0, 4.0], [3.0, 6.0]], [[2.0, 3.0], [2.0, 5.0]]])


def test_cls_is_the_first_token_of_each_span():
    pooled = pool(HIDDEN, spans([[0, 2], [1, 3]], [[0, 3], [2, 3]]), "cls")
    np.testing.assert_allclose(pooled, [[[1.0, 2.0], [3.0, 6.0]], [[4.0, 4.0], [2.0, 5.0]]])


OTHERS = {
    "max": [[3.0, 6.0], [4.0, 5.0]],
    "mean_sqrt_len_tokens": [[4.0 / 2**0.5, 8.0 / 2**0.5], [6.0 / 3**0.5, 9.0 / 3**0.5]],
    "weightedmean": [[7.0 / 3, 14.0 / 3], [10.0 / 6, 19.0 / 6]],
    "lasttoken": [[3.0, 6.0], [2.0, 5.0]],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_poolings_of_sentence_transformers(kind):
    expected = np.array(OTHERS[kind], np.float32)
    np.testing.assert_allclose(
        pool(HIDDEN, spans([[0, 2]], [[0, 3]]), kind)[:, 0], expected, rtol=1e-6
    )
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(pool_masked(HIDDEN, mask, kind), expected, rtol=1e-6)
    # Weights count from the first token of each text in its row.
    last = pool(HIDDEN, spans([[0, 1], [1, 2]], [[0, 0], [0, 3]]), kind)
    np.testing.assert_allclose(last[1], [[0, 0], expected[1]], rtol=1e-6)
    np.testing.assert_allclose(last[0, 1], HIDDEN[0, 1], rtol=1e-6)


@pytest.mark.parametrize("kind", POOLERS)
def test_empty_span_is_zero(kind):
    pooled = pool(HIDDEN, spans([[0, 0]], [[2, 2]]), kind)
    np.testing.assert_array_equal(pooled, np.zeros((2, 1, 2)))


def test_mean_is_taken_in_float32():
    # 1 + 1/256 is not a bfloat16: a mean in that dtype would lose the small part.
    hidden = jnp.asarray([[[1.0], [1.0 + 2.0**-7]]], jnp.bfloat16)
    pooled = pool(hidden, spans([[0, 2]]), "mean")
    assert pooled.dtype == jnp.float32
    assert pooled[0, 0, 0] == 1.0 + 2.0**-8


def test_truncation_comes_before_normalisation():
    vectors = np.array([[3.0, 4.0, 12.0]], np.float32)
    np.testing.assert_allclose(cut_and_normalize(vectors, 2, normalize=True), [[0.6, 0.8]])
    np.testing.assert_allclose(cut_and_normalize(vectors, 2, normalize=False), [[3.0, 4.0]])


def test_zero_vector_stays_zero_and_dtype_float32():
    out = cut_and_normalize(np.zeros((1, 4), np.float32), 4, normalize=True)
    np.testing.assert_array_equal(out, 0.0)
    assert out.dtype == np.float32
