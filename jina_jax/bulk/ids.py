"""Ids of rows as values of Python, of all types that a column of ids may have."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_WITH_UNITS = (pa.types.is_timestamp, pa.types.is_duration, pa.types.is_time64)


def ids_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values; those in nanoseconds, which Python does not have, as numbers."""
    kind = column.type
    if any(own(kind) for own in _WITH_UNITS) and kind.unit == "ns":
        column = column.cast(pa.int64())
    return column.to_pylist()


def comparable(ids: list[Any]) -> list[Any]:
    """Return ids of which equal ones are the same: NaN, which equals nothing, as its name."""
    return ["nan" if own != own else own for own in ids]
