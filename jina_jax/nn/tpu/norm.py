"""Kernel of TPUs for ``sum_norm``: one pass over memory.

What is in memory is bfloat16, and all sums are float32 on the chip. XLA by itself would write the
sum, read it for the mean and again for the variance.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from jina_jax.nn.lanes import LANES, keep_own
from jina_jax.nn.sum_norm import Terms, sum_norm

_TILE = 512  # tokens per step


class Settings(NamedTuple):
    """The numbers of a kernel, and whether it is interpreted."""

    epsilon: float
    lora_scale: float
    interpret: bool


def pallas_sum_norm(
    terms: Terms,
    epsilon: float,
    lora_scale: float = 1.0,
    *,
    mesh: jax.sharding.Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Compute ``sum_norm`` in one pass.

    Args:
      terms, epsilon, lora_scale: as for ``sum_norm``; D is a multiple of the lanes P that
        adapters take, or of 128.
      mesh: with an axis "data" that divides B, if the program runs on several devices; None for
        one.
      interpret: run the kernel step by step in plain XLA, on any platform, for tests.

    Returns:
      As ``sum_norm``.
    """
    terms = _as_stored(terms)
    run = functools.partial(_sum_norm, Settings(epsilon, lora_scale, interpret))
    if mesh is not None:
        rows = P("data")
        specs = jax.tree.map(lambda term: rows if term.ndim == 3 else P(), terms)
        if terms.task_ids is not None:
            specs = specs._replace(task_ids=rows)
        # The kernel does not declare how its result varies over the mesh, so disable that check.
        run = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=rows, check_vma=False)
    return run(terms)


