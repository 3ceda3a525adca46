"""Files and directories that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def new_output(path: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Open stdout, or a file that appears under its name only if all went well.

    Args:
      path: the file to write; None for stdout.
      force: overwrite an existing file.

    Raises:
      FileExistsError: if it exists and ``force`` is False, or if it is no regular file.
      FileNotFoundError: if its directory does not exist.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()  # here, where a broken pipe is still handled
        return
    path = path.resolve()  # a link stays, its target is replaced
    _check_free(path, force)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("xb") as file:
            yield file
        _check_free(path, force)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_free(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such directory")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: not a regular file")
    if path.exists() and not force:
        raise FileExistsError(f"{path}: exists already; --force overwrites it")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``, and rename it to ``path`` if all went well.

    On an error or interruption it is removed, with the parents that were made for it.

    Raises:
      FileExistsError: if ``path`` exists, unless it is an empty directory.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; give the name of a new directory")
    made = [parent for parent in path.parents if not parent.exists()]
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else's files may be there by now
                parent.rmdir()
        raise
