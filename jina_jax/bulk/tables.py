"""Tables of vectors: their types, their schema, and Parquet files of them.

Vectors are never lists of Python floats: an Arrow array is made around the memory of a NumPy array.
The same rows give a file of the same bytes, in whatever portions they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.bulk.settings import KINDS, Settings

MOST_ROWS = 25_000  # of a row group: 100 MB of vectors with 1,024 float32
MOST_BYTES = 1 << 28  # of a row group, about: long texts may be passed through
_FACTS = b"jina_jax"  # the key of our facts in the metadata of a schema


def vector_type(kind: str, dim: int) -> pa.DataType:
    """Return the Arrow type of vectors.

    Elements of lists cannot be null, only the vector can: with this declared, 20,000 vectors with
    1,024 float32 are read in 0.11 s, else in 0.28 s (pyarrow 26, one of two shared cores).

    Args:
      kind: one of ``KINDS``: "float32" and "float16" are lists of ``dim``; "bytes" are 4 × ``dim``
        bytes of little-endian float32; "ubinary" are bits, as of ``numpy.packbits(vector > 0)``.
      dim: dimension; a multiple of 8 for "ubinary".

    Raises:
      ValueError: for another kind or dimension.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if dim < 1 or (kind == "ubinary" and dim % 8):
        rule = "a multiple of 8 for ubinary" if kind == "ubinary" else "at least 1"
        raise ValueError(f"dim: expected {rule}, got {dim}")
    if kind == "bytes":
        return pa.binary(4 * dim)
    if kind == "ubinary":
        return pa.binary(dim // 8)
    element = pa.float32() if kind == "float32" else pa.float16()
    return pa.list_(pa.field("element", element, nullable=False), dim)


def vector_array(vectors: np.ndarray, kind: str, valid: np.ndarray | None = None) -> pa.Array:
    """Return vectors as an Arrow array, around their own memory for "float32" and "bytes".

    Args:
      vectors: float32 (n, dim), C-contiguous; not to be changed as long as the array is used.
      kind: one of ``KINDS``.
      valid: bool (n,): the vector of a row with False is null, whatever ``vectors`` has there. None
        for all True.

    Returns:
      an array of ``vector_type(kind, dim)``, length n.

    Raises:
      ValueError: for vectors of another type or form, or, with "float16", beyond ±65,504.
    """
    _check_vectors(vectors, valid)
    n, dim = vectors.shape
    kept = np.ones(n, np.bool_) if valid is None else valid
    of_type = vector_type(kind, dim)
    bitmap = None if kept.all() else pa.py_buffer(np.packbits(kept, bitorder="little"))
    data = pa.py_buffer(_values(vectors, kind, kept))
    if not pa.types.is_fixed_size_list(of_type):
        return pa.Array.from_buffers(of_type, n, [bitmap, data])
    elements = pa.Array.from_buffers(of_type.value_type, n * dim, [None, data])
    return pa.Array.from_buffers(of_type, n, [bitmap], children=[elements])


def _check_vectors(vectors: np.ndarray, valid: np.ndarray | None) -> None:
    form = f"{vectors.dtype} {vectors.shape}"
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
        raise ValueError(f"vectors: expected float32 (n, dim), C-contiguous, got {form}")
    if valid is not None and (valid.dtype != np.bool_ or valid.shape != vectors.shape[:1]):
        expected = f"bool ({vectors.shape[0]},)"
        raise ValueError(f"valid: expected {expected}, got {valid.dtype} {valid.shape}")


def _values(vectors: np.ndarray, kind: str, kept: np.ndarray) -> np.ndarray:
    if kind == "ubinary":
        return np.packbits(vectors > 0, axis=1)
    if kind != "float16":
        return vectors
    halves = np.zeros(vectors.shape, np.float16)
    with np.errstate(over="raise"):
        try:
            np.copyto(halves, vectors, casting="same_kind", where=kept[:, None])
        except FloatingPointError:
            raise ValueError(
                "vectors: expected values within ±65,504 for float16, got larger ones; "
                "use float32, or vectors of unit length"
            ) from None
    return halves


def read_vectors(column: pa.ChunkedArray, kind: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a column that was made by ``vector_array``.

    Args:
      column: of n rows.
      kind, dim: the column's.

    Returns:
      the vectors of the rows that have one, float32 (m, dim), 0 and 1 for "ubinary"; and which rows
      have one, bool (n,).
    """
    valid = column.is_valid().to_numpy()
    array = column.drop_null().combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        values = array.flatten().to_numpy()
        return values.astype(np.float32, copy=False).reshape(-1, dim), valid
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    data = data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    if kind == "ubinary":
        return np.unpackbits(data, axis=1).astype(np.float32), valid
    return data.view("<f4"), valid


def output_schema(settings: Settings, columns: pa.Schema, facts: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of a job's tables.

    The id (or ``file`` and ``row``), the columns that pass through, with chunks ``chunk``,
    ``start`` and ``stop``, and the vectors.

    Args:
      settings: of the job.
      columns: has the id and the columns that pass through, with their types; more are left out.
      facts: of the model, the job and the shard, values of JSON; ``read_facts`` returns them.

    Raises:
      ValueError: if a name would be there twice.
    """
    passed = [name for name in settings.columns if name != settings.id]
    named = [settings.id] if settings.id is not None else []
    fields = [_plain(columns.field(name)) for name in [*named, *passed]]
    if settings.id is None:
        fields[:0] = [pa.field("file", pa.string()), pa.field("row", pa.int64())]
    if settings.chunks is not None:
        kinds = {"chunk": pa.int32(), "start": pa.int64(), "stop": pa.int64()}
        fields += [pa.field(name, kind) for name, kind in kinds.items()]
    vectors = vector_type(settings.kind, settings.dim)
    fields += [pa.field(name, vectors) for name in settings.vectors]
    _check_names([field.name for field in fields])
    metadata = {_FACTS: json.dumps(dict(facts), sort_keys=True, ensure_ascii=False).encode()}
    return pa.schema(fields, metadata)


def _plain(field: pa.Field) -> pa.Field:
    """Return a field that may be null and has no metadata, such as the source's field number."""
    return pa.field(field.name, field.type)


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"columns={name!r}: would be twice in the output; rename it in the input or do "
                "not pass it through"
            )
        seen.add(name)


def read_facts(schema: pa.Schema) -> dict[str, Any] | None:
    """Return the facts given to ``output_schema``; None for a table that is not ours."""
    facts = (schema.metadata or {}).get(_FACTS)
    return None if facts is None else json.loads(facts)


def errors_schema(id_type: pa.DataType | None) -> pa.Schema:
    """Return the schema of a table of bad rows.

    Args:
      id_type: type of the column that names rows; None if the job has none.
    """
    named = [] if id_type is None else [pa.field("id", id_type)]
    return pa.schema(
        [
            pa.field("file", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            *named,
            pa.field("column", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
        ]
    )


class TableWriter:
    """Writes tables to a Parquet file in row groups of at most ``MOST_ROWS`` rows.

    Vectors are neither compressed nor in a dictionary and have no statistics; other columns are
    compressed by zstd and have all. Measured with 20,000 vectors with 1,024 elements:

    | | MB | write | read |
    |---|---|---|---|
    | float32 | 82.0 | 0.18 s | 0.11 s |
    | float32, byte stream split, zstd 1 | 69.3 | 0.35 s | 0.17 s |
    | float16 | 41.1 | 0.27 s | 0.11 s |
    | float16, byte stream split, zstd 1 | 34.6 | 0.28 s | 0.11 s |
    | bytes | 81.9 | 0.05 s | 0.04 s |
    | ubinary | 2.6 | 0.01 s | 0.00 s |

    Byte stream split of float16 is new in Parquet (2024), so it is not used.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open a new file; ``close`` completes it."""
        self.schema = schema
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writer = pq.ParquetWriter(path, schema, **_options(schema))

    def write(self, table: pa.Table) -> None:
        """Add rows; the table's schema must be the file's, whose metadata is the one used."""
        if not table.schema.equals(self.schema):
            raise ValueError(f"table: expected columns\n{self.schema}\ngot\n{table.schema}")
        while table.num_rows:
            part = table.slice(0, MOST_ROWS - self._rows)
            table = table.slice(part.num_rows)
            self._waiting.append(part)
            self._rows += part.num_rows
            self._bytes += part.nbytes
            if self._rows == MOST_ROWS or self._bytes >= MOST_BYTES:
                self._flush()

    def _flush(self) -> None:
        """Write a row group; in one piece, as pages end where pieces do."""
        if self._rows:
            group = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(group, row_group_size=self._rows)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write the rest and the footer."""
        self._flush()
        self._writer.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete the file; on an error only close it, without the rows that wait."""
        if kind is None:
            self.close()
        else:
            self._writer.close()


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of a ``ParquetWriter``, most of which are by leaf of the schema."""
    leaves = _leaves(schema)
    vectors = [leaf for leaf, column in leaves.items() if _is_vector(schema.field(column))]
    others = [leaf for leaf in leaves if leaf not in vectors]
    return {
        "use_dictionary": others,
        "write_statistics": others,
        "compression": {leaf: "zstd" if leaf in others else "none" for leaf in leaves},
        "write_page_index": True,
    }


def _is_vector(field: pa.Field) -> bool:
    return field.name.endswith("embedding") and (
        pa.types.is_fixed_size_list(field.type) or pa.types.is_fixed_size_binary(field.type)
    )


def _leaves(schema: pa.Schema) -> dict[str, str]:
    """Map the paths of leaves, as Parquet names them, to their columns; names may have dots."""
    leaves: dict[str, str] = {}
    for field in schema:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, pa.schema([field])):
            pass
        parquet = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
        leaves |= {parquet.column(i).path: field.name for i in range(len(parquet.names))}
    return leaves
