"""Similarities of vectors, as sentence-transformers computes them (``similarity_fn_name``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from jina_jax.nn.pooling import unit


def similarities(kind: str, embeddings1: Any, embeddings2: Any) -> np.ndarray:
    """Return the similarity of all pairs, float32 (n, m), of vectors (n, d) and (m, d).

    Args:
      kind: one of ``jina_jax.config.SIMILARITIES``; distances are negative.
      embeddings1, embeddings2: (n, d) and (m, d); (d,) is one vector.

    Raises:
      ValueError: for other shapes, infinities or NaN.
    """
    first, second = _pair(kind, embeddings1, embeddings2)
    if kind in ("cosine", "dot"):
        return first @ second.T
    rows = [_distances(kind, one[None], second) for one in first]
    return np.stack(rows) if rows else np.zeros((0, len(second)), np.float32)


def pair_similarities(kind: str, embeddings1: Any, embeddings2: Any) -> np.ndarray:
    """Return the similarity of each pair, float32 (n,), of vectors (n, d) and (n, d).

    Raises:
      ValueError: for other shapes, infinities or NaN.
    """
    first, second = _pair(kind, embeddings1, embeddings2)
    if len(first) != len(second):
        raise ValueError(
            f"embeddings2: expected as many vectors as embeddings1, {len(first)}, got {len(second)}"
        )
    if kind in ("cosine", "dot"):
        return np.sum(first * second, axis=-1)
    return _distances(kind, first, second)


def _distances(kind: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    difference = first - second
    if kind == "manhattan":
        return -np.abs(difference).sum(axis=-1)
    return -np.linalg.norm(difference, axis=-1)


def _pair(kind: str, embeddings1: Any, embeddings2: Any) -> tuple[np.ndarray, np.ndarray]:
    return (unit_pair if kind == "cosine" else pair)(embeddings1, embeddings2)


def unit_pair(embeddings1: Any, embeddings2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of vectors as float32 (n, d) and (m, d) of unit length; (d,) is one vector.

    Raises:
      ValueError: for other shapes, infinities or NaN.
    """
    first, second = pair(embeddings1, embeddings2)
    return unit(_within_range(first)), unit(_within_range(second))


def pair(embeddings1: Any, embeddings2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of vectors as float32 (n, d) and (m, d); (d,) is one vector.

    Raises:
      ValueError: for other shapes, infinities or NaN.
    """
    both = [
        _vectors(name, values)
        for name, values in (("embeddings1", embeddings1), ("embeddings2", embeddings2))
    ]
    if any(values.ndim != 2 for values in both) or both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            f"embeddings1, embeddings2: expected shapes (n, d) and (m, d), got "
            f"{both[0].shape} and {both[1].shape}"
        )
    return both[0], both[1]


def _vectors(name: str, values: Any) -> np.ndarray:
    try:
        vectors = np.atleast_2d(np.asarray(values, np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected vectors of one length ({error})") from None
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name}: expected finite vectors, got NaN or infinity")
    return vectors


def _within_range(vectors: np.ndarray) -> np.ndarray:
    """Return vectors with 1 as the largest value of each, whose squares are in range."""
    if not vectors.size:
        return vectors
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return vectors / np.where(largest > 0, largest, np.float32(1))
