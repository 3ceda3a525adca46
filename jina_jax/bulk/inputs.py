"""Inputs of a job: the files that paths, URLs and patterns name."""

from __future__ import annotations

import datetime
import errno
import glob
import os
from collections.abc import Iterator, Sequence
from stat import S_ISREG
from typing import Any, NamedTuple

from jina_jax.bulk.local_disk import absolute, local_path
from jina_jax.bulk.object_store import file_system
from jina_jax.bulk.retries import retry
from jina_jax.checks import check_unicode


class InputFile(NamedTuple):
    """An input of a job, as it was when the job was planned.

    Attributes:
      url: absolute path, or URL.
      size: in bytes.
      version: another one when the file has changed: an object's ETag, generation or time; of a
        local file the time of its last change in nanoseconds.
    """

    url: str
    size: int
    version: str


# What a file's name ends in, and with these: read through a decompression.
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".arrow", ".feather")
COMPRESSED = (".gz", ".zst")
_TEXTS = (".jsonl", ".ndjson", ".csv", ".tsv")
# Of fsspec's descriptions of a file, the first that is there.
_VERSIONS = ("ETag", "etag", "e_tag", "generation", "md5Hash", "content_md5", "blob_id")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def format_of(url: str) -> str:
    """Return the suffix of a file's name that says its format, as ".jsonl" of "a.jsonl.gz".

    Raises:
      ValueError: if it is not a known one.
    """
    name = url.lower()
    plain = next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)
    known = SUFFIXES if plain == name else _TEXTS
    for suffix in known:
        if plain.endswith(suffix):
            return suffix
    ends = f"{', '.join(SUFFIXES)} (texts also with {', '.join(COMPRESSED)})"
    raise ValueError(f"{url}: unknown kind of file; expected a name that ends in {ends}")


def list_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """List the files that paths, URLs and patterns name, sorted, each once.

    Args:
      patterns: files, directories (with those below them), patterns with ``*``, ``?``, ``[…]`` and
        ``**``. In directories and by patterns, files and folders whose names begin with "_" or "."
        are left out, unless the pattern names such. Relative paths become absolute: others read the
        files by these names, in directories of their own.

    Raises:
      FileNotFoundError: for a pattern that matches no file.
      ValueError: for a file whose suffix is unknown, or whose name is not UTF-8.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        local = local_path(pattern)
        files = _match_remote(pattern) if local is None else _match_local(local)
        if not files:
            raise FileNotFoundError(f"{pattern}: expected files, got none")
        for file in files:
            own = file._replace(url=absolute(file.url))
            found.setdefault(own.url, own)
    for file in found.values():
        check_unicode(file.url, f"input {file.url!r}")
        format_of(file.url)
    return sorted(found.values())


def describe(url: str) -> InputFile:
    """Describe one file as it is now.

    Raises:
      FileNotFoundError: if there is none.
    """
    local = local_path(url)
    if local is not None:
        return _local_file(local)
    fs, path = file_system(url)

    def ask() -> InputFile:
        fs.invalidate_cache()
        return _object(fs, url, fs.info(path))

    return retry(url, ask)


def _match_local(pattern: str) -> list[InputFile]:
    """Return the files of a local path or pattern."""
    if os.path.lexists(pattern):
        paths = [pattern]
    else:
        paths = glob.glob(pattern, recursive=True, include_hidden=True)
        paths = [path for path in paths if not _is_hidden(path, pattern)]
    return [_local_file(file) for path in paths for file in _walk(os.path.normpath(path))]


def _walk(path: str) -> Iterator[str]:
    """Yield a path, or the files below a directory."""
    if not os.path.isdir(path):
        yield path
        return
    seen = set()
    for folder, folders, files in os.walk(path, onerror=_fail, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [x for x in folders if real not in seen and not x.startswith(("_", "."))]
        if real not in seen:  # links may form a circle
            yield from (os.path.join(folder, x) for x in files if not x.startswith(("_", ".")))
        seen.add(real)


def _fail(error: OSError) -> None:
    raise error


def _local_file(path: str) -> InputFile:
    stat = os.stat(path)
    if not S_ISREG(stat.st_mode):
        raise ValueError(f"{path}: expected a regular file")
    return InputFile(path, stat.st_size, str(stat.st_mtime_ns))


def _match_remote(pattern: str) -> list[InputFile]:
    """Return the files of a URL or a pattern of URLs."""
    fs, path = file_system(pattern)

    def ask() -> dict[str, Any]:
        fs.invalidate_cache()  # else some remember the listings of before
        found = {path: fs.info(path)} if fs.exists(path) else fs.glob(path, detail=True)
        for name in [name for name, info in found.items() if info["type"] == "directory"]:
            found |= fs.find(name, detail=True)
        return {name: info for name, info in found.items() if not _is_hidden(name, path)}

    scheme = pattern.partition("://")[0]
    files = {name: info for name, info in retry(pattern, ask).items() if info["type"] == "file"}
    return [_object(fs, _url(scheme, name), info) for name, info in files.items()]


def _url(scheme: str, name: str) -> str:
    return name if "://" in name else f"{scheme}://{name.lstrip('/')}"


def _object(fs: Any, url: str, info: dict[str, Any]) -> InputFile:
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "not a file", url)
    version = next((info[key] for key in (*_VERSIONS, *_TIMES) if info.get(key)), "")
    if isinstance(version, datetime.datetime):  # in listings a number, maybe
        version = version.timestamp()
    return InputFile(url, int(info["size"] or 0), str(version).strip('"'))


def _is_hidden(path: str, pattern: str) -> bool:
    """Return whether a part of a path that its pattern does not name begins with "_" or "."."""
    parts, own = path.strip("/").split("/"), pattern.strip("/").split("/")
    fixed = next((i for i, part in enumerate(own) if glob.has_magic(part)), len(own))
    if any(part.startswith(("_", ".")) for part in own[fixed:]):
        return False
    return any(part.startswith(("_", ".")) for part in parts[fixed:])
