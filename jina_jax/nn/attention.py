"""Bidirectional attention in plain XLA: the reference, and the same in blocks.

``attention`` defines what a kernel computes; every other kernel is tested against it.
``jina_jax.nn.kernels`` chooses one for a program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jina_jax.nn.matmul import einsum

# (query, key, value, attention_mask, segment_ids) → mixed, as for ``attention``.
HeadKernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]

# Finite, so that a row with no key at all gives an even average and never NaN.
_MASKED = -1e30
# Bytes of float32 scores: up to the first limit one product for all heads is fastest (on 2 cores
# with 32 MiB of L3 cache); beyond it one head at a time, in blocks of queries within the second.
_WHOLE_BYTES = 8 << 20
_BLOCK_BYTES = 4 << 20
_SMALLEST_BLOCK = 64


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attention_mask: jax.Array,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Let every token attend to the tokens of its text; the reference.

    Both products accumulate in float32, and the softmax runs in float32.

    Args:
      query, key, value: (B, T, N, H), one dtype.
      attention_mask: bool (B, T), False for padding, which no token of a text attends to.
      segment_ids: int (B, T) for packed rows, the number of each token's text, 0 where the mask is
        False: a token attends to the tokens of the same number. None for rows of one text.

    Returns:
      (B, T, N, H) in the dtype of ``value``. Rows of masked queries are finite but meaningless.
    """
    scores = einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    weights = _softmax(scores + _bias(attention_mask, segment_ids, segment_ids)[:, None])
    mixed = einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)
    return mixed.astype(value.dtype)


def blocked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attention_mask: jax.Array,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Compute ``attention`` for one head and one block of queries at a time.

    Memory grows linearly with T, and a block's scores stay in the processor's cache. Short rows
    use the reference. Arguments and result as for ``attention``.
    """
    rows, tokens, heads, _ = query.shape
    if rows * heads * tokens * tokens * 4 <= _WHOLE_BYTES:
        return attention(query, key, value, attention_mask, segment_ids)
    block = _block_size(rows, tokens)
    blocks = -(-tokens // block)
    padded = ((0, 0), (0, blocks * block - tokens))
    query = jnp.pad(query, (*padded, (0, 0), (0, 0)))
    # (blocks, N, B, block, H) and (N, B, T, H): the loops run over leading axes.
    query = query.reshape(rows, blocks, block, heads, -1).transpose(1, 3, 0, 2, 4)
    query_ids = segment_ids
    if query_ids is not None:
        query_ids = jnp.pad(query_ids, padded).reshape(rows, blocks, block).swapaxes(0, 1)
    key, value = (a.transpose(2, 0, 1, 3) for a in (key, value))

    # Checkpointed, so that gradients compute scores again and training's memory is linear, too.
    one_head = jax.checkpoint(_one_head)

    def one_block(operands):
        queries, ids = operands
        bias = _bias(attention_mask, segment_ids, ids)
        return jax.lax.map(lambda head: one_head(head, bias), (queries, key, value))

    mixed = jax.lax.map(one_block, (query, query_ids))
    mixed = mixed.transpose(2, 0, 3, 1, 4).reshape(rows, blocks * block, heads, -1)
    return mixed[:, :tokens]


def _one_head(head: tuple[jax.Array, jax.Array, jax.Array], bias: jax.Array) -> jax.Array:
    """Attend in one head: query (B, C, H), key and value (B, T, H), bias (B, C or 1, T)."""
    query, key, value = head
    scores = einsum("bth,bsh->bts", query, key) * query.shape[-1] ** -0.5
    weights = _softmax(scores + bias).astype(value.dtype)
    return einsum("bts,bsh->bth", weights, value).astype(value.dtype)


def _softmax(scores: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1)


def _bias(key_mask: jax.Array, key_ids: jax.Array | None, query_ids: jax.Array | None) -> jax.Array:
    """Return what to add to scores: float32 (B, 1, T), or for packed rows (B, C, T)."""
    if key_ids is None or query_ids is None:
        allowed = key_mask[:, None, :]
    else:
        allowed = query_ids[:, :, None] == key_ids[:, None, :]
    return jnp.where(allowed, jnp.float32(0.0), jnp.float32(_MASKED))


def _block_size(rows: int, tokens: int) -> int:
    """Return the queries per block: even blocks whose scores, in one head, are small enough."""
    fitting = max(_BLOCK_BYTES // (rows * tokens * 4), _SMALLEST_BLOCK)
    blocks = -(-tokens // fitting)
    return -(-tokens // blocks)
