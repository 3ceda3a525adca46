"""Attention kernels of NVIDIA GPUs: cuDNN's flash attention, padded and packed.

Both take sequence lengths. ``jax.nn.dot_product_attention`` would turn a mask into a bias of T × T
values, which is never wanted here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# The compute capability that jax requires of a GPU for each kernel.
_CAPABILITIES = {"cudnn": "8.0", "cudnn_packed": "9.0"}


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attention_mask: jax.Array,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Compute attention over rows of one text each; blocks of padding are skipped.

    Args:
      query, key, value: bfloat16 or float16 (B, T, N, H).
      attention_mask: bool (B, T), False for padding, which must be on the right.
      segment_ids: None; packed rows are for ``cudnn_packed_attention``.

    Returns:
      (B, T, N, H) in the dtype of ``value``, zero at padding.

    Raises:
      ValueError: for packed rows.
    """
    if segment_ids is not None:
        raise ValueError("segment_ids: expected None, rows of one text each; got packed rows")
    lengths = attention_mask.sum(axis=1, dtype=jnp.int32)
    # cuDNN leaves rows past a length undefined, in outputs and in gradients, and NaN there would
    # spread: through means over tokens, and through products with the weights' gradients.
    inside = attention_mask[..., None, None]
    mixed = jax.nn.dot_product_attention(
        *(_with_masked_gradient(array, inside) for array in (query, key, value)),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return jnp.where(inside, mixed, jnp.zeros((), mixed.dtype))


@jax.custom_vjp
def _with_masked_gradient(array: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the array unchanged; its gradient is zero where the mask is False."""
    return array


_with_masked_gradient.defvjp(
    lambda array, mask: (array, mask),
    lambda mask, gradient: (jnp.where(mask, gradient, jnp.zeros((), gradient.dtype)), None),
)


def cudnn_packed_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attention_mask: jax.Array,
    segment_ids: jax.Array,
    *,
    segments: int,
) -> jax.Array:
    """Compute attention over packed rows; what lies outside a text's own square is skipped.

    The padding at the end of a row is one more text: cuDNN leaves positions outside every text
    unwritten, in outputs and in gradients.

    Args:
      query, key, value: bfloat16 or float16 (B, T, N, H).
      attention_mask: bool (B, T), False for padding.
      segment_ids: int (B, T), texts numbered 1, 2, … without gaps, then 0 for padding.
      segments: S, most texts per row.

    Returns:
      (B, T, N, H) in the dtype of ``value``; finite but meaningless at padding.
    """
    # The packed layout has no public entry (jax-ml/jax pull request 29731).
    from jax._src.cudnn import fused_attention_stablehlo as fused

    segment_ids = jnp.where(attention_mask, segment_ids, segments + 1)
    lengths, offsets = packed_layout(segment_ids, segments + 1)
    return fused.dot_product_attention(
        query,
        key,
        value,
        None,
        None,
        lengths,
        lengths,
        offsets,
        offsets,
        scale=query.shape[-1] ** -0.5,
        mask_type=fused.MaskType.NO_MASK,  # lengths and offsets are enough
    )


def packed_layout(segment_ids: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
    """Describe packed rows by lengths and offsets, as cuDNN requires.

    Args:
      segment_ids: int (B, T), texts in ascending order of numbers from 1 to S.
      segments: S.

    Returns:
      lengths int32 (B, S) and offsets int32 (B, S + 1), relative to the row; -1 where there is no
      text.
    """
    numbers = jnp.arange(1, segments + 1)
    lengths = (segment_ids[:, None, :] == numbers[None, :, None]).sum(-1, dtype=jnp.int32)
    starts = jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - lengths
    offsets = jnp.where(lengths > 0, starts, -1)
    offsets = jnp.pad(offsets, ((0, 0), (0, 1)), constant_values=-1)
    return jnp.where(lengths > 0, lengths, -1), offsets


def cannot_run(name: str, dtype: str, head_dim: int) -> str | None:
    """Return why a cuDNN kernel cannot run here, or None if it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"takes bfloat16 and float16, the weights are {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"takes head sizes that are multiples of 8 up to 128, this one is {head_dim}"
    return _device_refusal(name)


@functools.cache
def _device_refusal(name: str) -> str | None:
    """Ask jax for the GPU's generation and for cuDNN."""
    needed = _CAPABILITIES[name]
    try:
        from jax._src.cudnn import fused_attention_stablehlo as fused

        fused.check_cudnn_version()
        if not fused.check_compute_capability(needed):
            return f"needs an NVIDIA GPU of compute capability {needed}"
    except Exception as error:  # whatever an internal interface does, its reason is shown
        return f"jax finds no usable cuDNN ({type(error).__name__}: {error})"
    return None
