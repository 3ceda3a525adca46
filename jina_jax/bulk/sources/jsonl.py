"""JSONL: pieces are ranges of bytes, and have the lines that begin there.

The rules for lines are those of ``jina_jax.data.lines``: a line that cannot be read is a bad row. A
field that a line lacks is null. Types are inferred from the first lines: whole numbers, numbers,
booleans, strings, lists and objects.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.bulk.sources.base import Piece, Source
from jina_jax.bulk.sources.batches import MOST_BYTES, MOST_ROWS, BadRow, Batch, make_batches
from jina_jax.bulk.sources.fitting import fit_values
from jina_jax.bulk.sources.text_files import EXPANSION, codec_of, open_text
from jina_jax.data.lines import (
    LONGEST_LINE,
    foreign,
    json_object,
    read_line,
    too_long,
)
from jina_jax.data.records import DataError

_SAMPLE = 1000  # rows
_BLOCK = 1 << 20  # bytes


class _Row(NamedTuple):
    """A line's first byte, its bytes, and its object, or why it has none."""

    start: int
    size: int
    values: dict[str, Any] | None
    reason: str = ""


class _Sample(NamedTuple):
    """The first rows: their columns, number and bytes, and each column's characters of texts."""

    schema: pa.Schema
    rows: int
    size: int
    texts: dict[str, int]


class JsonlSource(Source):
    """Rows of a JSONL file."""

    @functools.cached_property
    def _sample(self) -> _Sample:
        """The first ``_SAMPLE`` rows, or about ``MOST_BYTES`` of them."""
        with open_text(self.file.url) as opened:
            block = _block(_rows(opened, 0, None, self.file.url), _SAMPLE)
        rows = [row.values for row in block if row.values is not None]
        names = dict.fromkeys(name for row in rows for name in row if _is_unicode(name))
        columns = {name: [row.get(name) for row in rows] for name in names}
        texts = {
            name: sum(len(value) for value in values if isinstance(value, str))
            for name, values in columns.items()
        }
        schema = pa.schema([(name, _type_of(values)) for name, values in columns.items()])
        return _Sample(schema, len(block), sum(row.size for row in block), texts)

    @property
    def schema(self) -> pa.Schema:
        """Columns of the first rows, in the order in which they appear."""
        return self._sample.schema

    @property
    def is_empty(self) -> bool:  # type: ignore[override]
        """Whether it has only blank lines."""
        return not self._sample.rows

    def _pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]:
        sample = self._sample
        share = min(1.0, sum(sample.texts[name] for name in columns) / sample.size)
        if codec_of(self.file.url):
            return [Piece(number, 0, self.file.size, None, int(EXPANSION * share * self.file.size))]
        by_rows = most_rows * sample.size / sample.rows
        by_bytes = most_bytes / max(share, 1e-3)
        count = max(1, -(-self.file.size // max(1, int(min(by_rows, by_bytes)))))
        bounds = [self.file.size * k // count for k in range(count + 1)]
        return [
            Piece(number, start, stop, None, int(share * (stop - start)))
            for start, stop in itertools.pairwise(bounds)
            if start < stop
        ]

    def _read(self, piece: Piece, schema: pa.Schema) -> Iterator[Batch]:
        stop = None if codec_of(self.file.url) else piece.stop
        with open_text(self.file.url) as opened:
            rows = _rows(opened, piece.start, stop, self.file.url)
            while block := _block(rows, MOST_ROWS):
                good = [row for row in block if row.values is not None]
                bad = [BadRow(row.start, row.reason) for row in block if row.values is None]
                numbers = np.array([row.start for row in good], np.int64)
                columns = [
                    fit_values([row.values.get(field.name) for row in good], field)  # type: ignore[union-attr]
                    for field in schema
                ]
                yield from make_batches(columns, schema, numbers, bad)


def _block(rows: Iterator[_Row], most_rows: int) -> list[_Row]:
    """Take rows for about one batch; bad ones have no bytes in memory."""
    block, size = [], 0
    for row in rows:
        block.append(row)
        size += row.size if row.values is not None else 0
        if len(block) == most_rows or size >= MOST_BYTES:
            break
    return block


def _rows(file: BinaryIO, start: int, stop: int | None, url: str) -> Iterator[_Row]:
    """Yield the rows whose lines begin in a range of bytes; blank lines are none.

    Raises:
      DataError: if the file is no text in UTF-8.
    """
    at = _next_line(file, start)
    while stop is None or at < stop:
        raw = file.readline(LONGEST_LINE + 1)
        if not raw:
            return
        if at == 0 and (reason := foreign(raw)):
            raise DataError(f"{url}: {reason}")
        if len(raw) > LONGEST_LINE:
            size = len(raw) + (0 if raw.endswith(b"\n") else _skip_line(file))
            yield _Row(at, size, None, too_long("bytes"))
        else:
            size = len(raw)
            row = _row(at, raw)
            if row is not None:
                yield row
        at += size


def _next_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that begins at a byte or behind it; return its first byte."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of a line, however long it is; return the bytes read."""
    size = 0
    while raw := file.readline(_BLOCK):
        size += len(raw)
        if raw.endswith(b"\n"):
            break
    return size


def _row(at: int, raw: bytes) -> _Row | None:
    line = read_line(1 if at == 0 else 2, raw)
    if line.reason:
        return _Row(at, len(raw), None, line.reason)
    if not line.text.strip():
        return None
    try:
        return _Row(at, len(raw), json_object(line.text))
    except ValueError as error:
        return _Row(at, len(raw), None, str(error))


def _type_of(values: list[Any]) -> pa.DataType:
    """Infer the type of a column, for which some values may be wrong."""
    if any(isinstance(value, str) for value in values):
        return pa.string()
    for own in (values, *([value] for value in values if value is not None)):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return pa.array(own).type
    return pa.null()


def _is_unicode(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)
