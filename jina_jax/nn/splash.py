"""Attention kernel of TPUs: Splash, the flash attention shipped with jax.

Scores stay on the chip, so memory and traffic do not grow with T². The kernel skips no blocks
between the texts of a packed row: a row costs T², whatever is in it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Rows from which the kernel pays. Compiled for v5e, the attention sub-layer of 8,192 tokens moves
# 1161 to 1174 MB with the kernel, whatever T; with XLA's fused softmax 941, 1081 and 1354 MB at
# T = 128, 256 and 512. Short rows are also many steps of little work: one step per head and row.
MIN_TOKENS = 512

# TPU vectors have 128 lanes, and blocks of tokens fill them.
_LANES = 128
# Large blocks make few steps and read keys seldom. Twice as many queries and keys exceed the
# scratch memory of v5e; scores are made of half a block of keys at a time.
_BLOCK = 1024
_COMPUTE_BLOCK = 512
# For gradients a step keeps more arrays; larger blocks were not tried.
_BACKWARD_BLOCK = 512


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attention_mask: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Let every token attend to the tokens of its text, and padding to padding.

    Args:
      query, key, value: (B, T, N, H), one dtype; T a multiple of 128.
      attention_mask: bool (B, T), False for padding.
      segment_ids: int (B, T) for packed rows, the number of each token's text, 0 for padding; None
        for rows of one text.
      mesh: with axes "data" (divides B) and "model" (divides N), if the program runs on several
        devices: XLA cannot partition the kernel by itself. None for one device.
      interpret: run the kernel step by step in plain XLA, on any platform, for tests.

    Returns:
      (B, T, N, H) in the dtype of ``value``.

    Raises:
      ValueError: if T is not a multiple of 128.
    """
    tokens = query.shape[1]
    if tokens % _LANES:
        raise ValueError(f"query: T must be a multiple of {_LANES} (TPU lanes), got T = {tokens}")
    run = functools.partial(_splash, interpret=interpret)
    if mesh is not None:
        heads = PartitionSpec("data", None, "model", None)
        specs = (heads, heads, heads, PartitionSpec("data", None))
        # The kernel does not declare how its result varies over the mesh, so disable that check.
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    ids = attention_mask if segment_ids is None else segment_ids
    return run(query, key, value, ids.astype(jnp.int32))


def does_not_suit(tokens: int) -> str | None:
    """Return why the kernel does not suit rows of T tokens, or None if it does."""
    if tokens % _LANES:
        return f"takes rows of a multiple of {_LANES} tokens, these have {tokens}"
    if tokens < MIN_TOKENS:
        return f"is for rows of {MIN_TOKENS} tokens and more, these have {tokens}"
    return None


def _splash(query, key, value, segment_ids, *, interpret):
    """Run the kernel on one device, one row at a time."""
    # Imported on first use: on other platforms Pallas is slow to import and not needed.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, tokens, heads, head_dim = query.shape
    mask = splash.MultiHeadMask([splash.FullMask((tokens, tokens))] * heads)
    kernel = splash.make_splash_mha_single_device(
        mask, block_sizes=_block_sizes(tokens), interpret=interpret
    )
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    query, key, value = (a.swapaxes(1, 2) for a in (query, key, value))
    mixed = jax.vmap(kernel)(query, key, value, splash.SegmentIds(segment_ids, segment_ids))
    return mixed.swapaxes(1, 2).astype(value.dtype)


def _block_sizes(tokens: int):
    """Describe the kernel's tiles."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    # Tokens in the lanes: heads of 64 would leave half of them empty, and XLA would copy queries,
    # keys and values into that padded layout first (1912 MB instead of 1161, as above).
    layout = splash.QKVLayout.SEQ_MINOR
    block = _largest_divisor(tokens, _BLOCK)
    backward = _largest_divisor(tokens, _BACKWARD_BLOCK)
    return splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=_largest_divisor(block, _COMPUTE_BLOCK),
        block_q_dkv=backward,
        block_kv_dkv=backward,
        block_q_dq=backward,
        block_kv_dq=backward,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )


def _largest_divisor(tokens: int, limit: int) -> int:
    """Return the largest multiple of 128 that divides ``tokens`` and is at most ``limit``."""
    return next(size for size in range(limit, 0, -_LANES) if tokens % size == 0)
