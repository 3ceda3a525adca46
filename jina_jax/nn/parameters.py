"""Parameter trees: an encoder's state as a dict from path to array, and what paths mean.

A path joins the keys of a state by dots, "layers.0.mlp.fc1.kernel"; without the layer's number,
"layers.mlp.fc1.kernel", it is the path of all layers, stacked on a first axis (``scan_layers``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.lora import Adapter, merged_weight
from jina_jax.nn.quantized import refuse_quantized

_LAYER = re.compile(r"layers\.(\d+)\.")
_QKV = re.compile(r"layers\..*\.qkv_proj\.(kernel|bias|lora_b)")


def parameter_path(keys: tuple) -> str:
    """Join the keys of a flat state to a path."""
    return ".".join(map(str, keys))


def to_dict(state: nnx.State) -> dict[str, Any]:
    """Return a state's arrays (or ``jax.ShapeDtypeStruct``) by path; nothing is copied."""
    return {parameter_path(keys): leaf.get_value() for keys, leaf in nnx.to_flat_state(state)}


def from_dict(abstract: nnx.State, arrays: Mapping[str, Any]) -> nnx.State:
    """Return a state with other values, by path.

    Args:
      abstract: a state of the same structure, as of ``abstract_encoder``.
      arrays: a value for each of its paths; others are ignored.

    Raises:
      KeyError: for a path without a value.
    """
    flat = nnx.to_flat_state(abstract)
    return nnx.from_flat_state([(k, leaf.replace(arrays[parameter_path(k)])) for k, leaf in flat])


@functools.cache
def parameter_shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
    """Map every parameter path of the encoder to its shape in a checkpoint."""
    _, state = abstract_encoder(config)
    return {path: checkpoint_shape(path, leaf.shape) for path, leaf in to_dict(state).items()}


def checkpoint_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a parameter of a state has in a checkpoint.

    The values are the same in the same order; but a checkpoint has queries, keys and values side
    by side on one axis, where the encoder has an axis of three.
    """
    return (*shape[:-2], shape[-2] * shape[-1]) if _QKV.fullmatch(path) else shape


def is_adapter(path: str) -> bool:
    """Return whether a parameter belongs to the tasks' adapters."""
    return path.endswith((".lora_a", ".lora_b"))


def is_table(path: str) -> bool:
    """Return whether a parameter is an embedding table or belongs to the adapters of one."""
    return path.rpartition(".")[0].endswith("_embeddings")


def adapters_of(path: str, paths: Collection[str]) -> tuple[str, str] | None:
    """Return the paths of the two factors that update a weight.

    Args:
      path: of any parameter.
      paths: of all parameters.

    Returns:
      The paths of A and B; None if no adapter updates this parameter.
    """
    stem, _, leaf = path.rpartition(".")
    factors = (f"{stem}.lora_a", f"{stem}.lora_b")
    return factors if leaf in ("kernel", "embedding") and factors[0] in paths else None


def is_stacked(path: str) -> bool:
    """Return whether a path is that of all layers."""
    return path.startswith("layers.") and not _LAYER.match(path)


def stacked_paths(paths: Iterable[str]) -> dict[str, list[str]]:
    """Map each path of an encoder with stacked layers to the paths that it is made of, in order."""
    sources: dict[str, list[str]] = {}
    for path in sorted(paths, key=_layer):
        sources.setdefault(_LAYER.sub("layers.", path, count=1), []).append(path)
    return sources


def _layer(path: str) -> int:
    match = _LAYER.match(path)
    return int(match[1]) if match else -1


def stack_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stack the parameters of single layers, as an encoder with ``scan_layers`` has them."""
    return {
        path: np.stack([arrays[own] for own in sources]) if is_stacked(path) else arrays[path]
        for path, sources in stacked_paths(arrays).items()
    }


def unstack_layers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Split stacked parameters by layer; single ones are returned unchanged."""
    found: dict[str, Any] = {}
    for path, array in arrays.items():
        if is_stacked(path):
            inner = path.removeprefix("layers.")
            found |= {f"layers.{i}.{inner}": array[i] for i in range(len(array))}
        else:
            found[path] = array
    return found


def to_checkpoint(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a state's arrays as checkpoints have them: single layers, in their shapes there."""
    return {
        path: np.asarray(array).reshape(checkpoint_shape(path, array.shape))
        for path, array in unstack_layers(arrays).items()
    }


def merge_task(state: nnx.State, task: str, config: Config) -> nnx.State:
    """Fold one task's adapter into plain weights, ahead of time.

    Sums are made in float32 and then cast to the dtype of the weights.

    Args:
      state: of an ``Encoder`` made from ``config``; not changed.
      task: one of ``config.lora_adaptations``.
      config: names the tasks and the scale.

    Returns:
      The state of an ``Encoder`` made from ``config.merged(task)``.

    Raises:
      ValueError: for an unknown task, or a quantised state.
    """
    index = config.task_id(task)
    arrays = to_dict(state)
    refuse_quantized(arrays, "state")
    merge = functools.partial(merged_weight, scale=config.lora_scale)
    for path, weight in list(arrays.items()):
        if factors := adapters_of(path, arrays):
            stacked = is_stacked(path)
            tasks = 1 if stacked else 0
            own = (arrays[factor].take(index, axis=tasks) for factor in factors)
            with jax.default_matmul_precision("highest"):
                total = (jax.vmap(merge) if stacked else merge)(weight, *own)
            arrays[path] = total.astype(weight.dtype)
    _, base = nnx.split_state(state, Adapter, ...)
    return from_dict(base, arrays)
