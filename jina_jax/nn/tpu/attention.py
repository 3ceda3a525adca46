"""Attention of TPUs: kernels that read what the projection wrote, and rotate it on the chip.

Nothing but the projection's output and the result is in memory: no queries, keys or values apart,
no scores. Up to 1,024 tokens a row's scores fit on the chip; longer rows are done in blocks, and
blocks of keys without a text of the queries' are skipped.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jina_jax.nn.attention import attention as plain_attention
from jina_jax.nn.attention import blocked_attention
from jina_jax.nn.protocol import Rows, by_heads

# Also of ``jina_jax.nn.tpu.heads``, which imports Pallas: on other platforms that takes time.
_LANES, _HEAD_DIM = 128, 64
# Rows up to this length are done whole; longer ones are padded to whole blocks of keys.
LONGEST_WHOLE = 1024
_KEYS = 512
_SHORTEST = 16  # of rows that are joined
_LONGEST_REFERENCE = 512  # tokens of a row whose gradients take all scores at once
# Generations with 16 MiB of vector memory: enough for rows of 512 tokens in bfloat16.
_SMALL = ("TPU v2", "TPU v3", "TPU v4")
_LONGEST_ON_SMALL = 512


class PreparedRows(NamedTuple):
    """The rows of a batch as the kernels take them, padded to a length T that they take.

    Attributes:
      segments: int32 (B, T), the number of each token's text, 0 for padding.
      table: float32 (B or 1, T, 128), see ``heads.angle_table``; None without rotary positions.
      ranges: int32 (B, T / Q, 2), see ``blocks.block_ranges``; None where rows are done whole.
    """

    segments: jax.Array
    table: jax.Array | None
    ranges: jax.Array | None


def prepare(rows: Rows) -> PreparedRows:
    """Prepare the rows of a batch, once for all layers."""
    from jina_jax.nn.tpu import blocks, heads

    ids = rows.attention_mask if rows.segment_ids is None else rows.segment_ids
    padding = (0, padded_length(ids.shape[1]) - ids.shape[1])
    segments = jnp.pad(ids.astype(jnp.int32), ((0, 0), padding))
    table = None
    if rows.angles is not None:
        table = jnp.pad(heads.angle_table(*rows.angles), ((0, 0), padding, (0, 0)))
    whole = segments.shape[1] <= LONGEST_WHOLE
    return PreparedRows(segments, table, None if whole else blocks.block_ranges(segments))


def padded_length(tokens: int) -> int:
    """Return the length to which rows of T tokens are padded: their own, for the usual ones."""
    if tokens <= _LANES:  # joined: a divisor of 128
        return max(_SHORTEST, 1 << (tokens - 1).bit_length())
    multiple = _LANES if tokens <= LONGEST_WHOLE else _KEYS
    return -(-tokens // multiple) * multiple


def attention(
    qkv: jax.Array,
    head_dim: int,
    dtype: Any,
    rows: PreparedRows,
    *,
    mesh: Mesh | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Let every token attend to the tokens of its text, and padding to padding.

    Gradients are those of the reference, in blocks where rows are long.

    Args:
      qkv, head_dim, dtype: as for ``Kernels.attention``; ``cannot_run`` is None for them.
      rows: from ``prepare``.
      mesh: with axes "data" (divides B) and "model" (divides N / 2), if the program runs on several
        devices: XLA cannot partition a kernel by itself. None for one device.
      interpret: run the kernels on any platform, as for ``pallas_call``, for tests.

    Returns:
      (B, T, N · H) in ``dtype``.
    """
    tokens = qkv.shape[1]
    padding = (0, rows.segments.shape[1] - tokens)
    qkv = jnp.pad(qkv.astype(dtype), ((0, 0), padding, (0, 0), (0, 0)))
    run = functools.partial(_attend, interpret)
    if mesh is not None:
        present = jax.tree.map(lambda array: P("data") if array.shape[0] > 1 else P(), rows)
        # Kernels do not declare how their results vary over a mesh, so disable that check.
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P("data", None, None, "model"), present),
            out_specs=P("data", None, "model"),
            check_vma=False,
        )
    return run(qkv, rows)[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret: Any, qkv: jax.Array, rows: PreparedRows) -> jax.Array:
    """Compute attention on one device: (B, T, 3, D) to (B, T, D)."""
    from jina_jax.nn.tpu.blocks import block_attention
    from jina_jax.nn.tpu.rows import row_attention

    batch, tokens, _, width = qkv.shape
    joined, segments, table = qkv.reshape(batch, tokens, 3 * width), rows.segments, rows.table
    if rows.ranges is not None:
        return block_attention(joined, table, segments, rows.ranges, interpret=interpret)
    if tokens < _LANES:
        joined, segments, table = _join(joined, segments, table)
    mixed = row_attention(joined, table, segments, interpret=interpret)
    return mixed.reshape(-1, tokens, width)[:batch]


