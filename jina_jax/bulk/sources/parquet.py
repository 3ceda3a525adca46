"""Parquet files: pieces are ranges of rows, as many row groups as fit, or parts of one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.bulk.inputs import InputFile
from jina_jax.bulk.sources.base import (
    Piece,
    Source,
    bounded_pieces,
    open_file,
    plain_schema,
    readable,
)
from jina_jax.bulk.sources.batches import MOST_BYTES, STEP, Batch, batches_of, joined

_BUFFER = 1 << 23  # bytes read at once of a column; without it, all bytes of a row group's column


class ParquetSource(Source):
    """Rows of a Parquet file."""

    def __init__(self, file: InputFile):
        super().__init__(file)
        with readable(file.url), open_file(file.url) as opened:
            parquet = pq.ParquetFile(opened)
            self._metadata = parquet.metadata
            self.schema = plain_schema(parquet.schema_arrow)
        self.is_empty = self._metadata.num_rows == 0
        groups = range(self._metadata.num_row_groups)
        self._rows = [self._metadata.row_group(group).num_rows for group in groups]

    def _pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]:
        sizes = [self._size(group, columns) for group in range(len(self._rows))]
        blocks = list(zip(self._rows, sizes, strict=True))
        return bounded_pieces(number, blocks, most_rows, most_bytes)

    def _size(self, group: int, names: Sequence[str]) -> int:
        """Return the bytes of some columns in a row group, uncompressed."""
        own = self._metadata.row_group(group)
        columns = [own.column(index) for index in range(own.num_columns)]
        roots = {name: name + "." for name in names}
        return sum(
            column.total_uncompressed_size
            for column in columns
            if any(
                column.path_in_schema == n or column.path_in_schema.startswith(r)
                for n, r in roots.items()
            )
        )

    def _read(self, piece: Piece, schema: pa.Schema) -> Iterator[Batch]:
        ends = list(itertools.accumulate(self._rows))
        with readable(self.file.url), open_file(self.file.url) as opened:
            parquet = pq.ParquetFile(
                opened, metadata=self._metadata, buffer_size=_BUFFER, pre_buffer=False
            )
            for group, end in enumerate(ends):
                start = end - self._rows[group]
                if end > piece.start and start < piece.stop:
                    yield from self._group(parquet, group, start, piece, schema)

    def _group(
        self, parquet: pq.ParquetFile, group: int, first: int, piece: Piece, schema: pa.Schema
    ) -> Iterator[Batch]:
        """Yield the rows of a piece that are in one row group, whose first row is ``first``."""
        start = max(first, piece.start)
        parts = self._parts(parquet, group, start - first, piece.stop - first, schema.names)
        for table in joined(parts, schema.names):
            yield from batches_of(table, start, schema)
            start += table.num_rows

    def _parts(
        self, parquet: pq.ParquetFile, group: int, start: int, stop: int, names: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield a range of rows of a row group, few at once."""
        size = max(1, self._size(group, names))
        rows = min(STEP, max(1, MOST_BYTES * self._rows[group] // size))
        at = 0
        for table in parquet.iter_batches(rows, row_groups=[group], columns=list(names)):
            begin, end = max(start - at, 0), min(stop - at, table.num_rows)
            if begin < end:
                yield table.slice(begin, end - begin)
            at += table.num_rows
            if at >= stop:
                return