def _as_stored(terms: Terms) -> Terms:
    """Round what comes in float32 to the dtype of the result, as it is to be in memory."""
    dtype = terms.scale.dtype
    addend, residual = terms.addend.astype(dtype), terms.residual
    return terms._replace(
        addend=addend, residual=None if residual is None else residual.astype(dtype)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_norm(settings: Settings, terms: Terms) -> jax.Array:
    """Run the kernel on one device."""
    rows, tokens, _ = terms.addend.shape
    width = terms.scale.shape[0]
    count = rows * tokens
    tile = min(_TILE, count)
    lanes = 0 if terms.following is None else terms.following.lora_a.shape[1]
    flat = _flatten(terms, tile)
    out = jax.ShapeDtypeStruct((count, width + lanes), terms.scale.dtype)
    normed = pl.pallas_call(
        functools.partial(_kernel, settings),
        grid=(pl.cdiv(count, tile),),
        in_specs=(_specs(flat, tile),),
        out_specs=pl.BlockSpec((tile, width + lanes), lambda i: (i, 0)),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=_cost(flat, out),
        interpret=settings.interpret,
        name="sum_norm",
    )(flat)
    return normed.reshape(rows, tokens, width + lanes)


def _flatten(terms: Terms, tile: int) -> Terms:
    """Make rows of all tokens, (M, …), and one row of each vector; tasks are one row per tile."""
    flat = jax.tree.map(lambda a: a.reshape(1 if a.ndim == 1 else -1, a.shape[-1]), terms)
    if terms.task_ids is not None:
        flat = flat._replace(task_ids=flat_tasks(terms.task_ids, tile))
    if terms.update is not None and terms.update.low is None:
        flat = flat._replace(update=flat.update._replace(low=flat.addend))
    return flat


def flat_tasks(task_ids: jax.Array, tile: int) -> jax.Array:
    """Lay out tasks (B, T) as one row per step, (steps, 1, tile), -1 behind the last token."""
    flat = task_ids.reshape(-1)
    padded = jnp.pad(flat, (0, -len(flat) % tile), constant_values=-1)
    return padded.reshape(-1, 1, tile)


def _specs(flat: Terms, tile: int) -> Terms:
    """Return the block of each operand that a step reads."""
    width = flat.scale.shape[1]

    def tokens(array: Any, columns: int, at: int = 0) -> Any:
        return None if array is None else pl.BlockSpec((tile, columns), lambda i: (i, at))

    specs = jax.tree.map(whole, flat)
    update = specs.update
    if flat.update is not None:
        lanes = flat.update.lora_b.shape[0]
        at = width // lanes if flat.update.low is flat.addend else 0
        update = update._replace(low=tokens(flat.update.low, lanes, at))
    task_ids = specs.task_ids and pl.BlockSpec((1, 1, tile), lambda i: (i, 0, 0))
    return specs._replace(
        addend=tokens(flat.addend, width),
        residual=tokens(flat.residual, width),
        task_ids=task_ids,
        update=update,
    )


def whole(array: jax.Array) -> pl.BlockSpec:
    """Return the block of an operand that all steps read, and that is fetched once."""
    start = (0,) * array.ndim
    return pl.BlockSpec(array.shape, lambda *_: start, pipeline_mode=pl.Buffered(1))


def _cost(flat: Terms, out: jax.ShapeDtypeStruct) -> pl.CostEstimate:
    """Declare what the kernel does; an operand that is read in two parts counts once."""
    count, width = flat.addend.shape[0], flat.scale.shape[1]
    factors = 0 if flat.update is None else flat.update.lora_b.size
    factors += 0 if flat.following is None else flat.following.lora_a.size
    return pl.CostEstimate(
        flops=count * (10 * width + 2 * factors),
        transcendentals=count,
        bytes_accessed=touched(flat, out),
    )


def touched(*operands: Any) -> int:
    """Return the bytes of all arrays, each once."""
    arrays = {id(array): array for array in jax.tree.leaves(operands)}
    return sum(array.size * array.dtype.itemsize for array in arrays.values())


def _kernel(settings: Settings, terms: Terms, out_ref: Any) -> None:
    total = terms.addend[...].astype(jnp.float32)
    if terms.residual is not None:
        total += terms.residual[...].astype(jnp.float32)
    low = None if terms.update is None else terms.update.low[...]
    out_ref[...] = finished(settings, total, low, terms)


def finished(settings: Settings, total: jax.Array, low: Any, terms: Terms) -> jax.Array:
    """Add the row and the update to a sum, normalise it, and put what follows behind.

    Args:
      settings: of the kernel.
      total: float32 (M, D).
      low: (M, P), the update's, in the dtype of the weights; None without adapters.
      terms: references to the other terms; task_ids as (1, 1, M).

    Returns:
      (M, D) or (M, D + P), in the dtype of the weights.
    """
    dtype = terms.scale.dtype
    if terms.row is not None:
        total += terms.row[...].astype(jnp.float32)
    if terms.task_ids is not None:
        task_ids = column(terms.task_ids[0])
    if terms.update is not None:
        kept = keep_own(low, terms.update.lane_tasks[...], task_ids)
        total += settings.lora_scale * dot(kept, terms.update.lora_b[...])
    out = _normalized(total, terms.scale, terms.bias, settings.epsilon).astype(dtype)
    if terms.following is None:
        return out
    made = settings.lora_scale * dot(out, terms.following.lora_a[...])
    kept = keep_own(made, terms.following.lane_tasks[...], task_ids)
    return jnp.concatenate((out, kept.astype(dtype)), axis=1)


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Multiply matrices, to float32."""
    return jax.lax.dot_general(
        left, right, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """Turn a row (1, T) to a column (T, 1), as the TPU's compiler can."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _normalized(total: jax.Array, scale_ref: Any, bias_ref: Any, epsilon: float) -> jax.Array:
    """Compute LayerNorm of float32 (M, D), with scale and bias (1, D)."""
    centred = total - total.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    scale, bias = (ref[...].astype(jnp.float32) for ref in (scale_ref, bias_ref))
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


def _forward(settings: Settings, terms: Terms) -> tuple[jax.Array, Terms]:
    return _sum_norm(settings, terms), terms


def _backward(settings: Settings, terms: Terms, gradient: jax.Array) -> tuple[Terms]:
    plain = functools.partial(sum_norm, epsilon=settings.epsilon, lora_scale=settings.lora_scale)
    return jax.vjp(plain, terms)[1](gradient)


_sum_norm.defvjp(_forward, _backward)
