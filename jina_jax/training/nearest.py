"""Exact search for the nearest vectors, in blocks of bounded size."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.matmul import einsum

# At most so many scores are in memory at once: 4096 · 8192 float32 are 128 MiB.
BLOCK_QUERIES, BLOCK_TEXTS = 4096, 8192


def nearest(
    queries: np.ndarray, texts: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find for each query the k texts with the largest inner products, by trying them all.

    Products are float32, on JAX's default device. Of equal scores the text with the lower index is
    the nearer one.

    Args:
      queries: float32 (n, d).
      texts: float32 (m, d).
      k: 1 to m.

    Yields:
      For each query in turn float32 (k,) scores, descending, and int32 (k,) indices of texts.
    """
    size = max(k, min(BLOCK_TEXTS, len(texts)))
    for start in range(0, len(queries), BLOCK_QUERIES):
        block = jnp.asarray(queries[start : start + BLOCK_QUERIES])
        shape = (len(block), k)
        best = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            best = _merge(best, block, padded, first, len(part), k=k)
        yield from zip(*map(np.asarray, best), strict=True)


@functools.partial(jax.jit, static_argnames="k")
def _merge(
    best: tuple[jax.Array, jax.Array], queries: jax.Array, texts: jax.Array, first, count, *, k: int
) -> tuple[jax.Array, jax.Array]:
    """Merge the k nearest so far with those of a block of texts, ``count`` without its padding.

    Equal scores stay in the order of the texts: ``top_k`` prefers the lower place, and the texts of
    earlier blocks come first.
    """
    scores = einsum("qd,td->qt", queries, texts)
    scores = jnp.where(jnp.arange(texts.shape[0]) < count, scores, -jnp.inf)
    found, places = jax.lax.top_k(scores, k)
    scores = jnp.concatenate([best[0], found], axis=1)
    ids = jnp.concatenate([best[1], first + places], axis=1)
    found, places = jax.lax.top_k(scores, k)
    return found, jnp.take_along_axis(ids, places, axis=1)
