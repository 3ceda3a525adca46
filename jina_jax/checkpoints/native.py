"""Native checkpoints: a directory with ``config.json`` and ``flax_model.safetensors``.

The file's keys are the encoder's own paths, joined by dots ("layers.0.mlp.fc1.kernel"). Between
files and JAX a checkpoint is a dict from such a path to ``LazyTensor``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from jina_jax.files import new_directory, read_json, write_json
from jina_jax.nn.parameters import checkpoint_shape, parameter_shapes, to_dict
from jina_jax.nn.quantized import refuse_quantized

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "flax_model.safetensors"
MODEL_TYPE = "jina_jax"
FLOATS = ", ".join(map(repr, FLOAT_DTYPES))


def check_keys(
    expected: Mapping[str, tuple[int, ...]],
    found: Iterable[tuple[str, LazyTensor]],
    source: str,
) -> None:
    """Check that a checkpoint has exactly the expected tensors.

    Args:
      expected: key to shape.
      found: (key, tensor) of every tensor; a key may occur twice.
      source: name of the checkpoint in the error.

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
            problems.append(f"! {key}: expected {FLOATS}, got {tensor.dtype}")
        seen.add(key)
    problems += [
        f"- {key} {list(shape)}: missing" for key, shape in expected.items() if key not in seen
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{source}: {len(problems)} keys do not fit its config:\n  {lines}")


def load_native(directory: Path) -> tuple[Config, dict[str, LazyTensor]]:
    """Open a native checkpoint.

    Tensors may be stored in float8 (e4m3, without a scale): they are read as bfloat16, which
    represents each of their values exactly.

    Raises:
      ConfigError, CheckpointError: if config and tensors are not valid or do not fit.
    """
    config = Config.from_dict(read_json(directory / CONFIG_FILE))
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

    Args:
      directory: to write into.
      config: of the encoder.
      tensors: path to tensor, all of ``parameter_shapes(config)``.
      extras: further fields for ``config.json``, which nothing here reads.
    """
    fields = {**(extras or {}), "model_type": MODEL_TYPE, **config.to_dict()}
    write_json(directory / CONFIG_FILE, fields)
    write_safetensors(directory / WEIGHTS_FILE, dict(sorted(tensors.items())), "flax")


def save_native(directory: str | Path, config: Config, state: nnx.State) -> None:
    """Save an encoder's state as a new native checkpoint (without tokenizer files).

    Args:
      directory: a new or empty directory.
      config: of the encoder.
      state: its weights, on one device or split over a mesh.

    Raises:
      FileExistsError: if the directory exists and is not empty.
      CheckpointError: if the state does not fit the config.
      ValueError: for a quantised state.
    """
    tensors = state_tensors(state)
    check_keys(parameter_shapes(config), tensors.items(), "state")
    with new_directory(Path(directory)) as partial:
        write_native(partial, config, tensors)


def state_tensors(state: nnx.State) -> dict[str, LazyTensor]:
    """View an encoder's state as lazy tensors; each is fetched from its devices when read.

    Raises:
      ValueError: for a quantised state, whose weights are known in 8 bits only.
    """
    arrays = to_dict(state)
    refuse_quantized(arrays, "state")

    def lazy(path: str, array: jax.Array) -> LazyTensor:
        shape = checkpoint_shape(path, array.shape)
        return LazyTensor(shape, np.dtype(array.dtype), lambda: np.asarray(array).reshape(shape))

    return {path: lazy(path, array) for path, array in arrays.items()}
