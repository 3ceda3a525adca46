"""Similarities of ``similarity_fn_name``."""

import numpy as np
import pytest

from jina_jax.config import SIMILARITIES
from jina_jax.runtime.similarity import pair_similarities, similarities

FIRST = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
SECOND = np.array([[0.0, 1.0], [-3.0, 4.0]], np.float32)
EXPECTED = {
    "cosine": [[0.8, 0.28], [1.0, 0.8]],
    "dot": [[4.0, 7.0], [2.0, 8.0]],
    "euclidean": [[-(18**0.5), -6.0], [-1.0, -(13**0.5)]],
    "manhattan": [[-6.0, -6.0], [-1.0, -5.0]],
}


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_all_pairs_and_each_pair(kind):
    found = similarities(kind, FIRST, SECOND)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED[kind], rtol=1e-6)
    each = pair_similarities(kind, FIRST, SECOND)
    np.testing.assert_allclose(each, np.diag(EXPECTED[kind]), rtol=1e-6)
    assert similarities(kind, FIRST[:0], SECOND).shape == (0, 2)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_refusals(kind):
    for wrong in ([[1.0, float("nan")]], [[1.0]], [[1.0, 2.0], [3.0]]):
        with pytest.raises(ValueError, match="embeddings1"):
            similarities(kind, wrong, SECOND)
    with pytest.raises(ValueError, match="embeddings2: expected as many"):
        pair_similarities(kind, FIRST, SECOND[:1])
