"""Checks of values that users pass, or have in files, in every wing."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an integer within bounds as an int.

    NumPy's integers are integers, booleans are not.

    Args:
      name: what the error calls it.
      value: to check.
      least, most: bounds, included; None for no upper one.

    Raises:
      ValueError: if it is not an integer, or beyond a bound.
    """
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        got = type(value).__name__
        raise ValueError(f"{name}={value!r}: expected an integer {bounds}, got {got}") from None
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name}={number}: expected an integer {bounds}")
    return number


def is_integer(value: Any, least: int) -> bool:
    """Return whether a value is an integer of at least ``least``: NumPy's are, booleans are not."""
    is_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_number and value >= least


def check_flags(**values: Any) -> None:
    """Refuse the first value that is not True or False, by its name; NumPy's are fine.

    Raises:
      ValueError: for other values, of which Python would take most for True.
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}={value!r}: expected True or False")


def check_unicode(text: str, name: str) -> str:
    """Return a text without lone surrogates, which no encoding and no tokenizer can take.

    Bytes of files that are not UTF-8 are read as such surrogates.

    Raises:
      ValueError: for the first one, calling the text ``name``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        got = f"the lone surrogate U+{code:04X} at character {error.start}"
        if 0xDC80 <= code <= 0xDCFF:
            got += " (in a file or on the command line: a byte that is not UTF-8)"
        raise ValueError(f"{name}: expected Unicode text, got {got}") from None
    return text
