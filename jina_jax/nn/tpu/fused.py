"""A layer in two kernels of TPUs: attention and the feed-forward network, each with its LayerNorm.

Weights stay in the memory of vectors (VMEM), tokens pass through it once: between the kernels, and
between layers, nothing but x is in memory. Sums are float32; what multiplies is rounded where
``JoinedLayer`` rounds.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jina_jax.nn.encoder import Context
from jina_jax.nn.joined import JoinedLayer, factor, own_lanes, terms_of
from jina_jax.nn.layers import LayerNorm, Linear, gelu
from jina_jax.nn.sum_norm import Terms, Update
from jina_jax.nn.tpu import rows as whole_rows
from jina_jax.nn.tpu.heads import LANES
from jina_jax.nn.tpu.norm import Settings, dot, finished, flat_tasks, touched, whole

_TILE = 512  # tokens per step
_CHUNK = 512  # columns of a matmul's result at once
_VMEM_BYTES = 100 << 20


class Pair(NamedTuple):
    """The weights of a sub-layer: two linear maps, and how their sum with x is finished.

    Attributes:
      kernel, bias: (D or D + P, F) and (1, F), of the first map.
      second: (F, D or D + P), the kernel of the second one.
      terms: what the norm adds, see ``norm.finished``.
    """

    kernel: Any
    bias: Any
    second: Any
    terms: Terms


def fused_layer(
    layer: JoinedLayer,
    x: jax.Array,
    context: Context,
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Compute a ``JoinedLayer`` in two kernels.

    Args:
      layer: of heads of 64, whose number is even.
      x: bfloat16 (B, T, D), with tasks (B, T, D + P); T a multiple of 128 up to 1,024.
      context: with rows from ``tpu.attention.prepare``.
      mesh: with an axis "data" that divides B, and an axis "model" of 1; None for one device.
      interpret: run the kernels step by step in plain XLA, on any platform, for tests.

    Returns:
      As x.
    """
    settings = Settings(layer.norm1.epsilon, layer.config.lora_scale, interpret)
    attention, mlp = layer.attention, layer.mlp
    pair = _pair(attention.qkv_proj, attention.out_proj, layer.norm1, layer, context)
    inner = _pair(mlp.fc1, mlp.fc2, layer.norm2, layer, context)
    segments, table = context.rows.segments, context.rows.table
    operands = (x, context.task_ids, segments, table, pair, inner)
    run = functools.partial(_layer, settings)
    if mesh is not None:
        tokens = P("data")
        shared = P() if table is None or table.shape[0] == 1 else tokens
        specs = (*(tokens if a is not None else None for a in operands[:3]), shared, P(), P())
        # The kernels do not declare how their results vary over the mesh: disable that check.
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)
    return run(*operands)


def _pair(
    first: Linear, second: Linear, norm: LayerNorm, layer: JoinedLayer, context: Context
) -> Pair:
    """Collect a sub-layer's weights; tasks are added on each device."""
    terms = terms_of(norm, layer.config, context)._replace(row=second.bias[...], task_ids=None)
    if context.task_ids is not None:
        update = Update(None, factor(second.lora_b), own_lanes(layer.config))
        terms = terms._replace(update=update)
    terms = jax.tree.map(lambda a: a.reshape(1, -1) if a.ndim == 1 else a, terms)
    return Pair(first.kernel[...], first.bias[...].reshape(1, -1), second.kernel[...], terms)


def _layer(settings, x, task_ids, segments, table, pair: Pair, inner: Pair) -> jax.Array:
    """Run both kernels on one device."""
    x = _attention_block(settings, x, task_ids, segments, table, pair)
    return _mlp_block(settings, x, task_ids, inner)


def _blocks(pair: Pair, width: int) -> Pair:
    """Return the part of each weight that is read: W alone where x, of ``width``, has no low."""

    def part(rows: int, columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, columns), lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))

    inner = pair.bias.shape[1]
    weights = (part(width, inner), part(1, inner), part(pair.second.shape[0], width))
    return Pair(*weights, jax.tree.map(whole, pair.terms))


