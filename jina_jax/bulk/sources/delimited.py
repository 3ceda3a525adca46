"""CSV and TSV: a file is one piece, and every column has strings.

Types are not inferred: "007" stays "007". An empty field is null, as CSV has no other. The rules
for records are those of ``jina_jax.data.records``: the first is the header.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from jina_jax.bulk.inputs import InputFile, format_of
from jina_jax.bulk.sources.base import Piece, Source
from jina_jax.bulk.sources.batches import MOST_BYTES, MOST_ROWS, BadRow, Batch, make_batches
from jina_jax.bulk.sources.fitting import fit_array, fit_values
from jina_jax.bulk.sources.text_files import EXPANSION, codec_of, open_text
from jina_jax.checks import check_unicode
from jina_jax.data.records import DELIMITERS, DataError, Record, delimited_records


class DelimitedSource(Source):
    """Rows of a CSV or TSV file."""

    def __init__(self, file: InputFile):
        super().__init__(file)
        self._delimiter = DELIMITERS[format_of(file.url)]

    def _records(self) -> Iterator[Record]:
        with open_text(self.file.url) as opened:
            yield from delimited_records(opened, self.file.url, self._delimiter)

    @functools.cached_property
    def _header(self) -> list[str]:
        first = next(self._records(), None)
        if first is not None and first.reason:
            raise DataError(f"{self.file.url}:1: expected a header, got {first.reason}")
        names = [] if first is None else [name for _, name in first.fields]
        return [check_unicode(name, f"{self.file.url}: name of a column") for name in names]

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns of the header."""
        return pa.schema([(name, pa.string()) for name in self._header])

    @property
    def is_empty(self) -> bool:  # type: ignore[override]
        """Whether it has no header, and so no rows."""
        return not self._header

    def _pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]:
        expansion = EXPANSION if codec_of(self.file.url) else 1
        return [Piece(number, 0, self.file.size, None, expansion * self.file.size)]

    def _read(self, piece: Piece, schema: pa.Schema) -> Iterator[Batch]:
        header = self._header
        positions = [header.index(name) for name in schema.names]
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        bad: list[BadRow] = []
        size = 0
        records = self._records()
        next(records, None)
        for number, record in enumerate(records):
            fields = [text for _, text in record.fields]
            if reason := record.reason or _wrong_number(fields, header):
                bad.append(BadRow(number, reason))
            else:
                rows.append([fields[position] or None for position in positions])
                numbers.append(number)
                size += sum(map(len, fields))
            if len(rows) + len(bad) == MOST_ROWS or size >= MOST_BYTES:
                yield from _batches(rows, numbers, bad, schema)
                rows, numbers, bad, size = [], [], [], 0
        if rows or bad:
            yield from _batches(rows, numbers, bad, schema)


def _batches(
    rows: list[list[str | None]], numbers: list[int], bad: list[BadRow], schema: pa.Schema
) -> Iterator[Batch]:
    columns = []
    for index, field in enumerate(schema):
        texts, unfit = fit_values([row[index] for row in rows], field.with_type(pa.string()))
        array, reasons = fit_array(texts, field)
        columns.append((array, reasons | unfit))
    yield from make_batches(columns, schema, np.array(numbers, np.int64), bad)


def _wrong_number(fields: Sequence[str], header: Sequence[str]) -> str:
    if len(fields) == len(header):
        return ""
    return f"expected {len(header)} fields, as in the header, got {len(fields)}"
