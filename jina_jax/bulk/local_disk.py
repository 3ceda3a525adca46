"""A directory of the local file system, in which files appear whole and lasting, or not at all.

A file is written into ``_tmp``, flushed to the disk and then linked or renamed to its name, and the
directory is flushed as well: after a crash of the machine a name has its whole file, or none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = "_tmp"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def local_path(url: str) -> str | None:
    """Return the path of a local file or directory, or None for a URL of another kind.

    Raises:
      ValueError: for a chain of URLs.
    """
    if "://" not in url:
        return url
    if "::" in url:
        raise ValueError(f"{url}: expected a path or one URL, got a chain of them (::)")
    return url.removeprefix("file://") if url.startswith("file://") else None


def absolute(url: str) -> str:
    """Return the absolute path of a local file or directory, links as they are; else the URL."""
    path = local_path(url)
    return url if path is None else os.path.abspath(path)


class LocalDisk:
    """Files below a local directory."""

    def __init__(self, path: str):
        self.root = Path(path)

    def where(self, name: str) -> str:
        """Return the path of a file, for errors and for readers of local files."""
        return str(self.root / name)

    def names(self, folder: str) -> list[str]:
        """Name the files directly in a folder, in any order; none without the folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.root / name).stat().st_size

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        target = self.root / name
        with self.scratch(name) as path:
            _write(path, data)
            _make(target.parent)
            os.replace(path, target)
            _flush_directory(target.parent)

    def create(self, name: str, data: bytes | Path) -> None:
        """Write a new file, from its content or from a file of ``scratch``.

        Hard links decide who is first. On a file system without them it is a test and a renaming:
        there two processes at once may both succeed, and the file of one of them stays, whole.

        Raises:
          FileExistsError: if there is one.
        """
        if isinstance(data, bytes):
            with self.scratch(name) as path:
                _write(path, data)
                self._link(path, self.root / name)
        else:
            _flush(data)
            self._link(data, self.root / name)

    def _link(self, path: Path, target: Path) -> None:
        _make(target.parent)
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            os.rename(path, target)
        _flush_directory(target.parent)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.root / name).unlink()

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.root / name).open("rb")

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a new path in ``_tmp``; its file is removed at the end."""
        folder = self.root / TEMPORARY
        _make(folder)
        path = folder / f"{name.replace('/', '-')}.{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):  # renamed, or never written
                path.unlink()

    def clean(self, older_than: float) -> int:
        """Remove files in ``_tmp`` that nobody wrote to for so many seconds."""
        return remove_old(self.root / TEMPORARY, "*", older_than)


def remove_old(folder: Path, pattern: str, older_than: float) -> int:
    """Remove files that match a pattern and were not written to for so many seconds.

    The clock is that of the file system: another machine may have written them.

    Returns:
      How many there were.
    """
    try:
        found = [path for path in folder.glob(pattern) if path.is_file()]
    except FileNotFoundError:
        return 0
    removed = 0
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                removed += 1
    return removed


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    """Make the names in a directory last, where the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(number)


def _make(folder: Path) -> None:
    """Make a directory and those above it, each of them lasting."""
    if folder.is_dir():
        return
    _make(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # made by another process, else a file: for callers not "is there"
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder)) from None
    _flush_directory(folder.parent)
