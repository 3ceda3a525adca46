"""Rotary position embedding (RoPE, arXiv 2104.09864), half-rotation form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.nn.tracing import by_platform


def rotary_angles(
    position_ids: jax.Array, head_dim: int, base: float
) -> tuple[jax.Array, jax.Array]:
    """Compute cosine and sine of the rotary angles ``position · base^(-2j / H)``.

    Args:
      position_ids: int (B, T) or (T,), counted from 0.
      head_dim: H, even.
      base: ``rotary_emb_base`` of the config.

    Returns:
      cos, sin: float32 (B, T, H / 2) or (T, H / 2).
    """
    # A constant of the program: computed by NumPy, so that every backend has the same frequencies,
    # and rounded from float64, as NumPy's float32 power differs between processors.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.power(base, exponents.astype(np.float64)).astype(np.float32)
    positions = position_ids[..., None].astype(jnp.float32)
    angles = positions * np.expand_dims(frequencies, tuple(range(position_ids.ndim)))
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate pairs (x[j], x[j + H/2]) of every head by the angle of their position.

    Args:
      x: float (B, T, N, H).
      cos, sin: float32 (B, T, H / 2) or (T, H / 2), from ``rotary_angles``.

    Returns:
      float32 (B, T, N, H).
    """
    cos, sin = (values.reshape(-1, x.shape[1], 1, x.shape[3] // 2) for values in (cos, sin))
    return by_platform(x, cos, sin, cuda=_rotate_elementwise, default=_rotate)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _rotate_elementwise(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate without joining halves: XLA for GPU then makes one kernel of q, k, v and biases."""
    halves = x.astype(jnp.float32).reshape(*x.shape[:3], 2, x.shape[3] // 2)
    signed = jnp.stack((-sin, sin), axis=3)
    return (halves * cos[..., None, :] + jnp.flip(halves, axis=3) * signed).reshape(x.shape)
