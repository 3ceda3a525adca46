"""The reader of PyTorch files: what PyTorch wrote, and everything that it must refuse."""

import builtins
import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.convert.torch_pickle import _GLOBALS, open_torch

GOLDEN = Path(__file__).parent / "golden"


def test_reads_what_torch_wrote():
    tensors, expected = open_torch(GOLDEN / "tensors.bin"), np.load(GOLDEN / "tensors.npz")
    assert [*tensors] == [*expected]
    for name, tensor in tensors.items():
        array, wanted = tensor.read(), expected[name]
        if name == "bfloat16":
            wanted = wanted.view(ml_dtypes.bfloat16)
        assert array.dtype == tensor.dtype == wanted.dtype, name
        assert array.shape == tensor.shape == wanted.shape, name
        np.testing.assert_array_equal(array, wanted, err_msg=name)
        assert not array.flags.writeable


def test_legacy_format_is_refused_with_what_to_do():
    with pytest.raises(CheckpointError, match=r"no zip archive .*before PyTorch 1\.6 .*saved anew"):
        open_torch(GOLDEN / "legacy.bin")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, kept):
    data = (GOLDEN / "tensors.bin").read_bytes()
    size = kept if isinstance(kept, int) else int(kept * len(data))
    path = tmp_path / "model.bin"
    path.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="truncated, or no zip archive"):
        open_torch(path)


# A small assembler of pickles in the form that PyTorch writes.


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE


def storage(key="0", count=6, kind="FloatStorage") -> bytes:
    pid = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count)
    return pickle.MARK + pid + pickle.TUPLE + pickle.BINPERSID


def tensor(stored=None, offset=0, shape=(2, 3), stride=(3, 1)) -> bytes:
    arguments = (stored or storage()) + number(offset) + numbers(*shape) + numbers(*stride)
    hooks = (
        pickle.NEWFALSE + name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    )
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + pickle.MARK + arguments + hooks + pickle.TUPLE + pickle.REDUCE


def state_dict(**items: bytes) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def archive(path: Path, body: bytes, entries=None, **options) -> Path:
    """Write a PyTorch file around a pickle's body; one storage of six floats unless told."""
    pickled = pickle.PROTO + b"\x02" + body + pickle.STOP
    pickletools.dis(pickled, io.StringIO())  # well-formed: what is refused is what it says
    entries = {"data/0": np.arange(6, dtype="<f4").tobytes()} if entries is None else entries
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, value in entries.items():
            file.writestr(f"archive/{key}", value)
    return path


def test_assembled_file_is_read(tmp_path):
    """The tests below change one thing each in this file, which is fine."""
    tensors = open_torch(archive(tmp_path / "model.bin", state_dict(weight=tensor())))
    np.testing.assert_array_equal(tensors["weight"].read(), np.arange(6.0).reshape(2, 3))


