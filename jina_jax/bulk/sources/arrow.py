"""Arrow files (Feather version 2), in pieces of rows; streams of Arrow, as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from jina_jax.bulk.inputs import InputFile
from jina_jax.bulk.sources.base import (
    Piece,
    Source,
    bounded_pieces,
    open_file,
    plain_schema,
    readable,
)
from jina_jax.bulk.sources.batches import Batch, batches_of
from jina_jax.data.records import DataError

_FILE, _OLD_FEATHER = b"ARROW1", b"FEA1"
_END = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowSource(Source):
    """Rows of an Arrow file or stream; the suffix is the same for both."""

    def __init__(self, file: InputFile):
        super().__init__(file)
        with readable(file.url), open_file(file.url, mapped=file.size > 0) as opened:
            start = opened.read(len(_FILE))
            opened.seek(0)
            if start.startswith(_OLD_FEATHER):
                raise DataError(f"{file.url}: expected Feather of version 2, got version 1")
            self._is_stream = start != _FILE
            if self._is_stream:
                self._check_end(opened)
            self._schema = (pa.ipc.open_stream if self._is_stream else pa.ipc.open_file)(
                opened
            ).schema
            self.schema = plain_schema(self._schema)
            self._rows = [] if self._is_stream else self._count(opened)
        self.is_empty = not self._is_stream and sum(self._rows) == 0

    def _check_end(self, opened: pa.NativeFile) -> None:
        """Refuse a stream without its end: the format has it optional, yet all writers write it."""
        opened.seek(max(0, self.file.size - len(_END)))
        if opened.read(len(_END)) != _END:
            raise DataError(
                f"{self.file.url}: cannot be read (expected Arrow, whole: a file, or a stream with "
                "its mark of the end)"
            )
        opened.seek(0)

    def _count(self, opened: pa.NativeFile) -> list[int]:
        """Return the rows of each batch, by its narrowest column."""
        if not self.schema.names:
            return []
        widths = [
            field.type.bit_width if _is_fixed(field.type) else 1 << 30 for field in self._schema
        ]
        options = pa.ipc.IpcReadOptions(included_fields=[widths.index(min(widths))])
        reader = pa.ipc.open_file(opened, options=options)
        return [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)]

    def _pieces(
        self, number: int, columns: Sequence[str], most_rows: int, most_bytes: int
    ) -> list[Piece]:
        if self._is_stream:
            return [Piece(number, 0, self.file.size, None, self.file.size)]
        total = sum(self._rows)
        blocks = [(rows, self.file.size * rows // total) for rows in self._rows]
        return bounded_pieces(number, blocks, most_rows, most_bytes)

    def _read(self, piece: Piece, schema: pa.Schema) -> Iterator[Batch]:
        fields = [self._schema.get_field_index(name) for name in schema.names]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        first = 0
        with readable(self.file.url), open_file(self.file.url, mapped=True) as opened:
            if self._is_stream:
                for table in pa.ipc.open_stream(opened, options=options):
                    yield from batches_of(table, first, schema)
                    first += table.num_rows
                return
            reader = pa.ipc.open_file(opened, options=options)
            for k, rows in enumerate(self._rows):
                start, stop = max(first, piece.start), min(first + rows, piece.stop)
                if start < stop:
                    part = reader.get_batch(k).slice(start - first, stop - start)
                    yield from batches_of(part, start, schema)
                first += rows


def _is_fixed(own: pa.DataType) -> bool:
    return pa.types.is_primitive(own) or pa.types.is_null(own)
