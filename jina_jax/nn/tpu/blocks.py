"""Attention over long rows: a block of queries meets the blocks of keys that its texts are in.

The softmax is computed as keys are met (online), as in FlashAttention (arXiv 2205.14135): sums so
far are scaled down where a larger score is found.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jina_jax.nn.tpu import heads
from jina_jax.nn.tpu.heads import LANES
from jina_jax.nn.tpu.rows import VMEM_BYTES

# By static schedules of v5e and v6e the fastest of 256 to 1,024 queries and 512 or 1,024 keys, but
# for 1,024 keys, which skip fewer texts.
QUERIES, KEYS = 1024, 512
_LOWEST = 2 * heads.MASKED


def block_attention(
    qkv: jax.Array,
    table: jax.Array | None,
    segments: jax.Array,
    ranges: jax.Array,
    *,
    keys: int = KEYS,
    interpret: Any = False,
) -> jax.Array:
    """Attend within the texts of each row.

    Args:
      qkv: (B, T, 3 · D), queries, keys and values of heads of 64, not rotated; T a multiple of
        ``keys``.
      table: float32 (B or 1, T, 128), from ``heads.angle_table``; None for no rotation.
      segments: int32 (B, T); a token attends to the tokens of its number, which are contiguous.
      ranges: int32 (B, T / Q, 2), of ``block_ranges``, with the same ``keys``.
      keys: per block, a multiple of 128.
      interpret: as for ``pallas_call``.

    Returns:
      (B, T, D) in the dtype of ``qkv``.
    """
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    pairs, blocks = width // LANES, ranges.shape[1]
    queries = tokens // blocks
    operands = [segments.reshape(batch, 1, tokens)]
    statistics = pltpu.VMEM((2, queries, LANES), jnp.float32)
    scratch = [statistics, statistics]
    if table is not None:
        operands.append(table)
        scratch.append(pltpu.VMEM((tokens, LANES), qkv.dtype))
    specs = _specs(tokens, queries, pairs, table)
    ranges = ranges.reshape(-1)
    return pl.pallas_call(
        functools.partial(_step, keys=keys, rotary=table is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, pairs, blocks),
            in_specs=specs,
            out_specs=specs[0],
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",) * 3, vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=heads.cost(qkv, ranges, *operands),  # qkv once: blocks of it are read
        interpret=interpret,
        name="block_attention",
    )(ranges, qkv, qkv, qkv, *operands)


def _specs(tokens: int, queries: int, pairs: int, table: jax.Array | None) -> list[pl.BlockSpec]:
    """Describe what a grid step reads: its queries, and keys, values and angles of the row."""
    specs = [
        pl.BlockSpec((1, queries, LANES), lambda row, pair, block, _: (row, block, pair)),
        pl.BlockSpec((1, tokens, LANES), lambda row, pair, block, _: (row, 0, pairs + pair)),
        pl.BlockSpec((1, tokens, LANES), lambda row, pair, block, _: (row, 0, 2 * pairs + pair)),
        pl.BlockSpec((1, 1, tokens), lambda row, pair, block, _: (row, 0, 0)),
    ]
    if table is None:
        return specs
    own = int(table.shape[0] > 1)  # or one table for all rows
    angles = pl.BlockSpec((1, tokens, LANES), lambda row, pair, block, _: (own * row, 0, 0))
    return [*specs, angles]


def block_ranges(segments: jax.Array, *, queries: int = QUERIES, keys: int = KEYS) -> jax.Array:
    """Find the blocks of keys that each block of queries meets.

    Args:
      segments: int32 (B, T), numbers of texts, each text contiguous in its row.
      queries, keys: tokens of a block, at most; T is a multiple of ``keys``.

    Returns:
      int32 (B, T / Q, 2): the first block, and the one after the last.
    """
    batch, tokens = segments.shape
    queries = next(q for q in range(queries, 0, -LANES) if tokens % q == 0)
    changes = segments[:, 1:] != segments[:, :-1]
    edge, position = jnp.ones((batch, 1), bool), jnp.arange(tokens, dtype=jnp.int32)[None]
    starts = jnp.where(jnp.concatenate((edge, changes), axis=1), position, 0)
    stops = jnp.where(jnp.concatenate((changes, edge), axis=1), position, tokens)
    first = jax.lax.cummax(starts, axis=1)[:, ::queries]
    last = jax.lax.cummin(stops, axis=1, reverse=True)[:, queries - 1 :: queries]
    return jnp.stack((first // keys, last // keys + 1), axis=-1)


def _step(ranges_ref, query_ref, key_ref, value_ref, segments_ref, *refs, keys, rotary) -> None:
    """Compute one block of queries of a pair of heads."""
    table_ref, out_ref, sums_ref, highest_ref, *turned = refs if rotary else (None, *refs)
    queries, block = query_ref.shape[1], pl.program_id(2)
    here = _block(block, queries)
    query = query_ref[0]
    if rotary:
        query = heads.rotate(query, *heads.spread(table_ref[0, here, :]))
        pl.when(block == 0)(lambda: _rotate_keys(key_ref, table_ref, turned[0], keys))
    query = (query.astype(jnp.float32) * heads.SCALE).astype(value_ref.dtype)
    own_queries = heads.apart(query, 0)
    query_segments = heads.column(segments_ref[0, :, here])
    sums_ref[...] = jnp.zeros_like(sums_ref)
    highest_ref[...] = jnp.full_like(highest_ref, _LOWEST)

    def meet(number, _):
        there = _block(number, keys)
        key = turned[0][there, :] if rotary else key_ref[0, there, :]
        bias = heads.masking(query_segments, segments_ref[0, :, there])
        own_values = heads.apart(value_ref[0, there, :], 1)
        for head in range(2):
            scores = heads.scores(own_queries[head], key, bias)
            before = highest_ref[head]  # one number per query, in every lane
            highest = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
            weights = jnp.exp2(scores - jnp.concatenate([highest] * (keys // LANES), axis=1))
            met = heads.weighted(weights, own_values[head])
            sums_ref[head] = sums_ref[head] * jnp.exp2(before - highest) + met
            highest_ref[head] = highest
        return 0

    at = 2 * (pl.program_id(0) * pl.num_programs(2) + block)
    jax.lax.fori_loop(ranges_ref[at], ranges_ref[at + 1], meet, 0)
    out_ref[0] = heads.joined(sums_ref[0], sums_ref[1]).astype(out_ref.dtype)


def _rotate_keys(key_ref, table_ref, turned_ref, keys: int) -> None:
    """Rotate a row's keys, once for all blocks of queries."""

    def turn(number, _):
        at = _block(number, keys)
        factors = heads.spread(table_ref[0, at, :])
        turned_ref[at, :] = heads.rotate(key_ref[0, at, :], *factors).astype(turned_ref.dtype)
        return 0

    # Shapes are static; the division is of Python's integers.
    jax.lax.fori_loop(0, key_ref.shape[1] // keys, turn, 0)


def _block(number, size: int) -> Any:
    """Return the slice of a numbered block."""
    return pl.ds(pl.multiple_of(number * size, size), size)
