"""The refusal of processes that were forked after JAX was used, where it would wait forever."""

from __future__ import annotations

import os

_process: int | None = None  # the one whose threads compute


def refuse_fork() -> None:
    """Note that this process computes from now on, or that its parent did before the fork.

    To be called before anything is compiled or put on devices.

    Raises:
      RuntimeError: in a process that was forked from one that had called this: its copy of JAX
        would wait forever for threads that do not exist.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise RuntimeError(
            "this process was forked after the model was loaded, or another one, which JAX does "
            "not survive: start processes with the method 'spawn', or load no model before they "
            "are forked"
        )
