"""The one way in which the network multiplies."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def einsum(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Contract two arrays of one dtype, accumulating in float32.

    float32 operands are multiplied in full: GPUs and TPUs would otherwise take them in fewer bits.
    A float32 result is also what makes bfloat16 fast on CPU, where XLA has no kernel that rounds.

    Returns:
      float32, of the shape that ``subscripts`` names.
    """
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(
        subscripts, left, right, precision=precision, preferred_element_type=jnp.float32
    )
