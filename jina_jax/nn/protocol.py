"""Kernels of a program: the parts of the network that a platform may compute in its own way.

Each has a plain form, the default, which defines what it computes; every other form is tested
against it. ``jina_jax.nn.kernels`` chooses them for a program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jina_jax.nn.attention import HeadKernel, attention
from jina_jax.nn.rope import apply_rotary
from jina_jax.nn.sum_norm import sum_norm


class Rows(NamedTuple):
    """What attention knows of a batch's rows, the same in every layer.

    Attributes:
      attention_mask: bool (B, T), False for padding.
      segment_ids: int (B, T), the number of each token's text in packed rows, 0 for padding; None
        for rows of one text.
      angles: cosine and sine, float32 (B or 1, T, H / 2); None without rotary positions.
    """

    attention_mask: jax.Array
    segment_ids: jax.Array | None
    angles: tuple[jax.Array, jax.Array] | None


@functools.cache
def by_heads(kernel: HeadKernel) -> Callable[[jax.Array, int, Any, Rows], jax.Array]:
    """Return ``Kernels.attention`` of a kernel that takes heads apart, already rotated.

    One kernel gives one function, so that ``jax.jit`` finds what it compiled for it.
    """
    return functools.partial(_attend_by_heads, kernel)


def _attend_by_heads(
    kernel: HeadKernel, qkv: jax.Array, head_dim: int, dtype: Any, rows: Rows
) -> jax.Array:
    """Split and rotate in the precision of ``qkv``, then attend in ``dtype``."""
    batch, tokens, _, width = qkv.shape
    query, key, value = (qkv[:, :, i].reshape(batch, tokens, -1, head_dim) for i in range(3))
    if rows.angles is not None:
        query, key = (apply_rotary(a, *rows.angles) for a in (query, key))
    query, key, value = (a.astype(dtype) for a in (query, key, value))
    mixed = kernel(query, key, value, rows.attention_mask, rows.segment_ids)
    return mixed.reshape(batch, tokens, width)


def _as_they_are(rows: Rows) -> Rows:
    return rows


class Kernels(NamedTuple):
    """The kernels of a program; static and hashable, for ``jax.jit``.

    Attributes:
      attention: (qkv, head_dim, dtype, prepared rows) → mixed. Queries, keys and values of all
        heads, (B, T, 3, N · H) as the projection returns them, not yet rotated, to (B, T, N · H) in
        ``dtype``, that of the weights: every token attends to the tokens of its text.
      prepare: rows → prepared rows, computed once per batch and passed to every layer's attention.
      sum_norm: (terms, epsilon, lora_scale) → LayerNorm of a sum, as ``sum_norm.sum_norm``.
      layer: (layer, x, context) → its output: a whole ``joined.JoinedLayer``; None to compose it of
        the others.
    """

    attention: Callable[[jax.Array, int, Any, Any], jax.Array] = by_heads(attention)
    prepare: Callable[[Rows], Any] = _as_they_are
    sum_norm: Callable[..., jax.Array] = sum_norm
    layer: Callable[..., jax.Array] | None = None


REFERENCE = Kernels()
