"""Repetition of what fails for a moment, and errors that name the file."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAITS = (0.05, 0.2, 1.0, 4.0)  # seconds before each further try, less up to half at random
# Errors that a further try meets again.
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_LASTING_NUMBERS = {
    errno.EDQUOT,
    errno.EFBIG,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTEMPTY,
    errno.EROFS,
    errno.EXDEV,
}


def retry(where: str, work: Callable[[], T]) -> T:
    """Call a function, several times if it fails in a way that may pass.

    Args:
      where: path or URL of what it works on, for errors.
      work: the function; a call of it that failed may have done its work nevertheless.

    Raises:
      OSError: naming ``where``, when the last try failed, or at once where others would fail too.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except Exception as error:
            if wait is None or not is_passing(error):
                found = named(error, where)
                if found is error:
                    raise
                raise found from error
        time.sleep(wait * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def is_passing(error: Exception) -> bool:
    """Return whether an error may not come back: of a network, or of a library of an object store.

    Libraries of object stores have errors of their own that are no ``OSError``; Python's own other
    errors, such as ``TypeError``, are faults of a program.
    """
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and error.errno not in _LASTING_NUMBERS
    return isinstance(error, EOFError) or type(error).__module__ != "builtins"


def named(error: Exception, where: str) -> Exception:
    """Return an error whose message has a path or URL: itself, or an ``OSError`` with it."""
    if not isinstance(error, OSError):
        if not is_passing(error):
            return error
        return OSError(errno.EIO, f"{type(error).__name__}: {error}", where)
    if where in str(error) or (error.filename and where.startswith(str(error.filename))):
        return error
    number = error.errno or _NUMBERS.get(type(error), errno.EIO)
    reason = error.strerror or str(error) or type(error).__name__
    return OSError(number, reason, where)


_NUMBERS = {
    FileExistsError: errno.EEXIST,
    FileNotFoundError: errno.ENOENT,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    PermissionError: errno.EACCES,
    TimeoutError: errno.ETIMEDOUT,
}
