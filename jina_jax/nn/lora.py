"""Low-rank adapters (LoRA) of every task at once.

All K adapters of a layer are applied as one product of width K · R, of which each token keeps the
R columns of its own task: mixed tasks need no gather of weights, and a token without a task keeps
none. The formulas, with scale = alpha / R: W' = W + scale · B A for linear layers (arXiv
2106.09685), and W' = W + scale · A B for embedding tables, as in the published model.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jina_jax.nn.matmul import einsum
from jina_jax.nn.tracing import by_platform


class Adapter(nnx.Variable):
    """A variable that belongs to a task adapter; base weights are ``nnx.Param``."""


def task_mask(task_ids: jax.Array, num_tasks: int) -> jax.Array:
    """Mark each token's own adapter.

    Args:
      task_ids: int (B,), one task per row, or (B, T), one per token; -1 for no adapter.
      num_tasks: K.

    Returns:
      bool (B, 1, K) or (B, T, K).
    """
    if task_ids.ndim == 1:
        task_ids = task_ids[:, None]
    return task_ids[..., None] == jnp.arange(num_tasks)[None, None, :]


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply x (B, T, in) by a kernel (in, out) or (in, parts, out), to float32."""
    if kernel.ndim == 3:
        return einsum("bti,ipo->btpo", x, kernel, rounded=True)
    return einsum("bti,io->bto", x, kernel, rounded=True)


def adapted_product(
    x: jax.Array,
    kernel: jax.Array,
    lora_a: jax.Array,
    lora_b: jax.Array,
    task_mask: jax.Array,
    scale: float,
) -> jax.Array:
    """Multiply by a weight with each token's own update, ``x (W + scale · B A)``.

    Args:
      x: (B, T, in).
      kernel: (in, out), or (in, parts, out) as everywhere here.
      lora_a: (K, in, R).
      lora_b: (K, R, out).
      task_mask: bool (B, 1 or T, K), from ``task_mask``.
      scale: ``Config.lora_scale``.

    Returns:
      float32 (B, T, out).
    """
    return by_platform(
        *(x, kernel, lora_a, lora_b, task_mask),
        cuda=functools.partial(_joined_product, scale),
        default=functools.partial(_plain_product, scale),
    )


def with_update(
    y: jax.Array,
    x: jax.Array,
    lora_a: jax.Array,
    lora_b: jax.Array,
    task_mask: jax.Array,
    scale: float,
) -> jax.Array:
    """Add each token's own update to a product with the weight, ``y + scale · x B A``.

    Args:
      y: float32 (B, T, out), or (B, T, parts, out).
      x, lora_a, lora_b, task_mask, scale: as for ``adapted_product``.
    """
    low = einsum("bti,kir->btkr", x, lora_a)
    update = by_platform(
        *(low, task_mask, lora_b),
        cuda=functools.partial(_gathered_update, scale=scale),
        default=functools.partial(low_rank_update, scale=scale),
    )
    return y + update


def _plain_product(scale: float, x, kernel, lora_a, lora_b, task_mask) -> jax.Array:
    low = einsum("bti,kir->btkr", x, lora_a)
    return product(x, kernel) + low_rank_update(low, task_mask, lora_b, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined_product(scale: float, x, kernel, lora_a, lora_b, task_mask) -> jax.Array:
    """Multiply by the weight and the first factors at once; add the update where sums are read.

    x is read once, and nothing of the size of the result is written for the update: the kernel that
    uses a value adds the R products of its token's task.
    """
    tasks, features, rank = lora_a.shape
    factors = jnp.moveaxis(lora_a, 0, 1).reshape(features, tasks * rank)
    padding = jnp.zeros((features, -tasks * rank % 32), kernel.dtype)  # columns in whole tiles
    flat = kernel.reshape(features, -1)
    sums = product(x, jnp.concatenate((flat, factors, padding), axis=1))
    weighted, low = jnp.split(sums, (flat.shape[1], flat.shape[1] + tasks * rank), axis=-1)[:2]
    low = low.reshape(*x.shape[:2], tasks, rank)
    update = _gathered_update(low, task_mask, lora_b, scale)
    return weighted.reshape(*x.shape[:2], *kernel.shape[1:]) + update


def _gathered_update(low, task_mask, lora_b, scale: float) -> jax.Array:
    """Compute ``low_rank_update`` as R products per value, for the kernel that uses the value."""
    own = jnp.where(task_mask[..., None], low, 0).sum(axis=2)  # (B, T, R), zero without a task
    chosen = (scale * lora_b.astype(jnp.float32))[jnp.argmax(task_mask, axis=-1)]
    own = own.reshape(*own.shape, *(1 for _ in lora_b.shape[2:]))
    return (own * chosen).sum(axis=2)


def _forward(scale, *operands):
    return _joined_product(scale, *operands), operands


def _backward(scale, operands, gradient):
    *arrays, task_mask = operands

    def plain(x, kernel, lora_a, lora_b):
        return _plain_product(scale, x, kernel, lora_a, lora_b, task_mask)

    return *jax.vjp(plain, *arrays)[1](gradient), None


_joined_product.defvjp(_forward, _backward)


def low_rank_update(
    low: jax.Array, task_mask: jax.Array, lora_b: jax.Array, scale: float
) -> jax.Array:
    """Map each token's own columns of the first factor's product through the second factor.

    Args:
      low: (B, T, K, R), the product with the first factor, of all tasks.
      task_mask: bool (B, 1 or T, K), from ``task_mask``.
      lora_b: (K, R, out) or (K, R, parts, out).
      scale: ``Config.lora_scale``.

    Returns:
      float32 (B, T, out) or (B, T, parts, out).
    """
    kept = jnp.where(task_mask[..., None], low, 0).astype(lora_b.dtype)
    if lora_b.ndim == 4:
        return scale * einsum("btkr,krpo->btpo", kept, lora_b)
    return scale * einsum("btkr,kro->bto", kept, lora_b)


def merged_weight(weight, lora_a, lora_b, scale: float):
    """Add one task's update to a weight, in float32.

    Args:
      weight: kernel (in, …) or embedding (V, D), NumPy or JAX.
      lora_a: (in, R) or (V, R).
      lora_b: (R, …) or (R, D).
      scale: ``Config.lora_scale``.

    Returns:
      float32 array of the weight's shape.
    """
    rank = lora_a.shape[1]
    update = lora_a.astype(jnp.float32) @ lora_b.astype(jnp.float32).reshape(rank, -1)
    return weight.astype(jnp.float32) + update.reshape(weight.shape) * scale
