"""From tensors in files to an encoder's state on devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from jina_jax.checkpoints.native import FLOATS, check_keys
from jina_jax.checkpoints.tensors import FLOAT_DTYPES, LazyTensor
from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import (
    from_dict,
    is_stacked,
    parameter_shapes,
    stacked_paths,
    to_dict,
)
from jina_jax.nn.quantized import quantize_kernel

Place = Callable[[str, np.ndarray], jax.Array]


def to_state(
    config: Config,
    tensors: Mapping[str, LazyTensor],
    dtype: str | None = None,
    *,
    place: Place | None = None,
    scan_layers: bool = False,
    quantization: str | None = None,
) -> nnx.State:
    """Read tensors onto devices, all in one dtype.

    Args:
      config: of the encoder that they fit.
      tensors: path to tensor, all of ``parameter_shapes(config)``.
      dtype: "float32", "bfloat16", "float16", or None for the dtype of the word embeddings.
      place: puts a NumPy array on devices (``jina_jax.runtime.sharding.placer``); None for the
        default device.
      scan_layers: return the state of an ``Encoder`` with ``scan_layers``, in which the parameters
        of all layers are stacked on a first axis.
      quantization: return the state of an ``Encoder`` with ``quantization``: weights of linear
        layers are converted to 8 bits from the tensors' own values, one by one.

    Returns:
      The encoder's state.

    Raises:
      ValueError: for another dtype.
      CheckpointError: if the tensors do not fit the config.
    """
    if dtype not in (None, *FLOAT_DTYPES):
        raise ValueError(f"dtype={dtype!r}: expected {FLOATS} or None")
    check_keys(parameter_shapes(config), tensors.items(), "tensors")
    name = dtype or tensors["word_embeddings.embedding"].dtype.name
    return to_mixed_state(
        config,
        tensors,
        lambda _: name,
        place=place,
        scan_layers=scan_layers,
        quantization=quantization,
    )


def to_mixed_state(
    config: Config,
    tensors: Mapping[str, LazyTensor],
    dtype_of: Callable[[str], str],
    *,
    place: Place | None = None,
    scan_layers: bool = False,
    quantization: str | None = None,
) -> nnx.State:
    """Read tensors onto devices, each in a dtype of its own.

    Args:
      dtype_of: path in the state → "float32", "bfloat16" or "float16".
      config, tensors, place, scan_layers, quantization: as for ``to_state``, which describes the
        result, too.

    Raises:
      CheckpointError: if the tensors do not fit the config.
    """
    check_keys(parameter_shapes(config), tensors.items(), "tensors")
    place = place or (lambda _, array: jax.device_put(array))
    sources = stacked_paths(tensors) if scan_layers else {path: [path] for path in tensors}
    _, abstract = abstract_encoder(config, scan_layers=scan_layers, quantization=quantization)
    shapes = {path: leaf.shape for path, leaf in to_dict(abstract).items()}

    def load(path: str) -> dict[str, jax.Array]:
        parts = [tensors[source] for source in sources[path]]
        if path in shapes:
            found = {path: _aligned_copy(parts, FLOAT_DTYPES[dtype_of(path)])}
        else:
            out = shapes[f"{path}_scale"][is_stacked(path) :]
            kernels = (part.read().reshape(part.shape[0], *out) for part in parts)
            found = _quantized(path, kernels, str(quantization))
        arrays = {own: place(own, array.reshape(shapes[own])) for own, array in found.items()}
        return jax.block_until_ready(arrays)

    # The largest first: its pages and copies are free again before the others are read.
    by_size = sorted(sources, key=lambda path: -math.prod(tensors[sources[path][0]].shape))
    arrays = {own: array for path in by_size for own, array in load(path).items()}
    return from_dict(abstract, arrays)


def _quantized(
    path: str, kernels: Iterable[np.ndarray], quantization: str
) -> dict[str, np.ndarray]:
    """Convert the kernels (in, …) of a path to 8 bits, side by side on a new first axis."""
    codes, scales = zip(*(quantize_kernel(own, quantization) for own in kernels), strict=True)
    return {f"{path}_codes": np.stack(codes), f"{path}_scale": np.stack(scales)}


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
