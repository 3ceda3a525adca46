"""Pooling of token vectors to the vectors of texts, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.nn.matmul import einsum


def pool(hidden_states: jax.Array, spans: jax.Array, kind: str) -> jax.Array:
    """Reduce the token vectors of each span of tokens to one vector.

    The kinds are those of sentence-transformers' module Pooling.

    Args:
      hidden_states: (B, T, D).
      spans: int (B, S, 2), first token of a span and the one after its last.
      kind: "mean" over the span; "cls" for its first token, "lasttoken" for its last; "max" of each
        dimension; "mean_sqrt_len_tokens" for the sum divided by the square root of the number of
        tokens; "weightedmean" with weights 1, 2, 3, … (``Config.emb_pooler``).

    Returns:
      float32 (B, S, D); zeros for an empty span.
    """
    start, stop = spans[..., :1], spans[..., 1:]
    if kind == "cls":
        stop = jnp.minimum(stop, start + 1)
    elif kind == "lasttoken":
        start = jnp.maximum(start, stop - 1)
    position = jnp.arange(hidden_states.shape[1])[None, None, :]
    inside = (start <= position) & (position < stop)
    if kind == "max":
        return _max(hidden_states, inside)
    if kind == "weightedmean":
        return _weighted_mean(hidden_states, jnp.where(inside, position - start + 1, 0))
    return _mean(hidden_states, inside, root=kind == "mean_sqrt_len_tokens")


def pool_masked(hidden_states: jax.Array, mask: jax.Array, kind: str) -> jax.Array:
    """Reduce the token vectors of each row, (B, T, D) under bool (B, T), to float32 (B, D).

    ``kind`` is as for ``pool``; "cls" takes the first token, whatever the mask. A row without
    tokens is zero.
    """
    if kind == "cls":
        return hidden_states[:, 0].astype(jnp.float32)
    inside = mask[:, None]
    if kind == "max":
        return _max(hidden_states, inside)[:, 0]
    number = jnp.cumsum(inside, axis=-1, dtype=jnp.int32)
    if kind == "lasttoken":
        inside &= number == inside.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    if kind == "weightedmean":
        return _weighted_mean(hidden_states, jnp.where(inside, number, 0))[:, 0]
    return _mean(hidden_states, inside, root=kind == "mean_sqrt_len_tokens")[:, 0]


def _mean(hidden_states: jax.Array, inside: jax.Array, *, root: bool = False) -> jax.Array:
    """Average token vectors (B, T, D) over those inside, bool (B, S, T): float32 (B, S, D)."""
    # Ones and zeros are exact in every dtype, so the sums are those of float32.
    sums = einsum("bst,btd->bsd", inside.astype(hidden_states.dtype), hidden_states)
    count = inside.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    divisor = jnp.maximum(count, 1).astype(jnp.float32)
    return sums / (jnp.sqrt(divisor) if root else divisor)


def _weighted_mean(hidden_states: jax.Array, weights: jax.Array) -> jax.Array:
    """Average token vectors (B, T, D) with weights, int32 (B, S, T): float32 (B, S, D)."""
    # Large integers are exact in float32, not in bfloat16.
    weights = weights.astype(jnp.float32)
    sums = einsum("bst,btd->bsd", weights, hidden_states.astype(jnp.float32))
    return sums / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.float32(1))


def _max(hidden_states: jax.Array, inside: jax.Array) -> jax.Array:
    """Return the largest value of each dimension over the tokens inside, float32 (B, S, D)."""
    values = hidden_states.astype(jnp.float32)[:, None]
    largest = jnp.where(inside[..., None], values, -jnp.inf).max(axis=2)
    return jnp.where(inside.any(axis=-1, keepdims=True), largest, jnp.float32(0))


def cut_and_normalize(embeddings: np.ndarray, dim: int, *, normalize: bool) -> np.ndarray:
    """Cut vectors to their first ``dim`` values, then scale them to unit length if asked.

    The order is the published one: cut, then normalise.

    Args:
      embeddings: float32 (..., D).
      dim: number of values to keep.
      normalize: divide by the Euclidean norm (a zero vector stays zero).

    Returns:
      float32 (..., dim).
    """
    embeddings = embeddings[..., :dim]
    return unit(embeddings) if normalize else embeddings


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors (..., d) scaled to unit length; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(1e-12))
