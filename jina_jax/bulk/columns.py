"""Types of a job's columns: the same for all of its files, and such as Parquet has."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.bulk.settings import Settings


def unified(schemas: Sequence[pa.Schema], settings: Settings) -> pa.Schema:
    """Return the columns with types for all files; texts are bytes, which are checked one by one.

    Types are those that Parquet gives back, so that the output has the plan's.

    Raises:
      ValueError: for types that have nothing in common, or files without any rows and columns.
    """
    if not schemas:
        raise ValueError("inputs: expected rows, got files without any")
    try:
        columns = pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    except pa.ArrowException as error:
        raise ValueError(f"inputs: expected columns of the same types: {error}") from None
    texts = {*settings.text, settings.task_column} - {settings.id, *settings.columns}
    for index, field in enumerate(columns):
        if field.name in texts:
            columns = columns.set(index, pa.field(field.name, pa.binary()))
        elif pa.types.is_null(field.type):  # of JSONL, whose first rows alone were looked at
            columns = columns.set(index, pa.field(field.name, pa.string()))
        else:
            columns = columns.set(index, pa.field(field.name, _stored_type(field)))
    return columns


def _stored_type(field: pa.Field) -> pa.DataType:
    """Return the type with which Parquet gives a column back: it has no seconds and no ``date64``.

    Raises:
      ValueError: for a type that Parquet cannot have.
    """
    sink = pa.BufferOutputStream()
    try:
        with pq.ParquetWriter(sink, pa.schema([field])):
            pass
        stored = pq.read_schema(pa.BufferReader(sink.getvalue())).field(0).type
    except (pa.ArrowException, NotImplementedError) as error:
        raise ValueError(
            f"columns: {field.name!r} of {field.type} cannot be in Parquet ({error})"
        ) from None
    return field.type if stored == field.type else stored
