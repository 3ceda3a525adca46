"""A prefix in an object store, through fsspec: S3, Google Cloud Storage, Azure, memory, …

Objects appear when their upload ends, whole. Who is first is decided by the store, in S3, Google
Cloud Storage, Azure and those that speak their protocols (``If-None-Match: *``, generation 0);
others are asked whether there is an object before it is put.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from jina_jax.bulk.local_disk import remove_old
from jina_jax.bulk.retries import retry

# Of these a reader sees files that are written in part.
_NOT_WHOLE = {"arrow_hdfs", "dbfs", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs"}
_SCRATCH = "jina-jax-bulk-"
_memory = threading.Lock()  # fsspec's memory tests and puts in two steps
READ_AHEAD = 1 << 20  # bytes


class ObjectStore:
    """Objects below a prefix."""

    def __init__(self, url: str, **storage_options: Any):
        self.url = url.rstrip("/")
        self.fs, path = file_system(url, **storage_options)
        self.root = path.rstrip("/")

    def where(self, name: str) -> str:
        """Return the URL of an object, for errors."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def names(self, folder: str) -> list[str]:
        """Name the objects directly in a folder, in any order, by one listing."""
        path = self._path(folder)
        self.fs.invalidate_cache()  # else some remember the listings of before
        try:
            entries = self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        files = [entry["name"] for entry in entries if entry["type"] == "file"]
        split = [name.rpartition("/") for name in files]
        return [own for above, _, own in split if own and above.strip("/") == path.strip("/")]

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return bytes(self.fs.cat_file(self._path(name)))

    def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        self.fs.invalidate_cache()
        info = self.fs.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(self.where(name))
        return int(info["size"])

    def put(self, name: str, data: bytes) -> None:
        """Write or replace an object."""
        self._upload(name, data, "overwrite")

    def create(self, name: str, data: bytes | Path) -> None:
        """Write a new object, from its content or from a file.

        Raises:
          FileExistsError: if there is one.
        """
        try:
            self._upload(name, data, "create")
        except OSError as error:  # of some libraries: "Precondition Failed", by any other error
            if "precondition" in str(error).lower().replace("-", ""):
                raise FileExistsError(self.where(name)) from error
            raise

    def _upload(self, name: str, data: bytes | Path, mode: str) -> None:
        self._check_whole()
        path = self._path(name)
        if isinstance(data, Path) and self.fs.async_impl:  # these upload a large file in parts
            self.fs.put_file(str(data), path, mode=mode)
            return
        content = data if isinstance(data, bytes) else data.read_bytes()
        with _memory if "memory" in self._protocols() else contextlib.nullcontext():
            self.fs.pipe_file(path, content, mode=mode)

    def _check_whole(self) -> None:
        if found := _NOT_WHOLE & set(self._protocols()):
            raise ValueError(
                f"{self.url}: expected an object store or a local (mounted) directory as output, "
                f"got {min(found)}://, in which files are seen half-written"
            )

    def _protocols(self) -> tuple[str, ...]:
        own = self.fs.protocol
        return (own,) if isinstance(own, str) else tuple(own)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.fs.rm_file(self._path(name))

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading; each read is a request, repeated if it fails."""
        return open_object(self.fs, self._path(name), self.where(name))

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a path in the directory for temporary files; its file is removed at the end."""
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder:
            yield Path(folder, name.rpartition("/")[2])

    def clean(self, older_than: float) -> int:
        """Remove files of ``scratch`` that nobody wrote to for so many seconds."""
        return remove_old(Path(tempfile.gettempdir()), f"{_SCRATCH}*/*", older_than)


def file_system(url: str, **storage_options: Any) -> tuple[Any, str]:
    """Return the file system of fsspec for a URL, and the URL's path in it.

    Raises:
      ValueError: for an unknown scheme, or one whose package is not installed, which it names.
    """
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url, **storage_options))
    except ImportError as error:
        raise ValueError(f"{url}: cannot be opened: {error}") from error


def open_object(fs: Any, path: str, where: str) -> BinaryIO:
    """Open an object for reading, with an fsspec file system; ``where`` is its name in errors."""
    size = retry(where, lambda: int(fs.info(path)["size"]))

    def read(start: int, stop: int) -> bytes:
        content = fs.cat_file(path, start=start, end=stop)
        if len(content) != stop - start:
            raise ConnectionError(f"got {len(content):,} of {stop - start:,} bytes at {start:,}")
        return content

    raw = _Ranges(lambda start, stop: retry(where, lambda: read(start, stop)), size)
    return cast(BinaryIO, io.BufferedReader(raw, READ_AHEAD))


class _Ranges(io.RawIOBase):
    """A file whose parts are asked for one by one."""

    def __init__(self, part: Callable[[int, int], bytes], size: int):
        self._part = part
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"offset={offset}: before the beginning of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        content = self._part(self._at, stop)
        buffer[: len(content)] = content
        self._at = stop
        return len(content)
