"""Checks of a row: texts that are not blank, a finite score, a label, true negatives."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import check_unicode
from jina_jax.data.lines import check_text, type_name

_LARGEST = float(np.finfo(np.float32).max)
_LIST = re.compile(r"""\s*\[\s*["'].*["']\s*\]\s*""", re.DOTALL)  # as JSON and Python write it

Fields = Sequence[tuple[str | int, Any]]


class Row(NamedTuple):
    """A row without faults.

    Attributes:
      texts: anchor, positive and negatives; two sentences; or one text.
      target: score or label, None for other kinds.
    """

    texts: tuple[str, ...]
    target: Any = None


def check_row(fields: Fields, kind: str, negatives: int | None, delimited: bool) -> Row:
    """Check the fields of a row.

    Args:
      fields: (column, value), in the order of the kind.
      kind: type of row, one of ``jina_jax.data.KINDS``.
      negatives: number of negatives of a triplet that are used; None for all.
      delimited: whether values are from CSV: numbers as strings, and no lists.

    Raises:
      ValueError: if the row is bad; says why.
    """
    if kind == "triplets":
        return Row(_triplet(fields, negatives, delimited))
    if kind == "scored":
        return Row(_texts(fields[:2]), _score(fields[2], delimited))
    if kind == "labelled":
        return Row(_texts(fields[:1]), _label(fields[1]))
    return Row(_texts(fields))


def pair_overlap(anchor: str, positive: str) -> bool:
    """Return whether a pair teaches little, since one text has the words of the other.

    True if at least 80 % of the words of the shorter text, and at least four, are substrings of
    the longer one: the filter of arXiv 2409.10173 for training on pairs. Words are separated by
    white space, and compared without any change.
    """
    shorter, longer = sorted((anchor, positive), key=len)
    words = shorter.split()
    found = sum(word in longer for word in words)
    return found >= 4 and 5 * found >= 4 * len(words)


def _triplet(fields: Fields, negatives: int | None, delimited: bool) -> tuple[str, ...]:
    pair = _texts(fields[:2])
    found: list[tuple[str | int, Any]] = []
    for column, value in fields[2:]:
        if delimited and _LIST.fullmatch(value):
            raise ValueError(f"column {column!r}: expected one text per column in CSV, got a list")
        found += [(column, text) for text in (value if isinstance(value, list) else [value])]
    if len(found) < (negatives or 1):
        raise ValueError(f"negatives: expected at least {negatives or 1}, got {len(found)}")
    others = _texts(found[:negatives])
    for (column, _), text in zip(found, others, strict=False):
        if text in pair:
            same = ("anchor", "positive")[pair.index(text)]
            raise ValueError(f"column {column!r}: a negative is the {same}, {_shown(text)}")
    return pair + others


def _texts(fields: Fields) -> tuple[str, ...]:
    return tuple(check_text(value, f"column {column!r}") for column, value in fields)


def _score(field: tuple[str | int, Any], delimited: bool) -> np.float32:
    column, value = field
    is_number = delimited or type(value) in (int, float)
    try:
        # Python would read 1_000 too, which nobody writes to files.
        score = float(value) if is_number and "_" not in str(value) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not abs(score) <= _LARGEST:
        shown = _shown(value) if is_number else type_name(value)
        raise ValueError(f"column {column!r}: expected a finite number, got {shown}")
    return np.float32(score)


def _label(field: tuple[str | int, Any]) -> str | int:
    column, value = field
    if type(value) is not int and not (isinstance(value, str) and value.strip()):
        shown = "a blank one" if isinstance(value, str) else type_name(value)
        raise ValueError(f"column {column!r}: expected a label, a string or integer, got {shown}")
    return check_unicode(value, f"column {column!r}") if isinstance(value, str) else value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
