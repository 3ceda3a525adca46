"""Records of data files: JSON objects, rows of CSV and Parquet, lines, with their line numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data.lines import decode_line, json_object

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".ndjson", *DELIMITERS, ".parquet", ".txt")

_NUMBERED = re.compile("negative_([0-9]+)")


class DataError(ValueError):
    """A data file that cannot be used, or rows of it."""


class Record(NamedTuple):
    """One record of a file.

    Attributes:
      line: on which it starts, from 1; of Parquet the number of the row.
      fields: (column, value) in the order of the columns that were asked for.
      reason: why it cannot be read, else "".
    """

    line: int
    fields: Sequence[tuple[str | int, Any]] = ()
    reason: str = ""


class Columns(NamedTuple):
    """Which columns to read.

    Attributes:
      names: or 0-based positions in CSV without a header.
      numbered: read "negative_1", "negative_2", … too, where they are, in the order of numbers.
    """

    names: tuple[str | int, ...]
    numbered: bool = False

    def among(self, header: Sequence[str]) -> list[str]:
        """Name the columns to read of those in a header.

        Raises:
          ValueError: if one is missing, or is there twice.
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
    """Read a file of one of ``SUFFIXES``; every record comes, those that cannot be read too.

    Raises:
      DataError: if the file as a whole cannot be read, or its header has not the columns.
      ValueError: for Parquet without pyarrow.
      OSError: if the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return _delimited(path, columns, DELIMITERS[suffix])
    if suffix == ".parquet":
        return _parquet(path, columns)
    return _lines(path) if suffix == ".txt" else _json_rows(path, columns)


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                record = Record(number, [("text", decode_line(raw, number))])
            except ValueError as error:
                record = Record(number, reason=str(error))
            yield record


def _json_rows(path: Path, columns: Columns) -> Iterator[Record]:
    for record in _lines(path):
        if not record.reason:
            try:
                row = json_object(record.fields[0][1])
                fields = [(name, row[name]) for name in columns.among(list(row))]
                record = Record(record.line, fields)
            except ValueError as error:
                record = Record(record.line, reason=str(error))
        yield record


def _delimited(path: Path, columns: Columns, delimiter: str) -> Iterator[Record]:
    # Bytes that are not UTF-8 become lone surrogates, which the fields are checked for anyway.
    file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    limit = csv.field_size_limit(2**31 - 1)  # else no text is longer than 128 KiB
    try:
        records = _csv_records(path, csv.reader(file, delimiter=delimiter, strict=True))
        if isinstance(columns.names[0], int):
            yield from map(_by_position(columns.names), records)
        else:
            yield from map(_by_name(path, columns, next(records, None)), records)
    finally:
        csv.field_size_limit(limit)
        file.close()


def _csv_records(path: Path, reader: Any) -> Iterator[Record]:
    """Number the fields of each record."""
    while True:
        line = reader.line_num + 1
        try:
            record = Record(line, list(enumerate(next(reader))))
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line:
                # Good rows may lie between the quotes: to go on would lose them.
                raise DataError(
                    f"{path}:{line}: not valid CSV ({error}): expected quotes that open in this "
                    f"record to close, read on to line {reader.line_num}"
                ) from None
            record = Record(line, reason=f"not valid CSV ({error})")
        yield record


def _by_position(positions: Sequence[Any]) -> Callable[[Record], Record]:
    def pick(record: Record) -> Record:
        if record.reason:
            return record
        if len(record.fields) <= max(positions):
            got = len(record.fields)
            return Record(record.line, reason=f"expected {max(positions) + 1} fields, got {got}")
        return record._replace(fields=[record.fields[place] for place in positions])

    return pick


def _by_name(path: Path, columns: Columns, first: Record | None) -> Callable[[Record], Record]:
    if first is None or first.reason:
        raise DataError(f"{path}:1: expected a header, got {first.reason if first else 'nothing'}")
    header = [name for _, name in first.fields]
    try:
        names = columns.among(header)
    except ValueError as error:
        raise DataError(f"{path}:{first.line}: {error}") from None
    places = [header.index(name) for name in names]

    def pick(record: Record) -> Record:
        if record.reason:
            return record
        values = [value for _, value in record.fields]
        if len(values) != len(header):
            reason = f"expected {len(header)} fields, as in the header, got {len(values)}"
            return Record(record.line, reason=reason)
        return Record(record.line, [(header[place], values[place]) for place in places])

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
