"""The rows that a shard must have: those of its part of the inputs, but for bad rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.bulk.ids import comparable, ids_of
from jina_jax.bulk.plan import ERRORS, Manifest
from jina_jax.bulk.settings import Settings
from jina_jax.bulk.sources import open_source
from jina_jax.bulk.stores import Store


class Expected(NamedTuple):
    """Rows of inputs, in their order.

    Attributes:
      keys: their ids, or (file, row).
      texts: per column of texts, each row's; no columns unless they were asked for.
      tasks: each row's own task, None for the column's.
    """

    keys: list[Any]
    texts: list[list[str | None]]
    tasks: list[str | None]


def read_errors(store: Store, plan: Manifest, shard: int) -> set[tuple[str, int]]:
    """Return (file, row) of a shard's bad rows."""
    content = store.read(f"{ERRORS}/{plan.name(shard)}.parquet")
    if content is None:
        return set()
    table = pq.read_table(pa.BufferReader(content), columns=["file", "row"])
    return set(zip(*(column.to_pylist() for column in table.columns), strict=True))


def read_expected(store: Store, plan: Manifest, shard: int, *, texts: bool) -> Expected:
    """Read the rows that a shard must have.

    Args:
      store: the output.
      plan: its plan.
      shard: a shard's number.
      texts: read the texts and tasks, too.

    Raises:
      OSError, ValueError: if an input cannot be read.
    """
    settings = plan.settings
    bad = read_errors(store, plan, shard)
    names = list(settings.text) if texts or settings.id is None else []
    own_tasks = settings.task_column if texts else None
    names += [name for name in (settings.id, own_tasks) if name is not None]
    schema = pa.schema([plan.columns.field(name) for name in dict.fromkeys(names)])
    found = Expected([], [[] for _ in settings.text] if texts else [], [])
    for piece in plan.shards[shard]:
        file = plan.inputs[piece.file]
        for batch in open_source(file).read(piece, schema, is_checked=True):
            rows = batch.rows.tolist()
            keys = [(file.url, row) for row in rows]
            kept = np.array([key not in bad for key in keys], bool)
            table = pa.Table.from_batches([batch.table]).filter(pa.array(kept))
            if settings.id is None:
                found.keys.extend(key for key, is_kept in zip(keys, kept, strict=True) if is_kept)
            else:
                kind = plan.columns.field(settings.id).type
                found.keys.extend(comparable(ids_of(table.column(settings.id).cast(kind))))
            if texts:
                for column, name in zip(found.texts, settings.text, strict=True):
                    column.extend(_strings(table, name))
                found.tasks.extend(_strings(table, own_tasks))
    return found


def _strings(table: pa.Table, name: str | None) -> list[str | None]:
    if name is None:
        return [None] * table.num_rows
    return table.column(name).cast(pa.large_string()).to_pylist()


def keys_of(table: pa.Table, settings: Settings) -> list[Any]:
    """Return the ids of rows of the output, or their (file, row)."""
    if settings.id is not None:
        return comparable(ids_of(table.column(settings.id)))
    names = ("file", "row")
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def first_rows(table: pa.Table, settings: Settings) -> np.ndarray:
    """Return the first row of each text in the output, int64; with chunks it may have several."""
    if settings.chunks is None:
        return np.arange(table.num_rows)
    chunks = table.column("chunk").fill_null(0).to_numpy()
    return np.flatnonzero(chunks == 0)


def row_problems(table: pa.Table, settings: Settings, expected: Expected) -> Iterator[str]:
    """Compare the columns that name rows with the rows of the inputs; yield what differs."""
    keys, firsts = keys_of(table, settings), first_rows(table, settings)
    named = settings.id or "(file, row)"
    own = [keys[i] for i in firsts.tolist()]
    if len(own) != len(expected.keys):
        yield f"expected the {len(expected.keys)} rows of the inputs, got {len(own)}"
    for i, key, wanted in zip(firsts.tolist(), own, expected.keys, strict=False):
        if key != wanted:
            yield f"row {i}: expected {named} {wanted!r}, as in the inputs, got {key!r}"
            break
    repeated = [key for key, count in Counter(own).items() if count > 1]
    if repeated:
        yield f"{named}: {len(repeated)} values are not unique, as {repeated[0]!r}"
    if settings.chunks is not None:
        yield from _chunk_problems(table, keys, firsts)


def _chunk_problems(table: pa.Table, keys: list[Any], firsts: np.ndarray) -> Iterator[str]:
    """Yield the first row that is neither a text's first chunk nor the next one of that text."""
    chunks = table.column("chunk").fill_null(0).to_numpy()
    counts = np.diff(np.append(firsts, len(keys)))
    starts = np.repeat(firsts, counts)
    if len(starts) != len(keys):
        yield "row 0: expected chunk 0"
        return
    wrong = np.flatnonzero(chunks != np.arange(len(keys)) - starts)
    moved = [i for i, first in enumerate(starts.tolist()) if keys[i] != keys[first]]
    for i in sorted([*wrong[:1].tolist(), *moved[:1]])[:1]:
        yield f"row {i}: expected the next chunk of {keys[starts[i]]!r}"
