"""Texts and comparisons of the tests with released clients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jina_jax import JinaEmbeddings

NAME = "jina-embeddings-v3"
KEY = "secret"
# The texts of the examples in docs/serving.md.
QUERY = "How do I renew my passport?"
DOCUMENTS = ["At the town hall.", "The museum is closed on Mondays."]

UNKNOWN_TASK = "task: .*retrieval.query.*'summary'"
UNKNOWN_KEY = "authorization: a key that is not known"


def numbered(count: int) -> list[str]:
    """Return short texts that differ."""
    return [f"Page {number}" for number in range(count)]


def assert_equal(found: Sequence[Any] | np.ndarray, expected: np.ndarray) -> None:
    """Compare vectors bit by bit: the decimals of a float32 give it back."""
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def assert_bits(found: Sequence[Any] | np.ndarray, expected: np.ndarray) -> None:
    """Compare bits with the signs of vectors."""
    np.testing.assert_array_equal(np.asarray(found), expected > 0)


def chunk_vectors(model: JinaEmbeddings, chunks: Sequence[str], **options: Any) -> np.ndarray:
    """Return the vectors of chunks of a text, in which they are joined by spaces."""
    spans, start = [], 0
    for chunk in chunks:
        spans.append((start, start + len(chunk)))
        start += len(chunk) + 1
    return model.encode_chunks(" ".join(chunks), spans, **options).embeddings