def _attention_block(settings, x, task_ids, segments, table, pair: Pair) -> jax.Array:
    """Compute attention, its projections, the sum and LayerNorm of (B, T, D or D + P)."""
    batch, tokens, width = x.shape
    columns = pair.terms.scale.shape[1]
    rows = next(r for r in range(max(1, _TILE // tokens), 0, -1) if batch % r == 0)
    specs = _blocks(pair, width)
    if task_ids is not None:
        pair, specs = _with_tasks(pair, specs, task_ids, rows * tokens)
    block = pl.BlockSpec((rows, tokens, width), lambda step: (step, 0, 0))
    line = pl.BlockSpec((rows, 1, tokens), lambda step: (step, 0, 0))
    angles = None
    if table is not None:
        shared = table.shape[0] == 1
        angles = pl.BlockSpec(
            (1 if shared else rows, tokens, LANES), lambda step: (0 if shared else step, 0, 0)
        )
    count = batch * tokens
    flops = 2 * count * (width * 3 * columns + columns * width) + 4 * count * tokens * columns
    operands = (x, segments.reshape(batch, 1, tokens), table, pair)
    return pl.pallas_call(
        functools.partial(_attention_kernel, settings),
        grid=(batch // rows,),
        in_specs=(block, line, angles, specs),
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[
            pltpu.VMEM((rows, tokens, 3 * columns), x.dtype),
            pltpu.VMEM((rows, tokens, columns), x.dtype),
            pltpu.VMEM((tokens, tokens), jnp.float32),
            pltpu.VMEM((2, tokens, LANES), jnp.float32),
        ],
        compiler_params=_parameters("arbitrary"),
        cost_estimate=_cost(operands, specs, x, flops, count * tokens * columns // 64),
        interpret=settings.interpret,
        name="attention_block",
    )(*operands)


def _attention_kernel(settings, x_ref, segments_ref, table_ref, pair, out_ref, *scratch) -> None:
    qkv_ref, mixed_ref, bias_ref, factors_ref = scratch
    rows, tokens, width = x_ref.shape
    x = x_ref[...].reshape(rows * tokens, width)
    size = pair.bias.shape[1]
    for start in range(0, size, _CHUNK):
        at = slice(start, min(start + _CHUNK, size))
        made = dot(x, pair.kernel[:, at]) + pair.bias[:, at].astype(jnp.float32)
        qkv_ref[:, :, at] = made.astype(x.dtype).reshape(rows, tokens, -1)
    whole_rows.attend_rows(qkv_ref, segments_ref, table_ref, mixed_ref, bias_ref, factors_ref)
    mixed = mixed_ref[...].reshape(rows * tokens, -1)
    out_ref[...] = _finish(settings, x, dot(mixed, pair.second[...]), pair.terms).reshape(
        x_ref.shape
    )


def _mlp_block(settings, x: jax.Array, task_ids: jax.Array | None, pair: Pair) -> jax.Array:
    """Compute the feed-forward network, the sum and LayerNorm of (B, T, D or D + P)."""
    batch, tokens, width = x.shape
    inner, count = pair.bias.shape[1], batch * tokens
    tile = min(_TILE, count)
    specs = _blocks(pair, width)
    if task_ids is not None:
        pair, specs = _with_tasks(pair, specs, task_ids, tile)
    block = pl.BlockSpec((tile, width), lambda step: (step, 0))
    operands = (x.reshape(count, width), pair)
    out = pl.pallas_call(
        functools.partial(_mlp_kernel, settings),
        grid=(pl.cdiv(count, tile),),
        in_specs=(block, specs),
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((count, width), x.dtype),
        scratch_shapes=[pltpu.VMEM((tile, width), jnp.float32)],
        compiler_params=_parameters("parallel"),
        cost_estimate=_cost(operands, specs, x, 4 * count * width * inner, count * inner),
        interpret=settings.interpret,
        name="mlp_block",
    )(*operands)
    return out.reshape(x.shape)


def _mlp_kernel(settings, x_ref, pair, out_ref, total_ref) -> None:
    x = x_ref[...]
    inner = pair.bias.shape[1]
    chunk = next(size for size in range(_CHUNK, 0, -LANES) if inner % size == 0)
    total_ref[...] = jnp.zeros_like(total_ref)

    def part(number, _):
        at = pl.ds(pl.multiple_of(number * chunk, chunk), chunk)
        made = dot(x, pair.kernel[:, at]) + pair.bias[:, at].astype(jnp.float32)
        total_ref[...] += dot(gelu(made).astype(x.dtype), pair.second[at, :])
        return 0

    jax.lax.fori_loop(0, inner // chunk, part, 0)
    out_ref[...] = _finish(settings, x, total_ref[...], pair.terms)


def _finish(settings, x: jax.Array, made: jax.Array, terms: Terms) -> jax.Array:
    """Add what a sub-layer made, [y | low] in float32, to x, and normalise."""
    columns = terms.scale.shape[1]
    low = None if terms.update is None else made[:, columns:].astype(x.dtype)
    total = made[:, :columns] + x[:, :columns].astype(jnp.float32)
    return finished(settings, total, low, terms)


def _with_tasks(pair: Pair, specs: Pair, task_ids: jax.Array, tile: int) -> tuple[Pair, Pair]:
    """Add each step's tasks to the terms."""
    block = pl.BlockSpec((1, 1, tile), lambda step: (step, 0, 0))
    tasks = flat_tasks(task_ids, tile)
    return (
        pair._replace(terms=pair.terms._replace(task_ids=tasks)),
        specs._replace(terms=specs.terms._replace(task_ids=block)),
    )


def _parameters(semantics: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=(semantics,), vmem_limit_bytes=_VMEM_BYTES)


def _cost(operands, specs: Pair, x: jax.Array, flops: int, transcendentals: int) -> pl.CostEstimate:
    """Declare what a kernel does; of its weights it reads the parts that ``specs`` name."""
    *others, pair = operands
    unread = sum(
        array.size - spec.block_shape[0] * spec.block_shape[1]
        for array, spec in zip(pair[:3], specs[:3], strict=True)
    )
    touches = touched(*others, pair) + (x.size - unread) * x.dtype.itemsize
    return pl.CostEstimate(flops=flops, transcendentals=transcendentals, bytes_accessed=touches)
