"""Tensors in files: read one at a time from a memory map, written as a stream.

An open checkpoint is a dict from name to ``LazyTensor``. A tensor is read only when it is used, and
each read releases the pages of the previous one, so that copying a checkpoint needs the memory of
its largest tensor.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from jina_jax.checkpoints import names
from jina_jax.files import damage

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Dtypes of weights; anything else in a file (quantised integers, say) needs more than a cast.
FLOAT_DTYPES = {name: np.dtype(name) for name in names.DTYPES}  # "bfloat16" by ml_dtypes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and everything at fault."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read on demand.

    Attributes:
      shape: its shape.
      dtype: its NumPy dtype (bfloat16 is the one of ml_dtypes).
      read: returns the array, of that shape and dtype; often a view of a memory map, so copy it
        before the next read if it is needed longer.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> LazyTensor:
        """Wrap an array that is in memory; not copied."""
        return cls(array.shape, array.dtype, lambda: array)


class MappedFile:
    """A file in a read-only memory map that keeps the pages of one array at a time."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        """View ``count`` values of ``dtype`` from byte ``offset``, after releasing other pages."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._map, dtype, count, offset)


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """List the tensors of a safetensors file.

    Raises:
      CheckpointError: if the file is truncated or corrupted, or has an unknown dtype.
    """
    if found := damage(path) or _missing_end(path):
        raise CheckpointError(f"{path}: not a valid safetensors file, but {found}")
    try:
        # The library checks header, offsets and file size; the views below are our own.
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except Exception as error:  # safetensors raises its own type, or OSError
        raise CheckpointError(f"{path}: not a valid safetensors file ({error})") from error
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
    header.pop("__metadata__", None)
    unknown = sorted({info["dtype"] for info in header.values()} - DTYPES.keys())
    if unknown:
        raise CheckpointError(f"{path}: dtypes {unknown}: expected some of {list(DTYPES)}")
    if not header:
        return {}
    mapped = MappedFile(path)
    return {
        name: _mapped_tensor(mapped, info, 8 + header_size) for name, info in sorted(header.items())
    }


def _missing_end(path: Path) -> str | None:
    """Describe a file that ends before its header or its data do, as a half download does."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        needed = 8 + int.from_bytes(file.read(8), "little")
        if size < max(needed, 8):
            return "truncated or damaged: its header reaches beyond its end; download it again"
        header = file.read(needed - 8)
    try:
        infos = {name: info for name, info in json.loads(header).items() if name != "__metadata__"}
        needed += max((info["data_offsets"][1] for info in infos.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None  # damaged in another way, which the library names
    return f"truncated: {size} of {needed} bytes; download it again" if size < needed else None


def _mapped_tensor(mapped: MappedFile, info: dict, data_start: int) -> LazyTensor:
    shape, dtype = tuple(info["shape"]), DTYPES[info["dtype"]]
    offset, count = data_start + info["data_offsets"][0], int(np.prod(shape, dtype=np.int64))
    return LazyTensor(shape, dtype, lambda: mapped.array(dtype, count, offset).reshape(shape))


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor], framework: str) -> None:
    """Write tensors to a new safetensors file, one at a time.

    Args:
      path: a new file.
      tensors: in the order of the file.
      framework: the metadata's "format", which readers of that framework require: "pt", "flax".

    Raises:
      FileExistsError: if the file exists.
      CheckpointError: if a tensor has not the shape or dtype that it announced.
    """
    header: dict[str, object] = {"__metadata__": {"format": framework}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data start at a multiple of 8, as the format requires
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            array = tensor.read()
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise CheckpointError(
                    f"{name}: announced {tensor.dtype}{list(tensor.shape)}, "
                    f"read {array.dtype}{list(array.shape)}"
                )
            file.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
