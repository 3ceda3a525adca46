"""Records of data files: JSON objects, rows of CSV and Parquet, lines, with their line numbers."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from jina_jax.data.lines import LONGEST_LINE, NUL, foreign, json_object, read_lines, too_long

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".ndjson", *DELIMITERS, ".parquet", ".txt")

_field_limit = threading.Lock()  # else another thread may set it back while this one reads
_NUMBERED = re.compile("negative_([0-9]+)")


class DataError(ValueError):
    """A data file that cannot be used, or rows of it."""


class Record(NamedTuple):
    """One record of a file.

    Attributes:
      line: number of its first line, from 1; in Parquet the number of the row.
      fields: (column, value) in the order of the columns asked for.
      reason: why it cannot be read, else "".
    """

    line: int
    fields: Sequence[tuple[str | int, Any]] = ()
    reason: str = ""


class Columns(NamedTuple):
    """Columns to read.

    Attributes:
      names: names, or 0-based positions in CSV without a header.
      numbered: whether to read "negative_1", "negative_2", … too, if present, in this order.
    """

    names: tuple[str | int, ...]
    numbered: bool = False

    def among(self, header: Sequence[str]) -> list[str]:
        """Return the names of the columns to read of those in a header.

        Raises:
          ValueError: if one is missing or repeated.
        """
        names = [str(name) for name in self.names]
        more = [name for name in header if _NUMBERED.fullmatch(name)] if self.numbered else []
        if more and "negative" not in header:
            names.remove("negative")
        names += sorted(more, key=lambda name: int(name.removeprefix("negative_")))
        for name in names:
            if name not in header:
                found = ", ".join(map(repr, header)) or "nothing"
                raise ValueError(f"expected a column {name!r}, found {found}")
            if header.count(name) > 1:
                raise ValueError(f"expected one column {name!r}, found {header.count(name)}")
        return names


def read_records(path: Path, columns: Columns) -> Iterator[Record]:
    """Yield every record of a file of one of ``SUFFIXES``, also those that cannot be read.

    Raises:
      DataError: if the file as a whole cannot be read, or its header lacks a column.
      ValueError: for Parquet without pyarrow.
      OSError: if the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return _delimited(path, columns)
    if suffix == ".parquet":
        return _parquet(path, columns)
    return _lines(path) if suffix == ".txt" else _json_rows(path, columns)


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, text, reason in read_lines(file):
            yield Record(number, [("text", text)], reason)


def _json_rows(path: Path, columns: Columns) -> Iterator[Record]:
    for record in _lines(path):
        if not record.reason:
            line = record.fields[0][1]
            if not line.strip():
                continue
            try:
                row = json_object(line)
                fields = [(name, row[name]) for name in columns.among(list(row))]
                record = Record(record.line, fields)
            except ValueError as error:
                record = Record(record.line, reason=str(error))
        yield record


def _delimited(path: Path, columns: Columns) -> Iterator[Record]:
    records = read_delimited(path)
    if isinstance(columns.names[0], int):
        yield from map(_by_position(columns.names), records)
    else:
        yield from map(_by_name(path, columns, next(records, None)), records)


def read_delimited(path: Path) -> Iterator[Record]:
    """Yield every record of CSV or TSV, the header too, with positions from 0 as its columns.

    Raises:
      DataError: for quotes that do not close, a line longer than ``LONGEST_LINE``, or a file that
        is no text in UTF-8.
      OSError: if the file cannot be opened.
    """
    with path.open("rb") as raw:
        yield from delimited_records(raw, str(path), DELIMITERS[path.suffix.lower()])


def delimited_records(raw: BinaryIO, name: str, delimiter: str) -> Iterator[Record]:
    """Yield every record of an open file of CSV, as ``read_delimited``.

    Args:
      raw: buffered.
      name: of the file, for errors.
      delimiter: between fields.
    """
    if reason := foreign(raw.peek(1)):  # type: ignore[attr-defined]
        raise DataError(f"{name}:1: {reason}")
    # Bytes that are not UTF-8 become lone surrogates, which the fields are checked for anyway.
    file = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")
    try:
        yield from _csv_records(file, name, delimiter)
    finally:
        file.detach()  # the caller opened what it reads from, and closes it


def _csv_records(file: TextIO, name: str, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(_bounded_lines(name, file), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = Record(line, list(enumerate(_next(reader))))
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line:
                # Good rows may lie between the quotes: to go on would lose them.
                raise DataError(
                    f"{name}:{line}: not valid CSV ({error}): expected quotes that open in "
                    f"this record to close, read on to line {reader.line_num}"
                ) from None
            record = Record(line, reason=f"not valid CSV ({error})")
        if any("\0" in text for _, text in record.fields):
            record = Record(line, reason=NUL)
        if record.fields or record.reason:  # else a blank line
            yield record


def _bounded_lines(name: str, file: TextIO) -> Iterator[str]:
    lines = iter(lambda: file.readline(LONGEST_LINE + 1), "")
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{name}:{number}: {too_long('characters')}")
        yield line


def _next(reader: Iterator[list[str]]) -> list[str]:
    """Read one record; the process's limit of fields (128 KiB) stays as it was."""
    with _field_limit:
        limit = csv.field_size_limit(LONGEST_LINE)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(limit)


def _by_position(positions: Sequence[Any]) -> Callable[[Record], Record]:
    def pick(record: Record) -> Record:
        if record.reason:
            return record
        if len(record.fields) <= max(positions):
            got = len(record.fields)
            return Record(record.line, reason=f"expected {max(positions) + 1} fields, got {got}")
        return record._replace(fields=[record.fields[position] for position in positions])

    return pick


def _by_name(path: Path, columns: Columns, first: Record | None) -> Callable[[Record], Record]:
    if first is None or first.reason:
        raise DataError(f"{path}:1: expected a header, got {first.reason if first else 'nothing'}")
    header = [name for _, name in first.fields]
    try:
        names = columns.among(header)
    except ValueError as error:
        raise DataError(f"{path}:{first.line}: {error}") from None
    positions = [header.index(name) for name in names]

    def pick(record: Record) -> Record:
        if record.reason:
            return record
        values = [value for _, value in record.fields]
        if len(values) != len(header):
            reason = f"expected {len(header)} fields, as in the header, got {len(values)}"
            return Record(record.line, reason=reason)
        return Record(record.line, [(header[position], values[position]) for position in positions])

    return pick


def _parquet(path: Path, columns: Columns) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: reading Parquet needs pyarrow ({error}): pip install 'jina-jax[train]'"
        ) from None
    line = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _parquet_columns(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(dict.fromkeys(names))):
                lists = [batch.column(name).to_pylist() for name in names]
                for values in zip(*lists, strict=True):
                    line += 1
                    yield Record(line, list(zip(names, values, strict=True)))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from None


def _parquet_columns(path: Path, columns: Columns, header: list[str]) -> list[str]:
    try:
        return columns.among(header)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
