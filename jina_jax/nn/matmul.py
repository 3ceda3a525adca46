"""Matrix products of the network, all through one ``einsum``."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jina_jax.nn.tracing import by_platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(subscripts: str, left: jax.Array, right: jax.Array, rounded: bool = False) -> jax.Array:
    """Contract two arrays of one dtype, accumulating in float32.

    float32 operands are multiplied in full: GPUs and TPUs would otherwise round them first. A
    float32 result also makes bfloat16 fast on CPU, where XLA has no kernel that rounds. Gradients
    are computed the same way: an incoming gradient is rounded to the operands' dtype before it is
    multiplied. JAX's own rule would multiply float32 by bfloat16, at the cost of float32.

    Args:
      subscripts: as for ``jnp.einsum``, of two operands. Every index of an operand occurs in the
        other one or in the result, so that the gradient is an einsum, too.
      rounded: let GPUs and TPUs write the sums in the operands' dtype, half the bytes.

    Returns:
      float32, of the shape that ``subscripts`` names.
    """
    if jnp.float32 in (left.dtype, right.dtype):
        return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST)
    wide = functools.partial(jnp.einsum, subscripts, preferred_element_type=jnp.float32)
    if not rounded:
        return wide(left, right)

    def narrow(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, left, right).astype(jnp.float32)

    return by_platform(left, right, cpu=wide, default=narrow)


def _forward(subscripts: str, left: jax.Array, right: jax.Array, rounded: bool):
    return einsum(subscripts, left, right, rounded), (left, right)


def _backward(
    subscripts: str, _rounded: bool, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
):
    left, right = operands
    indices, result = subscripts.split("->")
    of_left, of_right = indices.split(",")
    gradient = gradient.astype(left.dtype)
    to_left = _einsum_of_gradient(result, of_right, of_left, gradient, right)
    to_right = _einsum_of_gradient(of_left, result, of_right, left, gradient)
    return to_left.astype(left.dtype), to_right.astype(right.dtype)


def _einsum_of_gradient(of_left: str, of_right: str, result: str, left, right) -> jax.Array:
    """Contract as ``einsum``, for a result that is rounded anyway.

    XLA for CPU (jaxlib 0.10.1) folds transposes into batched products, and has no bfloat16 kernel
    for those whose left operand is not contracted over its last axis. A barrier keeps the transpose
    apart.
    """
    subscripts = f"{of_left},{of_right}->{result}"
    is_batched = set(of_left) & set(of_right) & set(result)
    if not is_batched or left.dtype == jnp.float32:
        return einsum(subscripts, left, right, rounded=True)
    contracted = "".join(index for index in of_left if index not in result)
    order = "".join(index for index in of_left if index not in contracted) + contracted

    def contracted_last(left, right):
        left = jax.lax.optimization_barrier(jnp.einsum(f"{of_left}->{order}", left))
        return einsum(f"{order},{of_right}->{result}", left, right)

    return by_platform(
        left,
        right,
        cpu=contracted_last,
        default=functools.partial(einsum, subscripts, rounded=True),
    )


einsum.defvjp(_forward, _backward)