def _join(qkv: jax.Array, segments: jax.Array, table: jax.Array | None) -> tuple:
    """Make rows of 128 tokens from several short ones, whose texts get numbers of their own."""
    batch, tokens = segments.shape
    count = _LANES // tokens
    missing = (0, -batch % count)
    number = jnp.arange(batch + missing[1], dtype=jnp.int32)[:, None] % count
    segments = jnp.pad(segments, (missing, (0, 0))) + number * (tokens + 1)
    qkv = jnp.pad(qkv, (missing, (0, 0), (0, 0)))
    if table is not None and table.shape[0] == 1:
        table = jnp.tile(table, (1, count, 1))
    elif table is not None:
        table = jnp.pad(table, (missing, (0, 0), (0, 0))).reshape(-1, _LANES, _LANES)
    return qkv.reshape(-1, _LANES, qkv.shape[2]), segments.reshape(-1, _LANES), table


def _forward(interpret: Any, qkv: jax.Array, rows: PreparedRows):
    return _attend(interpret, qkv, rows), (qkv, rows)


def _backward(_: Any, operands: tuple[jax.Array, PreparedRows], gradient: jax.Array):
    from jina_jax.nn.tpu import heads

    qkv, rows = operands
    angles = None if rows.table is None else heads.angles_of(rows.table)
    plain = Rows(rows.segments > 0, rows.segments, angles)
    kernel = plain_attention if qkv.shape[1] <= _LONGEST_REFERENCE else blocked_attention

    def reference(qkv: jax.Array) -> jax.Array:
        return by_heads(kernel)(qkv, _HEAD_DIM, qkv.dtype, plain)

    return *jax.vjp(reference, qkv)[1](gradient), None


_attend.defvjp(_forward, _backward)


def cannot_run(dtype: str, head_dim: int, heads: int | None, mesh: Mesh | None) -> str | None:
    """Return why the kernels cannot run with these weights, or None if they can."""
    if dtype not in ("bfloat16", "float32"):
        return f"takes bfloat16 and float32, the weights are {dtype}"
    if head_dim != _HEAD_DIM:
        return f"takes heads of {_HEAD_DIM}, these have {head_dim}"
    parts = 1 if mesh is None else mesh.shape["model"]
    if heads is not None and heads % (2 * parts):
        return f"takes pairs of heads, these are {heads} on {parts} device(s)"
    return None


def does_not_fuse(tokens: int, device_kind: str) -> str | None:
    """Return why ``fused`` does not suit rows that attention's kernel takes, or None if it does."""
    if device_kind.startswith(_SMALL):
        return f"needs the vector memory of newer devices, this is a {device_kind}"
    if tokens % _LANES or tokens > LONGEST_WHOLE:
        return (
            f"takes rows of a multiple of {_LANES} up to {LONGEST_WHOLE} tokens, "
            f"these have {tokens}"
        )
    return None


def does_not_suit(tokens: int, dtype: str, device_kind: str) -> str | None:
    """Return why the kernels do not suit rows of T tokens on a device, or None if they do."""
    small = device_kind.startswith(_SMALL)
    if small and (dtype != "bfloat16" or tokens > _LONGEST_ON_SMALL):
        return (
            f"takes bfloat16 and rows of {_LONGEST_ON_SMALL} tokens at most in the memory of "
            f"{device_kind}, these are {dtype} and have {tokens}"
        )
    return None
