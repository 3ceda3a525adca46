"""Bidirectional attention: what the mask means, and which kernel computes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jina_jax.matmul import einsum

# Finite, so that a row with no key at all gives an even average and never NaN.
_MASKED = -1e30


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, attention_mask: jax.Array
) -> jax.Array:
    """Let every token attend to all tokens of its row that the mask keeps.

    Both products accumulate in float32, and the softmax runs in float32.

    Args:
      query, key, value: (B, T, N, H), one dtype.
      attention_mask: bool (B, T), True for tokens that may be attended to (not padding).

    Returns:
      (B, T, N, H) in the dtype of ``value``. Rows of masked queries are finite but meaningless.
    """
    scores = einsum("btnh,bsnh->bnts", query, key)
    scores *= query.shape[-1] ** -0.5
    scores = jnp.where(attention_mask[:, None, None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = einsum("bnts,bsnh->btnh", weights, value)
    return mixed.astype(value.dtype)
