"""What is kept on disk between runs: where it lies, and JAX's compiled programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def cache_folder() -> Path:
    """Return the folder of all that is kept: ``$JINA_JAX_CACHE``, or ``~/.cache/jina_jax``."""
    chosen = os.environ.get("JINA_JAX_CACHE")
    return Path(chosen) if chosen else Path("~/.cache/jina_jax").expanduser()


def programs_folder() -> Path:
    """Return the folder of compiled programs, where JAX was not told of another one."""
    return cache_folder() / "programs"


def programs_in_use() -> str | None:
    """Return the folder of compiled programs that JAX was told of, or None."""
    import jax

    return jax.config.values["jax_compilation_cache_dir"] or None  # "" is none, too


@contextlib.contextmanager
def compilation_cache(setting: bool | str | os.PathLike[str]) -> Iterator[None]:
    """Choose where JAX keeps compiled programs, as ``set_compilation_cache``, inside a context."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    before = {name: jax.config.values[name] for name in _OPTIONS}
    set_compilation_cache(setting)
    changed = {name: old for name, old in before.items() if jax.config.values[name] != old}
    try:
        yield
    finally:
        for name, old in changed.items():
            jax.config.update(name, old)
        if changed:
            cache.reset_cache()  # it would go on writing into the directory


def set_compilation_cache(setting: bool | str | os.PathLike[str]) -> None:
    """Choose where JAX keeps compiled programs, for the whole process: JAX has one such cache.

    Args:
      setting: a directory; True for the one that JAX was told of already, or else
        ``programs_folder()``; False leaves JAX as it is. What is found there is executed: nobody
        else may be able to write to it.

    Raises:
      ValueError: for another type.
    """
    import jax

    if setting is False:
        return
    if setting is True:
        if programs_in_use() is not None:
            return
        setting = programs_folder()
    elif not isinstance(setting, str | os.PathLike):
        raise ValueError(f"compilation_cache={setting!r}: expected a directory, True or False")
    jax.config.update("jax_compilation_cache_dir", os.fspath(setting))
    # Every program, also those that compile in less than JAX's second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
