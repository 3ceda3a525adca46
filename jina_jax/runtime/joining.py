"""Weights on devices, joined to their adapters as a TPU's programs take them, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.joined import abstract_joined
from jina_jax.nn.lanes import LANES, padded
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.nn.recipes import Recipe, joins, splits
from jina_jax.nn.sum_norm import does_not_suit
from jina_jax.runtime.compiling import jit, platform_of
from jina_jax.runtime.sharding import partition_spec


def joined_graph(
    config: Config, platform: str, dtype: str, mesh: Mesh | None, scan_layers: bool
) -> nnx.GraphDef | None:
    """Return the graph of joined weights where programs take them; None where they take others.

    Only TPUs do, in bfloat16, for widths that fill their vectors.
    """
    if (platform, dtype) != ("tpu", "bfloat16") or _does_not_suit(config) is not None:
        return None
    return abstract_joined(config, scan_layers=scan_layers, groups=devices_of_heads(mesh))[0]


def check_fused(config: Config, implementation: str | None, quantization: str | None) -> None:
    """Refuse kernels of whole sub-layers for weights that cannot be joined.

    Raises:
      ValueError: with the reason.
    """
    reason = _does_not_suit(config)
    if config.intermediate_size % LANES:
        inner = config.intermediate_size
        reason = f"takes an intermediate_size that is a multiple of {LANES}, this one is {inner}"
    if quantization is not None:
        reason = f"takes weights in bfloat16, expected quantization=None, got {quantization!r}"
    if implementation == "pallas_fused" and reason is not None:
        raise ValueError(f"attn_implementation='pallas_fused': {reason}")


def _does_not_suit(config: Config) -> str | None:
    lanes = padded(2 * config.num_tasks * (config.lora_rank or 0))
    return does_not_suit(config.hidden_size, lanes)


def join_state(
    config: Config, state: nnx.State, mesh: Mesh | None, *, scan_layers: bool
) -> nnx.State:
    """Return the state of a ``JoinedEncoder`` of the same weights.

    Arrays that both have are shared, the others are computed where the state is. Of
    ``jax.ShapeDtypeStruct`` with shardings the result is the same.
    """
    arrays = to_dict(state)
    groups = devices_of_heads(mesh)
    _, abstract = abstract_joined(config, scan_layers=scan_layers, groups=groups)
    return from_dict(abstract, _made(joins(arrays, groups), arrays, mesh, joined_spec))


def split_state(
    config: Config, state: nnx.State, mesh: Mesh | None, *, scan_layers: bool
) -> nnx.State:
    """Undo ``join_state``: the same values, bit by bit."""
    arrays = to_dict(state)
    _, abstract = abstract_encoder(config, scan_layers=scan_layers)
    recipe = splits(arrays, config.num_tasks, config.lora_rank or 0, devices_of_heads(mesh))
    return from_dict(abstract, _made(recipe, arrays, mesh, partition_spec))


def devices_of_heads(mesh: Mesh | None) -> int:
    """Return the number of devices that share the heads."""
    return 1 if mesh is None else mesh.shape["model"]


def joined_spec(path: str) -> P:
    """Return how joined weights are split: as the encoder's, queries, keys and values on one axis.

    ``path`` is as for ``partition_spec``.
    """
    spec = partition_spec(path)
    if not path.endswith((".qkv_proj.kernel", ".qkv_proj.bias")):
        return spec
    return P(*spec[:-2], spec[-1])


def _made(
    recipe: Recipe, arrays: Mapping[str, Any], mesh: Mesh | None, spec: Callable[[str], P]
) -> dict[str, Any]:
    """Return the arrays with those of the recipe in their place or beside them."""
    made = dict(arrays)
    for path, (function, sources) in recipe.items():
        operands = [arrays[source] for source in sources]
        options: dict[str, Any] = {}
        if mesh is not None:
            options["out_shardings"] = NamedSharding(mesh, spec(path))
        if isinstance(operands[0], jax.ShapeDtypeStruct):
            shape = jax.eval_shape(function, *operands)
            sharding = options.get("out_shardings", operands[0].sharding)
            made[path] = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
        else:
            made[path] = jit(function, platform_of(operands[0]), **options)(*operands)
    return made
