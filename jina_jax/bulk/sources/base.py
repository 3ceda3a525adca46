"""A source and its pieces; what is common to all formats."""

from __future__ import annotations

import abc
import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from jina_jax.bulk.inputs import InputFile
from jina_jax.bulk.local_disk import local_path
from jina_jax.bulk.object_store import file_system, open_object
from jina_jax.bulk.sources.batches import Batch
from jina_jax.bulk.sources.fitting import is_text
from jina_jax.data.records import DataError


class Piece(NamedTuple):
    """A part of an input.

    Attributes:
      file: number of the input.
      start, stop: rows of Parquet and Arrow files, from 0; in JSONL bytes, for the lines that begin
        there; all bytes of CSV, of compressed files and of streams of Arrow.
      rows: None if that is known only after reading.
      size: bytes of texts, about.
    """

    file: int
    start: int
    stop: int
    rows: int | None
    size: int


class Source(abc.ABC):
    """Rows of a file.

    Attributes:
      file: the file.
      schema: its columns. Every type of strings is ``pa.string()``, every one of bytes
        ``pa.binary()``, and dictionaries are replaced by their values.
      is_empty: whether it has no rows; a JSONL or CSV file may have no columns then.
    """

    schema: pa.Schema
    is_empty: bool

    def __init__(self, file: InputFile):
        self.file = file

    @abc.abstractmethod
    def _pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]: ...

    @abc.abstractmethod
    def _read(self, piece: Piece, schema: pa.Schema) -> Iterator[Batch]: ...

    def pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]:
        """Divide the file, without reading its rows.

        Args:
          number: of the input.
          columns: of texts.
          most_rows, most_bytes: of a piece, where the format lets it be divided; bytes of texts.

        Returns:
          Pieces in the order of the file; none of a file without rows.

        Raises:
          DataError: for a column that is missing, there twice, or not of texts.
        """
        if self.is_empty:
            return []
        self.check(pa.schema([(name, pa.string()) for name in columns]))
        return self._pieces(number, columns, most_rows, most_bytes)

    def read(self, piece: Piece, schema: pa.Schema, *, is_checked: bool = False) -> Iterator[Batch]:
        """Yield a piece's rows, at most ``MOST_ROWS`` and about ``MOST_BYTES`` at once.

        Args:
          piece: of this file.
          schema: columns to read, with the types in which they are returned. Strings are checked
            to be UTF-8, and are not where bytes (``pa.binary()``) are asked for. A row with a value
            that is not of its column's type is a bad row.
          is_checked: the plan has checked these columns, for which JSONL is read from its begin.

        Raises:
          DataError: as ``pieces``, or if the file cannot be read on.
        """
        if not is_checked:
            self.check(schema)
        yield from self._read(piece, schema)

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns that are missing, there twice, or of types that never fit.

        Args:
          schema: the columns wanted; strings are texts, of which numbers are none.

        Raises:
          DataError: naming file and column.
        """
        names = self.schema.names
        for field in schema:
            if names.count(field.name) != 1:
                found = f"{names.count(field.name)} of {', '.join(map(repr, names)) or 'none'}"
                raise DataError(f"{self.file.url}: expected one column {field.name!r}, got {found}")
            own = self.schema.field(field.name).type
            if not _may_fit(own, field.type):
                raise DataError(
                    f"{self.file.url}: column {field.name!r}: "
                    f"expected {'texts' if is_text(field.type) else field.type}, got {own}"
                )


def _may_fit(own: pa.DataType, wanted: pa.DataType) -> bool:
    if is_text(wanted):
        return is_text(own)
    try:
        pa.array([], own).cast(wanted)
    except (pa.ArrowException, NotImplementedError):
        return False
    return True


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema without the types that differ only in their layout."""
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(own: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(own):
        return _plain(own.value_type)
    if pa.types.is_large_string(own) or pa.types.is_string_view(own):
        return pa.string()
    if pa.types.is_large_binary(own) or pa.types.is_binary_view(own):
        return pa.binary()
    return own


@contextlib.contextmanager
def readable(url: str) -> Iterator[None]:
    """Name a file in errors of pyarrow, which may have read something else than its format."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{url}: cannot be read ({error})") from error
    except OSError as error:
        if error.errno is not None:  # of the system, else of a decompression
            if error.filename is not None:
                raise
            raise OSError(error.errno, os.strerror(error.errno), url) from error
        raise DataError(f"{url}: cannot be read ({error})") from error


def open_file(url: str, *, mapped: bool = False) -> pa.NativeFile:
    """Open a file for pyarrow: a local one, or an object whose reads are tried again."""
    path = local_path(url)
    if path is not None:
        return pa.memory_map(path) if mapped else pa.OSFile(path)
    fs, own = file_system(url)
    return pa.PythonFile(open_object(fs, own, url), mode="r")


def bounded_pieces(
    file: int, blocks: Sequence[tuple[int, int]], most_rows: int, most_bytes: int
) -> list[Piece]:
    """Join and divide consecutive blocks of rows so that pieces are within bounds.

    Args:
      file: number of the input.
      blocks: rows and bytes of each.
      most_rows, most_bytes: of a piece; bytes are assumed to be the same for all rows of a block.
    """
    pieces: list[Piece] = []
    at = 0
    for rows, size in blocks:
        if rows == 0:
            continue
        count = max(-(-rows // most_rows), math.ceil(size / most_bytes), 1)
        for part in range(min(count, rows)):
            start = at + rows * part // min(count, rows)
            stop = at + rows * (part + 1) // min(count, rows)
            own = Piece(file, start, stop, stop - start, size * (stop - start) // rows)
            joined = _joined(pieces[-1], own) if pieces else own
            fits = joined.stop - joined.start <= most_rows and joined.size <= most_bytes
            pieces[-1:] = [joined] if pieces and fits else [*pieces[-1:], own]
        at += rows
    return pieces


def _joined(one: Piece, other: Piece) -> Piece:
    rows = other.stop - one.start
    return Piece(one.file, one.start, other.stop, rows, one.size + other.size)
