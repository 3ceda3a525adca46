"""From token vectors to a text's vector. Everything here is float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def pool(hidden_states: jax.Array, attention_mask: jax.Array, kind: str) -> jax.Array:
    """Reduce token vectors to one vector a row.

    Args:
      hidden_states: (B, T, D).
      attention_mask: bool (B, T), True for the tokens that count.
      kind: "mean" over the kept tokens, or "cls" for the first token (``Config.emb_pooler``).

    Returns:
      float32 (B, D); zeros for a row without tokens under "mean".
    """
    hidden_states = hidden_states.astype(jnp.float32)
    if kind == "cls":
        return hidden_states[:, 0]
    kept = attention_mask[..., None].astype(jnp.float32)
    return (hidden_states * kept).sum(axis=1) / jnp.maximum(kept.sum(axis=1), 1.0)


def truncate(embeddings: np.ndarray, dim: int, *, normalize: bool) -> np.ndarray:
    """Cut vectors to their first ``dim`` values, then scale them to unit length if asked.

    The order is the published one: cut, then normalise.

    Args:
      embeddings: float32 (..., D).
      dim: values to keep.
      normalize: divide by the Euclidean norm (a zero vector stays zero).

    Returns:
      float32 (..., dim).
    """
    embeddings = embeddings[..., :dim]
    if normalize:
        norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
        embeddings = embeddings / np.maximum(norms, np.float32(1e-12))
    return embeddings
