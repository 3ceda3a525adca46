"""Native checkpoints: a directory with ``config.json`` and ``flax_model.safetensors``.

The file's keys are the encoder's own paths, joined by dots ("layers.0.mlp.fc1.kernel"). Between
files and JAX a checkpoint is a dict from such a path to ``LazyTensor``.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jina_jax.checkpoints.tensors import (
    DTYPES,
    FLOAT_DTYPES,
    CheckpointError,
    LazyTensor,
    open_safetensors,
    write_safetensors,
)
from jina_jax.config import Config
from jina_jax.files import new_directory
from jina_jax.nn.encoder import abstract_encoder, parameter_path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "flax_model.safetensors"
MODEL_TYPE = "jina_jax"
Place = Callable[[str, np.ndarray], jax.Array]
_FLOATS = ", ".join(map(repr, FLOAT_DTYPES))


@functools.cache
def parameter_shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
    """Map every parameter path of the encoder to its shape."""
    _, state = abstract_encoder(config)
    return {
        parameter_path(keys): variable.get_value().shape
        for keys, variable in nnx.to_flat_state(state)
    }


def check_keys(
    expected: Mapping[str, tuple[int, ...]],
    found: Iterable[tuple[str, LazyTensor]],
    source: str,
) -> None:
    """Check that a checkpoint holds exactly the expected tensors.

    Args:
      expected: key to shape.
      found: (key, tensor) of every tensor; a key may come twice.
      source: what to call the checkpoint in the error.

    Raises:
      CheckpointError: listing every key that is missing, unknown, doubled, misshapen or not float.
    """
    problems, seen = [], set()
    for key, tensor in found:
        shape = tensor.shape
        if key in seen:
            problems.append(f"! {key}: found twice")
        elif key not in expected:
            problems.append(f"+ {key} {list(shape)}: unknown")
        elif shape != expected[key]:
            problems.append(f"! {key}: expected shape {list(expected[key])}, got {list(shape)}")
        elif tensor.dtype.name not in FLOAT_DTYPES:
            problems.append(f"! {key}: expected {_FLOATS}, got {tensor.dtype}")
        seen.add(key)
    problems += [
        f"- {key} {list(shape)}: missing" for key, shape in expected.items() if key not in seen
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{source}: {len(problems)} keys do not fit its config:\n  {lines}")


def load_native(directory: Path) -> tuple[Config, dict[str, LazyTensor]]:
    """Open a native checkpoint.

    Tensors may be stored in float8 (e4m3, without a scale): they are bfloat16 when read, which
    holds each of their values exactly.

    Raises:
      ConfigError, CheckpointError: if config and tensors are not valid or do not fit.
    """
    config = Config.from_json(directory / CONFIG_FILE)
    stored = open_safetensors(directory / WEIGHTS_FILE)
    tensors = {path: _without_float8(tensor) for path, tensor in stored.items()}
    check_keys(parameter_shapes(config), tensors.items(), str(directory / WEIGHTS_FILE))
    return config, tensors


def _without_float8(tensor: LazyTensor) -> LazyTensor:
    if tensor.dtype != DTYPES["F8_E4M3"]:
        return tensor
    wide = DTYPES["BF16"]
    return LazyTensor(tensor.shape, wide, lambda: tensor.read().astype(wide))


def write_native(
    directory: Path,
    config: Config,
    tensors: Mapping[str, LazyTensor],
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Write config and weights into an existing directory that has neither.

    ``extras`` are further fields for ``config.json``, which nothing here reads.
    """
    fields = {**(extras or {}), "model_type": MODEL_TYPE, **config.to_dict()}
    write_json(directory / CONFIG_FILE, fields)
    write_safetensors(directory / WEIGHTS_FILE, dict(sorted(tensors.items())), "flax")


