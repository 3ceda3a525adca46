"""Read ``pytorch_model.bin`` without PyTorch, with an unpickler that accepts tensors only.

The file is a zip archive (PyTorch 1.6 and later): a pickle that describes the tensors, and one
stored entry of raw numbers for every storage. The pickle may name the few things in ``_GLOBALS``
and nothing else, so that a hostile file cannot run code.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.checkpoints.tensors import DTYPES, CheckpointError, LazyTensor, MappedFile

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage, offset, shape, stride, *_unused) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_unused: tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor")
        found = _GLOBALS[module, name]
        # A pickle may set attributes of what it names: return a function that is discarded.
        return (lambda *arguments: found(*arguments)) if inspect.isfunction(found) else found

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _device, count = pid
        return _Storage(DTYPES[dtype], key, count)


def open_torch(path: Path) -> dict[str, LazyTensor]:
    """List the tensors of a ``pytorch_model.bin``.

    Raises:
      CheckpointError: if the file is not such an archive, is damaged, or its pickle names anything
        but tensors (which is not run).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _open_archive(path, archive)
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: truncated, or no zip archive ({error}); files from before PyTorch 1.6 must "
            "be saved anew"
        ) from error
    except Exception as error:  # a hostile or damaged pickle can fail in any way
        raise CheckpointError(f"{path}: refused, {type(error).__name__}: {error}") from error


def _open_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, LazyTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1 or entries[pickles[0]].compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: expected one stored data.pkl in the archive, got {pickles}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path}: expected byte order 'little'")
    with archive.open(pickles[0]) as file:
        found = _TensorUnpickler(file).load()
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a state dict, got {type(found).__name__}")
    wrong = [
        name
        for name, tensor in found.items()
        if not isinstance(name, str) or not isinstance(tensor, _Tensor)
    ]
    if wrong:
        raise CheckpointError(f"{path}: expected tensors only; not tensors: {wrong}")
    mapped = MappedFile(path)
    return {
        name: _lazy(path, name, tensor, mapped, entries.get(f"{root}data/{tensor.storage.key}"))
        for name, tensor in found.items()
    }


def _lazy(
    path: Path, name: str, tensor: _Tensor, mapped: MappedFile, entry: zipfile.ZipInfo | None
) -> LazyTensor:
    storage = tensor.storage
    size = storage.count * storage.dtype.itemsize
    if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
        raise CheckpointError(f"{path}: {name}: its storage is missing or not {size} stored bytes")
    if not _lies_inside(tensor):
        raise CheckpointError(f"{path}: {name}: reaches outside of its storage")
    start = _data_offset(mapped, entry)
    mapped.array(storage.dtype, storage.count, start)  # refused here if it reaches past the file

    def read() -> np.ndarray:
        values = mapped.array(storage.dtype, storage.count, start)
        strides = [step * storage.dtype.itemsize for step in tensor.stride]
        return np.lib.stride_tricks.as_strided(
            values[tensor.offset :], tensor.shape, strides, writeable=False
        )

    return LazyTensor(tensor.shape, storage.dtype, read)


def _lies_inside(tensor: _Tensor) -> bool:
    """Check a view that comes from an untrusted file: whole numbers, all within the storage."""
    numbers = (tensor.storage.count, tensor.offset, *tensor.shape, *tensor.stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    last = tensor.offset
    for length, step in zip(tensor.shape, tensor.stride, strict=True):
        last += (length - 1) * step
    return 0 in tensor.shape or last < tensor.storage.count


def _data_offset(mapped: MappedFile, entry: zipfile.ZipInfo) -> int:
    """Return where an entry's bytes begin: behind its local header, a name and an extra field."""
    header = mapped.array(np.dtype(np.uint8), 30, entry.header_offset).tobytes()
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + name_length + extra_length
