"""A sum and its LayerNorm, with what adapters add before and after: the plain form.

A layer's two sums, and that of the embeddings, are one function: residual, what the sub-layer made,
a row that every token gets (a bias), and the update of each token's adapter. The result can have
the first factors' products for the next matmul behind it, so that they are not computed from
memory. ``tpu.norm`` does all of it in one pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jina_jax.nn.lanes import LANES, keep_own
from jina_jax.nn.layers import layer_norm
from jina_jax.nn.matmul import einsum

# An array; within a kernel a reference to it, and beforehand the block that it is read in.
Array = Any


class Update(NamedTuple):
    """The second half of an adapted product: what each token's adapter adds to the sum.

    Attributes:
      low: (B, T, P), products with the first factors of all tasks; None for the last P lanes of
        the addend.
      lora_b: (P, D), the second factors (``lanes.join_second``).
      lane_tasks: int32 (1, P), the task of each lane.
    """

    low: Array
    lora_b: Array
    lane_tasks: Array


class Following(NamedTuple):
    """The first half of the next adapted product.

    Attributes:
      lora_a: (D, P), the first factors (``lanes.join_first``).
      lane_tasks: int32 (1, P), the task of each lane.
    """

    lora_a: Array
    lane_tasks: Array


class Terms(NamedTuple):
    """What is summed and normalised.

    Attributes:
      addend: (B, T, D), what a sub-layer made; (B, T, D + P) with the update's ``low`` behind. None
        only within kernels that make it.
      scale, bias: (D,), of LayerNorm, in the dtype of the result.
      residual: (B, T, D), what the sub-layer got, or None; columns from D on are ignored.
      row: (D,), added to every token, or None.
      task_ids: int32 (B, T), each token's adapter, -1 for none; None without adapters.
      update: added to the sum, or None.
      following: computed from the result, or None.
    """

    addend: Array
    scale: Array
    bias: Array
    residual: Array | None = None
    row: Array | None = None
    task_ids: Array | None = None
    update: Update | None = None
    following: Following | None = None


def sum_norm(terms: Terms, epsilon: float, lora_scale: float = 1.0) -> jax.Array:
    """Normalise the sum of all terms, in float32.

    Args:
      terms: what is summed.
      epsilon: of LayerNorm.
      lora_scale: ``Config.lora_scale``.

    Returns:
      (B, T, D) in the dtype of ``terms.scale``; with ``terms.following`` (B, T, D + P), each
      token's own products, scaled, behind: the operand of a product with [W ; B].
    """
    width = terms.scale.shape[0]
    total = terms.addend[..., :width].astype(jnp.float32)
    if terms.residual is not None:
        total += terms.residual[..., :width].astype(jnp.float32)
    if terms.row is not None:
        total += terms.row.astype(jnp.float32)[None, None]
    if terms.update is not None:
        low = terms.addend[..., width:] if terms.update.low is None else terms.update.low
        kept = _keep(low, terms.update.lane_tasks, terms.task_ids)
        total += lora_scale * einsum("btr,ro->bto", kept, terms.update.lora_b)
    out = layer_norm(total, terms.scale, terms.bias, epsilon)
    if terms.following is None:
        return out
    low = lora_scale * einsum("bti,ir->btr", out, terms.following.lora_a)
    kept = _keep(low, terms.following.lane_tasks, terms.task_ids)
    return jnp.concatenate((out, kept.astype(out.dtype)), axis=-1)


def does_not_suit(width: int, lanes: int) -> str | None:
    """Return why a TPU's kernel does not suit sums of width D with adapters of P lanes, or None."""
    if width % (lanes or LANES):
        return f"takes a width that is a multiple of {lanes or LANES}, this one is {width}"
    return None


def _keep(low: jax.Array, lane_tasks: jax.Array, task_ids: jax.Array | None) -> jax.Array:
    assert task_ids is not None, "adapters without tasks"
    kept = keep_own(low.reshape(-1, low.shape[-1]), lane_tasks, task_ids.reshape(-1, 1))
    return kept.reshape(low.shape)
