"""Ids of rows as values of Python, of all types that a column of ids may have."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def ids_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values; those of dates, times and durations as their integers.

    Python has no nanoseconds and no years after 9999.
    """
    kind = column.type
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return column.to_pylist()


def comparable(ids: list[Any]) -> list[Any]:
    """Return ids of which equal ones are the same: NaN, which equals nothing, as its name."""
    return ["nan" if own != own else own for own in ids]