def save_native(directory: str | Path, config: Config, state: nnx.State) -> None:
    """Save an encoder's state as a new native checkpoint (without tokenizer files).

    Raises:
      FileExistsError: if the directory is there and not empty.
      CheckpointError: if the state does not fit the config, or is split over a ``model`` axis,
        where ``qkv_proj`` has its columns in another order.
    """
    for leaf in jax.tree.leaves(state):
        mesh = getattr(leaf.sharding, "mesh", None)
        if mesh is not None and mesh.shape.get("model", 1) > 1:
            raise CheckpointError(
                f"state: expected weights that no model axis splits, got one of "
                f"{mesh.shape['model']}: load the checkpoint without it to save a copy"
            )
    tensors = state_tensors(state)
    check_keys(parameter_shapes(config), tensors.items(), "state")
    with new_directory(Path(directory)) as partial:
        write_native(partial, config, tensors)


def state_tensors(state: nnx.State) -> dict[str, LazyTensor]:
    """View an encoder's state as lazy tensors; each is fetched from its device when read."""

    def lazy(array: jax.Array) -> LazyTensor:
        return LazyTensor(array.shape, np.dtype(array.dtype), lambda: np.asarray(array))

    return {
        parameter_path(keys): lazy(variable[...]) for keys, variable in nnx.to_flat_state(state)
    }


def to_state(
    config: Config,
    tensors: Mapping[str, LazyTensor],
    dtype: str | Callable[[str], str] | None = None,
    *,
    place: Place | None = None,
    scan_layers: bool = False,
) -> nnx.State:
    """Read tensors onto devices.

    Args:
      config: of the encoder that they fit.
      tensors: path to tensor, all of ``parameter_shapes(config)``.
      dtype: "float32", "bfloat16", "float16", or None for the dtype of the word embeddings; or a
        function from a path in the state to one of these.
      place: puts a NumPy array on devices (``jina_jax.runtime.sharding.placer``); None for the
        default device.
      scan_layers: give the state of an ``Encoder`` with ``scan_layers``, in which a layer's
        parameters lie behind an axis of all layers.

    Returns:
      The encoder's state.

    Raises:
      ValueError: for another dtype.
      CheckpointError: if the tensors do not fit the config.
    """
    by_path = callable(dtype) and not isinstance(dtype, type)
    if not by_path and dtype not in (None, *FLOAT_DTYPES):
        raise ValueError(f"dtype={dtype!r}: expected {_FLOATS} or None")
    check_keys(parameter_shapes(config), tensors.items(), "tensors")
    one = dtype or tensors["word_embeddings.embedding"].dtype.name
    place = place or (lambda _, array: jax.device_put(array))
    sources = _stacked(tensors) if scan_layers else {path: [path] for path in tensors}

    def load(path: str) -> jax.Array:
        chosen = one(path) if callable(one) else one
        array = _aligned_copy([tensors[source] for source in sources[path]], FLOAT_DTYPES[chosen])
        is_stacked = scan_layers and path.startswith("layers.")
        return place(path, array if is_stacked else array[0]).block_until_ready()

    # The largest first: the pages and copies that reading it takes are gone before the rest comes.
    by_size = sorted(sources, key=lambda path: -math.prod(tensors[sources[path][0]].shape))
    arrays = {path: load(path) for path in by_size}
    _, abstract = abstract_encoder(config, scan_layers=scan_layers)
    return nnx.from_flat_state(
        [
            (keys, variable.replace(arrays[parameter_path(keys)]))
            for keys, variable in nnx.to_flat_state(abstract)
        ]
    )


def _stacked(paths: Iterable[str]) -> dict[str, list[str]]:
    """Map each path of a scanned encoder to those of the layers, in order, that it is made of."""
    sources: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda path: [(len(p), p) for p in path.split(".")]):
        sources.setdefault(re.sub(r"^layers\.\d+\.", "layers.", path), []).append(path)
    return sources


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object, indented, as the Hub's files are."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _aligned_copy(tensors: Sequence[LazyTensor], dtype: np.dtype) -> np.ndarray:
    """Copy tensors of one shape, side by side on a new first axis, for JAX to take over.

    On CPU, ``device_put`` makes an alias of an array at a multiple of 64 bytes (in jax 0.10.1 even
    with ``may_alias=False``) and a copy of any other. The first must not happen to a view of a
    file, which may change; the second would be one copy more.
    """
    shape = (len(tensors), *tensors[0].shape)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + size].view(dtype).reshape(shape)
    for i, tensor in enumerate(tensors):
        copy[i] = tensor.read()
    return copy
