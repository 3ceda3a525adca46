"""Tensor files and new directories: what is written comes back, damage is refused."""

import errno
import functools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jina_jax.checkpoints.tensors import (
    DTYPES,
    CheckpointError,
    LazyTensor,
    open_safetensors,
    write_safetensors,
)
from jina_jax.files import new_directory, new_output

lazy = LazyTensor.of


def samples() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).standard_normal((3, 5)) * 100
    arrays = {f"t.{name}": values.astype(dtype) for name, dtype in DTYPES.items()}
    arrays["transposed"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    arrays["strided"] = np.arange(12, dtype=ml_dtypes.bfloat16)[1::5]
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.zeros((0, 4), np.float16)
    arrays["nan"] = np.array([0x7F81, 0xFF80, 0x0001], np.uint16).view(ml_dtypes.bfloat16)
    return arrays


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def test_writing_and_opening_keeps_every_bit(tmp_path):
    arrays = samples()
    write_safetensors(tmp_path / "x", {k: lazy(v) for k, v in arrays.items()}, "flax")
    opened = open_safetensors(tmp_path / "x")
    assert opened.keys() == arrays.keys()
    for name, tensor in opened.items():
        array = tensor.read()
        assert array.shape == tensor.shape == arrays[name].shape
        assert array.dtype == tensor.dtype == arrays[name].dtype
        assert bits(array) == bits(arrays[name]), name


def test_an_array_outlives_the_reads_after_it(tmp_path):
    """Reading gives back the pages of earlier arrays; they must come in again when looked at."""
    arrays = {name: np.full((3000,), k, np.float32) for k, name in enumerate("abc")}
    write_safetensors(tmp_path / "x", {k: lazy(v) for k, v in arrays.items()}, "flax")
    opened = open_safetensors(tmp_path / "x")
    read = {name: tensor.read() for name, tensor in opened.items()}
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    foreign = (DTYPES["BF16"], DTYPES["F8_E4M3"])  # that NumPy knows only with ml_dtypes
    arrays = {k: v for k, v in samples().items() if v.dtype not in foreign}
    write_safetensors(tmp_path / "x", {k: lazy(v) for k, v in arrays.items()}, "pt")
    loaded = safetensors.numpy.load_file(tmp_path / "x")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    with safetensors.safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_data_are_aligned(tmp_path):
    for name in ("a", "ab", "abc"):
        write_safetensors(tmp_path / name, {name: lazy(np.ones(3, np.float32))}, "pt")
        (header,) = struct.unpack("<Q", (tmp_path / name).read_bytes()[:8])
        assert header % 8 == 0


def test_file_without_tensors(tmp_path):
    write_safetensors(tmp_path / "x", {}, "pt")
    assert open_safetensors(tmp_path / "x") == {}


def test_writing_over_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "x", {}, "pt")
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("read", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16)])
def test_tensor_that_is_not_what_it_announced_is_refused(tmp_path, read):
    tensor = LazyTensor((2, 3), np.dtype(np.float32), lambda: read)
    with pytest.raises(CheckpointError, match=r"weight: announced float32\[2, 3\], read float"):
        write_safetensors(tmp_path / "x", {"weight": tensor}, "pt")


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED = {
    "empty file": b"",
    "header cut off": raw({"a": entry()}, bytes(8))[:20],
    "data cut off": raw({"a": entry()}, bytes(7)),
    "data left over": raw({"a": entry()}, bytes(9)),
    "header is not JSON": raw(b"{'a': 1}", bytes(8)),
    "header is not UTF-8": raw(b'{"\xff": 1}', bytes(8)),
    "header size is huge": struct.pack("<Q", 2**62) + b"{}",
    "offsets reach outside": raw({"a": entry(offsets=(8, 16))}, bytes(8)),
    "offsets overlap": raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "hole between tensors": raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "shape and offsets differ": raw({"a": entry(shape=(3,))}, bytes(8)),
    "negative shape": raw({"a": entry(shape=(-2,))}, bytes(8)),
    "same name twice": raw(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        bytes(8),
    ),
    "a pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_refused(tmp_path, case):
    (tmp_path / "model.safetensors").write_bytes(DAMAGED[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a valid safetensors file"):
        open_safetensors(tmp_path / "model.safetensors")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, {"a": lazy(np.ones(3, np.float32))}, "pt")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_safetensors(path)


def test_unknown_dtypes_are_listed(tmp_path):
    header = {"a": entry("F8_E5M2", (8,)), "b": entry("U32", (1,), (8, 12))}
    (tmp_path / "x").write_bytes(raw(header, bytes(12)))
    with pytest.raises(CheckpointError, match=r"dtypes \['F8_E5M2', 'U32'\]: expected some of"):
        open_safetensors(tmp_path / "x")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        open_safetensors(tmp_path / "nothing")


def test_new_directory_appears_when_complete(tmp_path):
    target = tmp_path / "a" / "b" / "new"
    with new_directory(target) as partial:
        (partial / "file").write_text("x")
        assert not target.exists()
        assert partial.parent == target.parent  # one file system, so that renaming is atomic
    assert [p.name for p in target.parent.iterdir()] == ["new"]
    assert (target / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_failure_leaves_nothing_behind(tmp_path, error):
    def fail():
        with new_directory(tmp_path / "a" / "b" / "new") as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_others_put_beside_it(tmp_path):
    def fail():
        with new_directory(tmp_path / "a" / "new"):
            (tmp_path / "a" / "other").write_text("x")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]


def test_existing_target_is_refused_and_kept(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="exists already"), new_directory(tmp_path / name):
            raise AssertionError("the block must not run")
    assert (tmp_path / "full" / "mine").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_empty_directory_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as partial:
        (partial / "file").write_text("x")
    assert (tmp_path / "empty" / "file").exists()


def test_the_rest_of_a_killed_process_is_no_obstacle(tmp_path, monkeypatch):
    """In a container, every process may have the same number."""
    code = (
        "import os, pathlib, sys; from jina_jax.files import new_directory, new_output\n"
        "os.getpid = lambda: 7; path = pathlib.Path(sys.argv[1])\n"
        "with new_directory(path / 'new') as partial, new_output(path / 'x', force=False):\n"
        "    (partial / 'theirs').write_text('x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 9
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with new_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("mine")
    with new_output(tmp_path / "x", force=False) as file:
        file.write(b"mine")
    assert sorted(tmp_path.iterdir()) == sorted([*left, tmp_path / "new", tmp_path / "x"])


def test_a_name_as_long_as_the_system_takes(tmp_path):
    with new_output(tmp_path / ("x" * 255), force=False) as file:
        file.write(b"mine")
    with new_directory(tmp_path / ("y" * 255)) as partial:
        (partial / "file").write_text("mine")


@pytest.mark.parametrize("make", [new_directory, functools.partial(new_output, force=False)])
def test_errors_name_the_output_not_its_partial(tmp_path, monkeypatch, make):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Read-only") as error, make(tmp_path / "new"):
        raise AssertionError("the block must not run")
    assert error.value.filename == str(tmp_path / "new")
