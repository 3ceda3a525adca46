import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.nn.pooling import cut_and_normalize, pool

HIDDEN = jnp.asarray([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[4.0, 4.0], [0.0, 0.0], [2.0, 5.0]]])


def spans(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_mean_is_over_each_span():
    pooled = pool(HIDDEN, spans([[0, 2], [1, 2]], [[0, 3], [2, 3]]), "mean")
    np.testing.assert_allclose(pooled, [[[2.0, 4.0], [3.0, 6.0]], [[2.0, 3.0], [2.0, 5.0]]])


def test_cls_is_the_first_token_of_each_span():
    pooled = pool(HIDDEN, spans([[0, 2], [1, 3]], [[0, 3], [2, 3]]), "cls")
    np.testing.assert_allclose(pooled, [[[1.0, 2.0], [3.0, 6.0]], [[4.0, 4.0], [2.0, 5.0]]])


@pytest.mark.parametrize("kind", ["mean", "cls"])
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
