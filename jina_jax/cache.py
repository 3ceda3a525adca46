"""The folder of files kept between runs, and JAX's cache of compiled programs in it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_DIRECTORY = "jax_compilation_cache_dir"
# Cache every program, also small ones and those that compile in less than JAX's second.
_EVERY_PROGRAM = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

# Levels of XLA's log from which on it is written: all but fatal errors hidden; by JAX's names.
_FATAL_ONLY = 3
_LEVELS = {"DEBUG": 0, "INFO": 0, "WARNING": 1, "ERROR": 2, "CRITICAL": 3}

_lock = threading.Lock()
_process_options: dict[str, Any] = {}  # the process's own options, while ours are set


def cache_folder() -> Path | None:
    """Return the folder of all cached files, or None where there is none.

    It is ``$JINA_JAX_CACHE``, else ``$XDG_CACHE_HOME/jina_jax``, else ``~/.cache/jina_jax``. A user
    without a home has none: in a folder that others can write to, they could plant programs.
    """
    try:
        if chosen := os.environ.get("JINA_JAX_CACHE"):
            return Path(chosen).expanduser()
        general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(general).expanduser() / "jina_jax"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return None


def programs_folder() -> Path | None:
    """Return the folder of compiled programs that is used unless JAX has one of the process."""
    folder = cache_folder()
    return None if folder is None else folder / "programs"


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
        else ``programs_folder()``, or none if it cannot be made; False changes nothing. Programs of
        the cache are executed: nobody else may have write access to it.

    Raises:
      ValueError: for another type.
    """
    folder = _folder_of(setting)
    with _quiet(), contextlib.nullcontext() if folder is None else _options(folder):
        yield


def _folder_of(setting: bool | str | os.PathLike[str]) -> str | None:
    """Return the directory of a setting; None where JAX's options are not changed."""
    import numpy as np

    if isinstance(setting, np.bool_):
        setting = bool(setting)
    if setting is False:
        return None
    if setting is True:
        return None if programs_in_use() else _usable_folder()
    if not isinstance(setting, str | os.PathLike) or not os.fspath(setting):
        raise ValueError(f"compilation_cache={setting!r}: expected a directory, True or False")
    folder = Path(setting).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"compilation_cache={setting!r}: expected a directory, got a file")
    return os.fspath(folder)


def _usable_folder() -> str | None:
    """Return ``programs_folder()``, or None if there is none and it cannot be made."""
    folder = programs_folder()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is missing, full or read-only: programs are not kept
        return None
    return None if folder is None else os.fspath(folder)


def _set_options(folder: str) -> None:
    import jax

    options = {_DIRECTORY: folder, **_EVERY_PROGRAM}
    _process_options.update((name, jax.config.values[name]) for name in options)
    _update(options)


def _restore_options() -> None:
    _update(_process_options)
    _process_options.clear()


def _update(options: dict[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    for name, value in options.items():
        jax.config.update(name, value)
    reset_cache()  # JAX reads the directory once, at the first program; from now on again


def _hide_alarms() -> None:
    """Keep XLA's alarms about programs from the cache off stderr.

    For each program XLA for CPU logs kilobytes, since it looks for "prefer-no-gather", an advice to
    its own compiler, among the processor's features (openxla/xla#44565). Its log has one level, so
    its other errors are not logged either meanwhile: exceptions and fatal errors are as before.
    """
    import jax

    if jax.default_backend() == "cpu":
        _set_log_level(_FATAL_ONLY)


def _restore_log() -> None:
    import jax

    named = jax.config.values["jax_logging_level"]
    from_environment = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")  # JAX sets "1"
    default = int(from_environment) if from_environment.isdecimal() else 0
    if jax.default_backend() == "cpu":
        _set_log_level(_LEVELS.get(named, default))


def _set_log_level(level: int) -> None:
    from jaxlib import utils

    set_level = getattr(utils, "absl_set_min_log_level", None)  # JAX's own, not documented
    if set_level is not None:
        set_level(level)


class _Shared:
    """A change of the process that all open blocks share: the first makes it, the last undoes it.

    Args:
      make: called with the arguments of the block that opens first.
      undo: called when the last block closes.
    """

    def __init__(self, make: Callable[..., None], undo: Callable[[], None]):
        self._make, self._undo = make, undo
        self._blocks = 0

    @contextlib.contextmanager
    def __call__(self, *arguments: str) -> Iterator[None]:
        with _lock:
            if not self._blocks:
                self._make(*arguments)
            self._blocks += 1
        try:
            yield
        finally:
            with _lock:
                self._blocks -= 1
                if not self._blocks:
                    self._undo()


_options = _Shared(_set_options, _restore_options)
_quiet = _Shared(_hide_alarms, _restore_log)
