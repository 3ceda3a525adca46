"""Exact search for the nearest vectors, in blocks of bounded size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.nn.matmul import einsum
from jina_jax.runtime.compiling import jit, platform_of

# The most scores in memory at once: 4096 · 8192 float32 are 128 MiB.
BLOCK_QUERIES, BLOCK_TEXTS = 4096, 8192


class Nearest:
    """The texts with the largest inner products with each query, of those added so far.

    Products are float32, on JAX's default device. Of equal scores the text that was added first is
    the nearer one.

    Args:
      queries: float32 (n, d).
      k: number of texts to keep per query.
    """

    def __init__(self, queries: np.ndarray, k: int):
        self._queries, self._k, self._seen = jnp.asarray(queries), k, 0
        shape = (len(queries), k)
        self._best = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)

    def add(self, texts: np.ndarray) -> None:
        """Compare the next texts, float32 (m, d), with all queries."""
        merge = _merge_on(platform_of(self._queries))
        size = max(self._k, min(BLOCK_TEXTS, len(texts)))
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            self._best = merge(self._best, self._queries, padded, self._seen, len(part), k=self._k)
            self._seen += len(part)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 (n, k) scores, descending, and int32 (n, k) numbers of texts.

        Numbers count the texts in the order in which they were added; -1 where there are fewer.
        """
        scores, numbers = map(np.asarray, self._best)
        return scores, numbers


def nearest(
    queries: np.ndarray, texts: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find for each query the k texts with the largest inner products, by trying them all.

    Args:
      queries: float32 (n, d).
      texts: float32 (m, d).
      k: 1 to m.

    Yields:
      For each query in turn float32 (k,) scores, descending, and int32 (k,) indices of texts.
    """
    for start in range(0, len(queries), BLOCK_QUERIES):
        found = Nearest(queries[start : start + BLOCK_QUERIES], k)
        found.add(texts)
        yield from zip(*found.result(), strict=True)


@functools.cache
def _merge_on(platform: str) -> Callable:
    return jit(_merge, platform, static_argnames="k")


def _merge(
    best: tuple[jax.Array, jax.Array], queries: jax.Array, texts: jax.Array, first, count, *, k: int
) -> tuple[jax.Array, jax.Array]:
    """Merge the k nearest so far with those of a block of texts, ``count`` without its padding.

    Equal scores stay in the order of the texts: ``top_k`` prefers the lower index, and the texts of
    earlier blocks are first.
    """
    scores = einsum("qd,td->qt", queries, texts)
    scores = jnp.where(jnp.arange(texts.shape[0])[None, :] < count, scores, -jnp.inf)
    found, indices = jax.lax.top_k(scores, k)
    scores = jnp.concatenate([best[0], found], axis=1)
    ids = jnp.concatenate([best[1], first + indices], axis=1)
    found, indices = jax.lax.top_k(scores, k)
    return found, jnp.take_along_axis(ids, indices, axis=1)
