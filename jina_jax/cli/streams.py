"""Standard streams of a process that was started without some of them, as by ``>&-``."""

from __future__ import annotations

import contextlib
import os
import sys

# Writing to a stdout that was closed fails, as it must; errors and warnings are nobody's loss.
_FLAGS = (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)


def fill_in() -> None:
    """Open the standard streams that are closed, before another file gets their numbers.

    That file would get what is printed, by this process or by a library's C code. ``sys.stdin``
    stays None, as there is nothing to read.
    """
    for number, flags in enumerate(_FLAGS):
        if not _is_open(number):
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def discard_stdout() -> None:
    """Lead stdout nowhere, for the interpreter to write what is left at its end."""
    with contextlib.suppress(OSError, ValueError):  # of a stand-in for stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(number: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False
