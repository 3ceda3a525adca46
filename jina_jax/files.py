"""Files: JSON objects, and files and directories that appear only when they are complete."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jina_jax.config import ConfigError


@contextlib.contextmanager
def new_output(path: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Open stdout, or a file that appears under its name only when it is complete.

    Args:
      path: of the file; None for stdout.
      force: replace an existing file.

    Raises:
      FileExistsError: if it exists and ``force`` is not given, or if it is not a regular file.
      FileNotFoundError: if its directory does not exist.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()  # here, where a broken pipe is still handled
        return
    path = path.resolve()  # a link stays, its target is replaced
    _check_free(path, force)
    partial = _partial(path)
    try:
        with _named(path, partial):
            with partial.open("xb") as file:
                yield file
            _check_free(path, force)
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # read-only: there is none
            partial.unlink()


def _partial(path: Path) -> Path:
    """Return a new name beside a path.

    Not by the number of the process: one that was killed leaves its files, and in a container the
    next one has the same number.
    """
    return path.parent / f".jina-jax-{secrets.token_hex(8)}.partial"


@contextlib.contextmanager
def _named(path: Path, partial: Path) -> Iterator[None]:
    """Name a path in errors of the system that name none, as of a full disk, or its partial."""
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else os.fsdecode(error.filename)
        if error.errno is None or not (named is None or named.startswith(str(partial))):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_not_input(output: Path | None, *inputs: Path | None) -> None:
    """Refuse to write to a file that is also read.

    Args:
      output: the file to write; None for stdout.
      inputs: the files to read; None for those not given.

    Raises:
      ValueError: if the output is one of the inputs, also under another name.
    """
    for path in inputs:
        if output and path and output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"{output}: is also an input; expected another file as output")


def _check_free(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such directory")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: not a regular file")
    if path.exists() and not force:
        raise FileExistsError(f"{path}: exists already; --force overwrites it")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``, and rename it to ``path`` on success.

    On an error or interruption it is removed, together with the parents that were made for it.

    Raises:
      FileExistsError: if ``path`` exists, unless it is an empty directory.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; give the name of a new directory")
    made = [parent for parent in path.parents if not parent.exists()]
    partial = _partial(path)
    with _named(path, partial):
        partial.mkdir(parents=True)
    try:
        with _named(path, partial):
            yield partial
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else's files may be there by now
                parent.rmdir()
        raise


def damage(path: Path) -> str | None:
    """Say what a file is instead of what its name promises.

    Returns:
      None for a file that is missing, or none of these: a pointer of Git LFS, a link to nothing, an
      empty file, a web page that was saved in its place.
    """
    if path.is_symlink() and not path.exists():
        return f"a link to nothing ({os.readlink(path)}): download the file again"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself: run git lfs pull, or download it again"
    if not start:
        return "an empty file: download it again"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself: download it again"
    return None


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file in UTF-8, UTF-16 or UTF-32, with or without a mark of it.

    Raises:
      ConfigError: naming the file if it is none.
      FileNotFoundError: if there is no file.
    """
    values = read_json_value(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def read_json_value(path: str | Path) -> Any:
    """Read any JSON value from a file; encodings and errors are those of ``read_json``."""
    path = Path(path)
    if found := damage(path):
        raise ConfigError(f"{path}: not valid JSON, but {found}")
    content = path.read_bytes()
    try:
        return json.loads(content.decode(json.detect_encoding(content)))
    except (ValueError, RecursionError) as error:  # bad JSON, bad text, or nested without end
        raise ConfigError(f"{path}: not valid JSON ({error})") from error


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object, indented like the Hub's files."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
