"""Attention over whole rows: all scores of a pair of heads are in a TPU's vector memory (VMEM)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jina_jax.nn.tpu import heads
from jina_jax.nn.tpu.heads import LANES

# Tokens of a grid step: several short rows, one after another.
_STEP_TOKENS = 512
# Above this length, or with float32 weights, more vector memory than XLA grants by itself.
DEFAULT_TOKENS = 512
VMEM_BYTES = 56 << 20


def row_attention(
    qkv: jax.Array, table: jax.Array | None, segments: jax.Array, *, interpret: Any = False
) -> jax.Array:
    """Attend within the texts of each row.

    Args:
      qkv: (B, T, 3 · D), queries, keys and values of heads of 64, not rotated; T a multiple of 128,
        at most 1,024.
      table: float32 (B or 1, T, 128), from ``heads.angle_table``; None for no rotation.
      segments: int32 (B, T); a token attends to the tokens of its number.
      interpret: as for ``pallas_call``.

    Returns:
      (B, T, D) in the dtype of ``qkv``.
    """
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    rows = next(r for r in range(max(1, _STEP_TOKENS // tokens), 0, -1) if batch % r == 0)
    operands = [qkv, segments.reshape(batch, 1, tokens)]
    specs = [
        pl.BlockSpec((rows, tokens, 3 * width), lambda step: (step, 0, 0)),
        pl.BlockSpec((rows, 1, tokens), lambda step: (step, 0, 0)),
    ]
    scratch = [pltpu.VMEM((tokens, tokens), jnp.float32)]
    if table is not None:
        shared = table.shape[0] == 1
        height = 1 if shared else rows
        operands.append(table)
        specs.append(
            pl.BlockSpec((height, tokens, LANES), lambda step: (0 if shared else step, 0, 0))
        )
        scratch.append(pltpu.VMEM((2, tokens, LANES), jnp.float32))
    usual = tokens <= DEFAULT_TOKENS and qkv.dtype == jnp.bfloat16
    return pl.pallas_call(
        functools.partial(_step, rotary=table is not None),
        grid=(batch // rows,),
        in_specs=specs,
        out_specs=pl.BlockSpec((rows, tokens, width), lambda step: (step, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=None if usual else VMEM_BYTES
        ),
        cost_estimate=heads.cost(*operands),
        interpret=interpret,
        name="row_attention",
    )(*operands)


def _step(qkv_ref, segments_ref, *refs, rotary: bool) -> None:
    """Compute a few rows."""
    table_ref, out_ref, bias_ref, factors_ref = refs if rotary else (None, *refs, None)
    attend_rows(qkv_ref, segments_ref, table_ref, out_ref, bias_ref, factors_ref)


def attend_rows(qkv_ref, segments_ref, table_ref, out_ref, bias_ref, factors_ref) -> None:
    """Compute a few rows, each with all its heads, within a kernel.

    Args:
      qkv_ref: (rows, T, 3 · D).
      segments_ref: int32 (rows, 1, T).
      table_ref: (rows or 1, T, 128); None for no rotation.
      out_ref: (rows, T, D).
      bias_ref: scratch, float32 (T, T).
      factors_ref: scratch, float32 (2, T, 128).
    """
    rotary = table_ref is not None
    rows, tokens, width = out_ref.shape
    for row in range(rows):
        segments = segments_ref[row]
        bias_ref[...] = heads.masking(heads.column(segments), segments)
        if rotary:
            table = table_ref[row if table_ref.shape[0] > 1 else 0]
            factors_ref[0], factors_ref[1] = heads.spread(table)

        def pair(number, _, row=row):
            def at(part: int) -> Any:
                return pl.ds(pl.multiple_of(part * width + number * LANES, LANES), LANES)

            query, key, value = (qkv_ref[row, :, at(part)] for part in range(3))
            if rotary:
                query, key = (heads.rotate(a, factors_ref[0], factors_ref[1]) for a in (query, key))
            query = (query.astype(jnp.float32) * heads.SCALE).astype(value.dtype)
            mixed = _attend(query, key.astype(value.dtype), value, bias_ref)
            out_ref[row, :, at(0)] = mixed.astype(out_ref.dtype)
            return 0

        # Two pairs at once, as one's vector operations go with the other's products; not for
        # long rows, which have enough of both and take twice as long to compile.
        pairs = width // LANES
        together = 2 if tokens <= DEFAULT_TOKENS and pairs % 2 == 0 else 1
        jax.lax.fori_loop(0, pairs, pair, 0, unroll=together)


def _attend(query, key, value, bias_ref) -> jax.Array:
    """Mix the values of a pair of heads, (T, 128), to float32."""
    mixed = []
    for own_query, own_value in zip(heads.apart(query, 0), heads.apart(value, 1), strict=True):
        scores = heads.scores(own_query, key, bias_ref[...])
        weights = jnp.exp2(scores - scores.max(axis=-1, keepdims=True))
        mixed.append(heads.weighted(weights, own_value))
    return heads.joined(*mixed)
