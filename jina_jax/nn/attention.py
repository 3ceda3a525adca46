"""Bidirectional attention: what the mask means, and which kernel computes it.

Every kernel has one signature, ``(query, key, value, mask) -> mixed``; ``choose`` picks one for a
program. ``attention`` is the reference that all others are tested against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jina_jax.nn import cudnn as attention_gpu
from jina_jax.nn import splash as attention_tpu
from jina_jax.nn.matmul import einsum

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
IMPLEMENTATIONS = ("reference", "blocked", "cudnn", "cudnn_packed", "splash")

# Finite, so that a row with no key at all gives an even average and never NaN.
_MASKED = -1e30
# Bytes of float32 scores: up to the first limit one product for all heads is fastest (on 2 cores
# with 32 MiB of L3 cache); beyond it a head at a time, in blocks of queries within the second.
_WHOLE_BYTES = 8 << 20
_BLOCK_BYTES = 4 << 20
_SMALLEST_BLOCK = 64
_LONGEST_WHOLE = 512  # tokens of a row for which the reference may be chosen


class Route(NamedTuple):
    """A kernel and why others were passed over.

    Attributes:
      name: one of ``IMPLEMENTATIONS``.
      kernel: the function.
      refusals: name → reason, for each kernel that was preferred to it.
    """

    name: str
    kernel: Kernel
    refusals: dict[str, str]


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, attention_mask: jax.Array
) -> jax.Array:
    """Let every token attend to the tokens of its row that the mask allows; the reference.

    Both products accumulate in float32, and the softmax runs in float32.

    Args:
      query, key, value: (B, T, N, H), one dtype.
      attention_mask: bool (B, T), True for tokens that may be attended to (not padding); or int
        (B, T), the number of each token's text in a packed row, 0 for padding: a token attends to
        the tokens of the same number.

    Returns:
      (B, T, N, H) in the dtype of ``value``. Rows of masked queries are finite but meaningless.
    """
    scores = einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    weights = _softmax(scores + _bias(attention_mask, attention_mask)[:, None])
    mixed = einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)
    return mixed.astype(value.dtype)


def blocked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, attention_mask: jax.Array
) -> jax.Array:
    """Compute ``attention`` a head and a block of queries at a time.

    Memory grows linearly with T, and a block's scores stay in the processor's cache. Short rows
    take the reference. Arguments and result as for ``attention``.
    """
    rows, tokens, heads, _ = query.shape
    if rows * heads * tokens * tokens * 4 <= _WHOLE_BYTES:
        return attention(query, key, value, attention_mask)
    block = _block_size(rows, tokens)
    blocks = -(-tokens // block)
    padded = ((0, 0), (0, blocks * block - tokens))
    query = jnp.pad(query, (*padded, (0, 0), (0, 0)))
    query_mask = jnp.pad(attention_mask, padded)
    # (blocks, N, B, block, H) and (N, B, T, H): the loops run over leading axes.
    query = query.reshape(rows, blocks, block, heads, -1).transpose(1, 3, 0, 2, 4)
    query_mask = query_mask.reshape(rows, blocks, block).swapaxes(0, 1)
    key, value = (a.transpose(2, 0, 1, 3) for a in (key, value))

    # Checkpointed, so that gradients compute scores again and training's memory is linear, too.
    one_head = jax.checkpoint(_one_head)

    def one_block(operands):
        queries, mask = operands
        bias = _bias(mask, attention_mask)
        return jax.lax.map(lambda head: one_head(head, bias), (queries, key, value))

    mixed = jax.lax.map(one_block, (query, query_mask))
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


def _bias(query_mask: jax.Array, key_mask: jax.Array) -> jax.Array:
    """Return what to add to scores: float32 (B, 1, T) for bool masks, (B, C, T) for numbers."""
    allowed = key_mask[:, None, :]
    if key_mask.dtype != jnp.bool_:
        allowed = query_mask[:, :, None] == allowed
    return jnp.where(allowed, jnp.float32(0.0), jnp.float32(_MASKED))


def _block_size(rows: int, tokens: int) -> int:
    """Return queries of a block: even blocks whose scores, in one head, are small enough."""
    fitting = max(_BLOCK_BYTES // (rows * tokens * 4), _SMALLEST_BLOCK)
    blocks = -(-tokens // fitting)
    return -(-tokens // blocks)


@functools.lru_cache(maxsize=256)
def choose(
    platform: str,
    dtype: str,
    tokens: int,
    segments: int,
    head_dim: int,
    mesh: jax.sharding.Mesh | None = None,
    implementation: str | None = None,
) -> Route:
    """Pick the kernel of a program.

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: of query, key and value.
      tokens: T.
      segments: most texts in a row; 1 for rows of one text, padded on the right.
      head_dim: H.
      mesh: where the program runs, for kernels that XLA does not partition; None for one device.
      implementation: one of ``IMPLEMENTATIONS`` to insist on, wherever it suits the rows; None for
        the platform's first that can run.

    Raises:
      ValueError: for an unknown implementation, or one that cannot run on these devices; the
        message says why.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"attn_implementation={implementation!r}: expected None or one of {IMPLEMENTATIONS}"
        )
    kernels: dict[str, Kernel] = {
        "reference": attention,
        "blocked": blocked_attention,
        "cudnn": attention_gpu.cudnn_attention,
        "cudnn_packed": functools.partial(attention_gpu.cudnn_packed_attention, segments=segments),
        "splash": functools.partial(attention_tpu.splash_attention, mesh=mesh),
    }
    cannot = {name: _cannot_run(name, platform, dtype, head_dim) for name in kernels}
    if implementation is not None and cannot[implementation] is not None:
        raise ValueError(f"attn_implementation={implementation!r}: {cannot[implementation]}")
    preferred = _PREFERRED[platform] if implementation is None else (implementation, "blocked")
    refusals: dict[str, str] = {}
    for name in preferred:
        insisted = name == implementation == "reference"
        reason = cannot[name] or (None if insisted else _does_not_suit(name, tokens, segments))
        if reason is None:
            return Route(name, kernels[name], refusals)
        refusals[name] = reason
    raise AssertionError("the last of the preferred kernels takes every program")


_PREFERRED = {
    "cpu": ("blocked",),
    "gpu": ("cudnn", "cudnn_packed", "blocked"),
    # Blocks are sized for a processor's cache: on short rows of a TPU they are many small steps.
    "tpu": ("splash", "reference", "blocked"),
}


def _cannot_run(name: str, platform: str, dtype: str, head_dim: int) -> str | None:
    """Say why a kernel cannot run on these devices, or None if it can."""
    if name in ("cudnn", "cudnn_packed"):
        if platform != "gpu":
            return f"needs an NVIDIA GPU, the platform is {platform!r}"
        return attention_gpu.cannot_run(name, dtype, head_dim)
    if name == "splash" and platform != "tpu":
        return f"needs a TPU, the platform is {platform!r}"
    return None


def _does_not_suit(name: str, tokens: int, segments: int) -> str | None:
    """Say why a kernel is not for rows of this kind, or None if it is."""
    if name == "cudnn" and segments > 1:
        return f"takes rows of one text, these have up to {segments}"
    if name == "cudnn_packed" and segments == 1:
        return "takes packed rows, these have one text"
    if name == "reference" and tokens > _LONGEST_WHOLE:
        return f"takes memory by the square of the length, these rows have {tokens} tokens"
    return attention_tpu.does_not_suit(tokens) if name == "splash" else None
