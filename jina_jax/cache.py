"""The folder of files kept between runs, and JAX's cache of compiled programs in it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DIRECTORY = "jax_compilation_cache_dir"
# Cache every program, also small ones and those that compile in less than JAX's second.
_EVERY_PROGRAM = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

_lock = threading.Lock()
_users = 0  # blocks of `compilation_cache` that are open, over all threads
_process_options: dict[str, Any] = {}  # the process's own options, while ours are set


def cache_folder() -> Path:
    """Return the folder of all cached files: ``$JINA_JAX_CACHE``, or ``~/.cache/jina_jax``."""
    chosen = os.environ.get("JINA_JAX_CACHE")
    return Path(chosen or "~/.cache/jina_jax").expanduser()


def programs_folder() -> Path:
    """Return the folder of compiled programs that is used unless JAX has one of the process."""
    return cache_folder() / "programs"


def programs_in_use() -> str | None:
    """Return the folder of compiled programs that the process set in JAX, or None."""
    import jax

    with _lock:
        own = _process_options.get(_DIRECTORY, jax.config.values[_DIRECTORY])
    return own or None  # an empty environment variable gives ""


@contextlib.contextmanager
def compilation_cache(setting: bool | str | os.PathLike[str]) -> Iterator[None]:
    """Keep every program that is compiled within the block on disk, or find it there.

    JAX has one cache per process, chosen by global options. They are set within the block and put
    back behind it, so that programs compiled elsewhere are cached as the process decided. Blocks
    may be nested, and be open in several threads at once: they share the folder of the first one.
    Programs that other threads compile meanwhile are cached there, too.

    Args:
      setting: a directory; True for the one that the process set in JAX, with its options, or
        else ``programs_folder()``; False changes nothing. Programs of the cache are executed:
        nobody else may have write access to it.

    Raises:
      ValueError: for another type.
    """
    folder = _folder_of(setting)
    if folder is None:
        yield
        return
    _set_options(folder)
    try:
        yield
    finally:
        _restore_options()


def _folder_of(setting: bool | str | os.PathLike[str]) -> str | None:
    """Return the directory of a setting; None where JAX's options are not changed."""
    if setting is False:
        return None
    if setting is True:
        return None if programs_in_use() else os.fspath(programs_folder())
    if not isinstance(setting, str | os.PathLike) or not os.fspath(setting):
        raise ValueError(f"compilation_cache={setting!r}: expected a directory, True or False")
    folder = Path(setting).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"compilation_cache={setting!r}: expected a directory, got a file")
    return os.fspath(folder)


def _set_options(folder: str) -> None:
    """Set JAX's options for the first block that opens."""
    global _users
    import jax

    with _lock:
        _users += 1
        if _users == 1:
            options = {_DIRECTORY: folder, **_EVERY_PROGRAM}
            _process_options.update((name, jax.config.values[name]) for name in options)
            _update(options)


def _restore_options() -> None:
    """Put the process's options back behind the last block that closes."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _update(_process_options)
            _process_options.clear()


def _update(options: dict[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    for name, value in options.items():
        jax.config.update(name, value)
    reset_cache()  # JAX reads the directory once, at the first program; from now on again
