"""Factors of all adapters side by side, in whole vectors of a TPU.

A TPU's vectors have 128 lanes. A factor (K, in, R) with R = 4 would use 4 of them; here it is (in,
P): the K · R columns of all tasks, then zeros up to P, a multiple of 128. A product with it makes
every task's columns, of which a token keeps those of its own task.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128


def padded(columns: int) -> int:
    """Return the lanes that so many columns take, a multiple of 128."""
    return -(-columns // LANES) * LANES


def lane_tasks(tasks: int, rank: int, repeats: int = 1) -> np.ndarray:
    """Return the task of each lane, int32 (1, P); -2 for lanes that are not used.

    Args:
      tasks: K.
      rank: R.
      repeats: factors side by side, each with the K · R columns of all tasks.
    """
    own = np.tile(np.repeat(np.arange(tasks, dtype=np.int32), rank), repeats)
    return np.pad(own, (0, padded(len(own)) - len(own)), constant_values=-2)[None]


def keep_own(low: jax.Array, lane_tasks: jax.Array, task_ids: jax.Array) -> jax.Array:
    """Keep each token's own lanes and make the others zero.

    Args:
      low: (M, P), products with the first factors of all tasks.
      lane_tasks: int32 (1, P), from ``lane_tasks``.
      task_ids: int32 (M, 1), -1 for no adapter.
    """
    return jnp.where(lane_tasks == task_ids, low, jnp.zeros_like(low))


def join_first(lora_a: jax.Array) -> jax.Array:
    """Put first factors (…, K, in, R) side by side: (…, in, P)."""
    *stacked, tasks, features, rank = lora_a.shape
    columns = jnp.moveaxis(lora_a, -3, -2).reshape(*stacked, features, tasks * rank)
    return _pad(columns, -1)


def split_first(columns: jax.Array, tasks: int, rank: int) -> jax.Array:
    """Undo ``join_first``."""
    own = columns[..., : tasks * rank]
    return jnp.moveaxis(own.reshape(*own.shape[:-1], tasks, rank), -2, -3)


def join_second(lora_b: jax.Array, axis: int = 0) -> jax.Array:
    """Put second factors (K, R, …), with K on ``axis``, below each other: (P, …)."""
    shape = lora_b.shape
    rows = lora_b.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    return _pad(rows, axis)


def split_second(rows: jax.Array, tasks: int, rank: int, axis: int = 0) -> jax.Array:
    """Undo ``join_second``."""
    own = jax.lax.slice_in_dim(rows, 0, tasks * rank, axis=axis)
    return own.reshape(*rows.shape[:axis], tasks, rank, *rows.shape[axis + 1 :])


def _pad(array: jax.Array, axis: int) -> jax.Array:
    """Fill an axis with zeros to whole vectors."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, padded(array.shape[axis]) - array.shape[axis])
    return jnp.pad(array, widths)
