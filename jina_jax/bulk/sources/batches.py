"""Batches of rows: of bounded numbers of rows and bytes, without rows that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.bulk.sources.fitting import fit_array

MOST_ROWS = 25_000
MOST_BYTES = 1 << 24
# Rows that are decoded at once. Their bytes are known only then: a dictionary has a repeated text
# once, and so do the sizes in the metadata of Parquet.
STEP = 64


class BadRow(NamedTuple):
    """A row that cannot be read: its number as in ``Batch.rows``, and why."""

    row: int
    reason: str


class Batch(NamedTuple):
    """Consecutive rows.

    Attributes:
      table: the columns asked for, of n rows.
      rows: int64 (n,), numbers of the rows in the file, from 0; in JSONL the byte (in compressed
        files of what they contain) at which the line begins.
      bad: rows before, between or behind these that cannot be read.
    """

    table: pa.RecordBatch
    rows: np.ndarray
    bad: list[BadRow]


def batches_of(table: pa.RecordBatch, first: int, schema: pa.Schema) -> Iterator[Batch]:
    """Yield rows in batches, with the columns and types of a schema.

    Args:
      table: the rows; further columns are left out.
      first: number of the first row.
      schema: the columns.
    """
    names = schema.names
    has_dictionary = any(pa.types.is_dictionary(table.column(name).type) for name in names)
    step = STEP if has_dictionary else MOST_ROWS
    parts = (table.slice(start, step) for start in range(0, table.num_rows, step))
    for part in joined(parts, names):
        rows = np.arange(first, first + part.num_rows, dtype=np.int64)
        columns = [fit_array(part.column(field.name), field) for field in schema]
        yield from make_batches(columns, schema, rows, [])
        first += part.num_rows


def joined(parts: Iterable[pa.RecordBatch], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Join small parts up to ``MOST_ROWS`` and ``MOST_BYTES``, with values, not dictionaries.

    Args:
      parts: consecutive rows.
      names: of the columns that are kept.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for part in parts:
        own = _decoded(part, names)
        if held and (rows + own.num_rows > MOST_ROWS or size + own.nbytes > MOST_BYTES):
            yield pa.concat_batches(held)
            held, rows, size = [], 0, 0
        held.append(own)
        rows, size = rows + own.num_rows, size + own.nbytes
    if held:
        yield pa.concat_batches(held) if len(held) > 1 else held[0]


def _decoded(table: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    columns = [table.column(name) for name in names]
    plain = [
        own.dictionary_decode() if pa.types.is_dictionary(own.type) else own for own in columns
    ]
    return pa.RecordBatch.from_arrays(plain, list(names))


def make_batches(
    columns: Sequence[tuple[pa.Array, dict[int, str]]],
    schema: pa.Schema,
    rows: np.ndarray,
    bad: list[BadRow],
) -> Iterator[Batch]:
    """Yield rows in batches of bounded bytes, without those that do not fit.

    Args:
      columns: each with the reasons why rows do not fit, by their index.
      schema: of the columns.
      rows: int64 (n,), the rows' numbers.
      bad: of other rows around these.
    """
    reasons: dict[int, str] = {}
    for _, own in columns:
        reasons = own | reasons
    bad = sorted([*bad, *(BadRow(int(rows[i]), reason) for i, reason in reasons.items())])
    table = pa.RecordBatch.from_arrays([array for array, _ in columns], schema=schema)
    if reasons:
        good = np.ones(len(rows), bool)
        good[list(reasons)] = False
        table, rows = table.filter(pa.array(good)), rows[good]
    yield from smaller(Batch(table, rows, bad), MOST_BYTES)


def smaller(batch: Batch, most_bytes: int) -> Iterator[Batch]:
    """Divide a batch until each has at most so many bytes, or one row; bad rows are in the first.

    Args:
      batch: the rows.
      most_bytes: of each part.
    """
    table, rows, bad = batch
    if table.nbytes <= most_bytes or len(rows) <= 1:
        yield batch
        return
    half = len(rows) // 2
    yield from smaller(Batch(table.slice(0, half), rows[:half], bad), most_bytes)
    yield from smaller(Batch(table.slice(half), rows[half:], []), most_bytes)
