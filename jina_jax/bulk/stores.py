"""Stores: the directory, local or in an object store, where a job's files are.

A file of a store is there as a whole or not at all, whoever is killed at whatever moment. What
fails for a moment is tried again; other errors name the file.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from jina_jax.bulk.local_disk import LocalDisk, local_path
from jina_jax.bulk.object_store import ObjectStore
from jina_jax.bulk.retries import named, retry

T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_BLOCK = 1 << 23  # bytes


class Store:
    """A directory for files of a job; nothing is made by reading.

    Args:
      url: a local directory, which need not exist, or a URL that fsspec knows, as "s3://b/x".
      storage_options: of fsspec's file system.

    Attributes:
      url: as given, without a slash at its end.
    """

    def __init__(self, url: str, **storage_options: Any):
        self.url = url.rstrip("/") or url
        local = local_path(url)
        if local is not None and storage_options:
            names = ", ".join(storage_options)  # the values may be keys
            raise ValueError(f"storage_options: expected none for {url!r}, got {names}")
        self._place: LocalDisk | ObjectStore = (
            ObjectStore(url, **storage_options) if local is None else LocalDisk(local)
        )

    def _retry(self, name: str, work: Callable[[], T]) -> T:
        return retry(self._place.where(name), work)

    def names(self, folder: str = "") -> list[str]:
        """Name the files directly in a folder, sorted; none without the folder. One listing."""
        return sorted(self._retry(folder, lambda: self._place.names(folder)))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None without it."""
        try:
            return self._retry(name, lambda: self._place.read(name))
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""
        return self._size(name) is not None

    def _size(self, name: str) -> int | None:
        try:
            return self._retry(name, lambda: self._place.size(name))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file: whole, or not at all."""
        self._retry(name, lambda: self._place.put(name, data))

    def put_new(self, name: str, data: bytes | Path) -> bool:
        """Write a file, whole or not at all, unless there is one.

        Of several at once one is first, where the store can decide it: by hard links locally, by
        conditional requests in S3, Google Cloud Storage and Azure.

        Args:
          name: of the file.
          data: its content, or a path of ``scratch`` where it was written.

        Returns:
          False if there is one already. After a try that failed, and may have put the file
          nevertheless: True if there is one with this content.
        """
        failed = False

        def attempt() -> bool:
            nonlocal failed
            if failed and self.exists(name):
                return self._same(name, data)
            try:
                self._place.create(name, data)
            except FileExistsError:
                return failed and self._same(name, data)
            except Exception:
                failed = True
                raise
            return True

        return self._retry(name, attempt)

    def _same(self, name: str, data: bytes | Path) -> bool:
        if isinstance(data, bytes):
            return self.read(name) == data
        if isinstance(self._place, LocalDisk):
            return filecmp.cmp(self._place.where(name), data, shallow=False)
        if self._size(name) != data.stat().st_size:
            return False
        with self.open(name) as one, data.open("rb") as other:
            blocks = iter(lambda: (one.read(_BLOCK), other.read(_BLOCK)), (b"", b""))
            return all(own == wanted for own, wanted in blocks)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(name, lambda: self._place.remove(name))

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a local path to write a file to, before ``put_new``; it is removed at the end.

        Raises:
          OSError: naming the file if the disk is full while it is written.
        """
        where = self._place.where(name)
        with contextlib.ExitStack() as stack:
            path = retry(where, lambda: stack.enter_context(self._place.scratch(name)))
            try:
                yield path
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise named(error, where) from error

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, at any position."""
        return self._retry(name, lambda: self._place.open(name))

    def clean(self, older_than: float) -> int:
        """Remove what killed processes left: temporary files that nobody wrote to for a time.

        Args:
          older_than: the time, in seconds.

        Returns:
          How many there were.
        """
        return self._retry("", lambda: self._place.clean(older_than))