class Canary:
    """Something whose unpickling does harm: it calls ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def pickled_call(function, *arguments) -> bytes:
    """Pickle a call without header and STOP."""
    return pickle.dumps(Canary(function, *arguments), protocol=2)[2:-1]


def hostile_bodies(canary: Path) -> dict[str, bytes]:
    write = f"open({str(canary)!r}, 'w').close()"
    system = pickled_call(os.system, f"touch {canary}")
    numpy_core = name("numpy.core.multiarray", "_reconstruct")
    reconstruct = pickle.MARK + name("numpy", "ndarray") + numbers(0) + text("b") + pickle.TUPLE
    return {
        "os.system": system,
        "eval": pickled_call(builtins.eval, write),
        "exec": pickled_call(builtins.exec, write),
        "getattr": pickled_call(builtins.getattr, "text", "upper"),
        "numpy": numpy_core + reconstruct + pickle.REDUCE,
        "torch": name("torch", "load") + pickle.EMPTY_TUPLE + pickle.REDUCE,
        "torch class": name("torch.nn", "Linear") + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        "dotted name": name("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "ours": name("jina_jax.convert.torch_pickle", "_GLOBALS"),
        "hidden in a value": state_dict(weight=tensor(), other=system),
        "hidden in a key": pickle.EMPTY_DICT + system + tensor() + pickle.SETITEM,
        "hidden in a hook": state_dict(
            weight=name("torch._utils", "_rebuild_parameter")
            + pickle.MARK + tensor() + pickle.NEWTRUE + system + pickle.TUPLE + pickle.REDUCE
        ),
        "hidden and dropped": system + pickle.POP + state_dict(weight=tensor()),
        "hidden in a storage": pickle.MARK + text("storage") + system + pickle.TUPLE
        + pickle.BINPERSID,
        "stack global": text("os") + text("system") + pickle.STACK_GLOBAL
        + pickle.MARK + text(f"touch {canary}") + pickle.TUPLE + pickle.REDUCE,
        "extension": pickle.EXT1 + b"\x01",
    }  # fmt: skip


@pytest.mark.parametrize("case", hostile_bodies(Path("canary")))
def test_hostile_pickle_is_refused_and_not_run(tmp_path, case):
    canary = tmp_path / "canary"
    path = archive(tmp_path / "model.bin", hostile_bodies(canary)[case])
    with pytest.raises(CheckpointError, match=r"model\.bin: refused"):
        open_torch(path)
    assert not canary.exists()


def test_the_hostile_pickles_are_really_hostile(tmp_path):
    """With the plain unpickler the same calls do run; otherwise the test above is empty."""
    for case in ("os.system", "eval", "exec"):
        canary = tmp_path / case
        pickle.loads(pickle.PROTO + b"\x02" + hostile_bodies(canary)[case] + pickle.STOP)
        assert canary.exists()


REFUSED = {
    "offset past the end": (tensor(offset=1), "outside of its storage"),
    "negative offset": (tensor(offset=-1), "outside of its storage"),
    "shape too large": (tensor(shape=(2, 4)), "outside of its storage"),
    "negative shape": (tensor(shape=(-2, 3)), "outside of its storage"),
    "stride too large": (tensor(stride=(4, 1)), "outside of its storage"),
    "negative stride": (tensor(stride=(-3, 1)), "outside of its storage"),
    "shape and stride differ": (tensor(stride=(3,)), "refused"),
    "storage is too short": (tensor(storage(count=7)), "not 28 stored bytes"),
    "storage is too long": (tensor(storage(count=5)), "not 20 stored bytes"),
    "negative storage": (tensor(storage(count=-6)), "not -24 stored bytes"),
    "storage is missing": (tensor(storage(key="1")), "storage is missing"),
    "storage elsewhere": (tensor(storage(key="../data/0")), "storage is missing"),
    "quantised": (tensor(storage(kind="QInt8Storage")), "QInt8Storage, which is not a tensor"),
    "not a tensor": (number(3), "expected tensors only; not tensors: ..weight"),
    "nested": (state_dict(inner=tensor()), "not tensors: ..weight"),
    "shape is text": (
        name("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK + storage() + number(0) + text("23") + numbers(3, 1) + pickle.TUPLE
        + pickle.REDUCE,
        "outside of its storage",
    ),
    "tensor without storage": (
        tensor(stored=number(3)),
        "refused",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_tensor_is_refused(tmp_path, case):
    body, message = REFUSED[case]
    path = archive(tmp_path / "model.bin", state_dict(weight=body))
    with pytest.raises(CheckpointError, match=message):
        open_torch(path)


def test_state_dict_must_be_one(tmp_path):
    with pytest.raises(CheckpointError, match="expected a state dict, got _Tensor"):
        open_torch(archive(tmp_path / "model.bin", tensor()))
    numbered = pickle.EMPTY_DICT + number(1) + tensor() + pickle.SETITEM
    with pytest.raises(CheckpointError, match=r"not tensors: \[1\]"):
        open_torch(archive(tmp_path / "numbered.bin", numbered))


def test_compressed_archive_is_refused(tmp_path):
    options = {"compression": zipfile.ZIP_DEFLATED}
    path = archive(tmp_path / "model.bin", state_dict(weight=tensor()), **options)
    with pytest.raises(CheckpointError, match=r"expected one stored data\.pkl"):
        open_torch(path)


def test_compressed_storage_is_refused(tmp_path):
    path = archive(tmp_path / "model.bin", state_dict(weight=tensor()), entries={})
    with zipfile.ZipFile(path, "a", compression=zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", np.zeros(6, "<f4").tobytes())
    with pytest.raises(CheckpointError, match="not 24 stored bytes"):
        open_torch(path)


def test_big_endian_file_is_refused(tmp_path):
    entries = {"data/0": bytes(24), "byteorder": b"big"}
    path = archive(tmp_path / "model.bin", state_dict(weight=tensor()), entries)
    with pytest.raises(CheckpointError, match="expected byte order 'little'"):
        open_torch(path)


def test_zip_without_a_pickle_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.bin", "w") as file:
        file.writestr("archive/other", b"")
    with pytest.raises(CheckpointError, match=r"expected one stored data\.pkl"):
        open_torch(tmp_path / "model.bin")


def test_entry_behind_the_end_of_the_file_is_refused(tmp_path):
    """The archive's directory may name any position; none outside of the file is read."""
    path = archive(tmp_path / "model.bin", state_dict(weight=tensor()))
    data = bytearray(path.read_bytes())
    record = data.rindex(b"PK\x01\x02")  # the directory's record of the storage
    data[record + 42 : record + 46] = struct.pack("<I", len(data) - 4)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="refused"):
        open_torch(path)


def test_a_pickle_cannot_change_what_it_names(tmp_path):
    """BUILD sets attributes: of a copy at most, so that the next file is read as ever."""
    for pickled_name in (name("torch._utils", "_rebuild_tensor_v2"), name("torch", "FloatStorage")):
        state = pickle.NONE + state_dict(__defaults__=numbers(1, 2)) + pickle.TUPLE2
        body = pickled_name + state + pickle.BUILD + pickle.POP
        path = archive(tmp_path / "model.bin", body + state_dict(weight=tensor()))
        with contextlib.suppress(CheckpointError):
            open_torch(path)
    assert all(getattr(value, "__defaults__", None) is None for value in _GLOBALS.values())
