"""Status and verification of outputs that are made here without a network."""

import datetime
import json
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.bulk import tables
from jina_jax.bulk.inputs import list_inputs
from jina_jax.bulk.plan import ModelId, agree
from jina_jax.bulk.settings import KINDS, Settings
from jina_jax.bulk.sources import open_source
from jina_jax.bulk.status import status
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import (
    TableWriter,
    errors_schema,
    output_schema,
    read_vectors,
    vector_array,
)
from jina_jax.bulk.verify import verify
from jina_jax.runtime.results import Chunks

DIM, BAD = 16, "id-7"  # the row that is not in the output
FINISHED = "2026-01-01T00:00:{:02d}+00:00"


def vector(text, task):
    seed = [*text.encode(), len(task or "")]
    own = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return own / np.linalg.norm(own)


class Model:
    """Encodes as the outputs here are made; ``bias`` makes it another model."""

    def __init__(self, bias=0.0):
        self.bias = bias

    def encode(self, texts, *, task, truncate_dim, long_text, **options):
        assert truncate_dim == DIM
        warnings.warn("1 of 2 texts were longer than max_length=8 tokens", stacklevel=2)
        return np.stack([vector(*own) + self.bias for own in zip(texts, task, strict=True)])

    def encode_chunks(self, texts, chunks, *, task, **options):
        found = []
        for text, own in zip(texts, task, strict=True):
            spans = [(at, min(at + chunks, len(text))) for at in range(0, len(text), chunks)]
            vectors = [vector(text[start:stop], own) + self.bias for start, stop in spans]
            found.append(Chunks(spans, np.array(vectors).reshape(-1, DIM)))
        return found


def make(folder, **options):
    """Write two inputs, a plan of three shards, and their files; return the store and the plan."""
    (folder / "in").mkdir()
    for k, own in enumerate((range(8), range(8, 24))):
        texts = [None if i % 5 == 4 else f"a text with number {i}" for i in own]
        tasks = ["classification" if i % 2 else None for i in own]
        columns = {"id": [f"id-{i}" for i in own], "body": pa.array(texts, pa.string())}
        table = pa.table(columns | {"task": pa.array(tasks, pa.string())})
        pq.write_table(table, folder / "in" / f"{k}.parquet", row_group_size=4)
    given = {"text": ("body",), "tasks": ("separation",), "id": "id", "dim": DIM, **options}
    store, settings = Store(str(folder / "out")), Settings(**given)
    inputs = list_inputs([str(folder / "in")])
    plan = agree(store, inputs, settings, ModelId("m", "0"), shard_rows=8, shard_bytes=1 << 20)
    for shard in range(len(plan.shards)):
        write_shard(store, plan, shard)
    return store, plan


def write_shard(store, plan, shard):
    settings, rows, bad = plan.settings, [], []
    for piece in plan.shards[shard]:
        file = plan.inputs[piece.file]
        for batch in open_source(file).read(piece, plan.columns):
            numbers = batch.rows.tolist()
            for number, row in zip(numbers, batch.table.to_pylist(), strict=True):
                row |= {"file": file.url, "row": number}
                for name in ("body", "task"):
                    if isinstance(row.get(name), bytes):  # as texts are read, to check each
                        row[name] = row[name].decode()
                (bad if row.get("id") == BAD else rows).append(row)
    rows = [own for row in rows for own in chunked(row, settings)]
    schema = output_schema(settings, plan.columns, {"plan": plan.hash, "shard": shard})
    pairs = [(row["body"] or "", row.get("task") or "separation") for row in rows]
    vectors = [vector(*own) for own in pairs]
    valid = np.array([row["body"] is not None for row in rows])
    embedding = vector_array(np.array(vectors, np.float32), settings.kind, valid)
    columns = [
        embedding
        if field.name == "embedding"
        else pa.array([r[field.name] for r in rows], field.type)
        for field in schema
    ]
    put_table(store, f"{plan.name(shard)}.parquet", pa.Table.from_arrays(columns, schema=schema))
    if bad:
        errors = [row | {"column": "body", "reason": "too long"} for row in bad]
        table = pa.Table.from_pylist(errors, errors_schema(pa.string()))
        put_table(store, f"_errors/{plan.name(shard)}.parquet", table)
    statistics = {"rows": len(rows), "bad": len(bad), "tokens": 100, "seconds": 10.0}
    statistics |= {"host": "h", "pid": shard // 2, "finished": FINISHED.format(20 + 10 * shard)}
    store.put(f"_stats/{plan.name(shard)}.json", json.dumps(statistics).encode())


def chunked(row, settings):
    if settings.chunks is None:
        return [row]
    if row["body"] is None:
        return [row | {"chunk": None, "start": None, "stop": None}]
    own = Model().encode_chunks([row["body"]], settings.chunks, task=[None])[0].spans
    return [
        row | {"body": row["body"][start:stop], "chunk": k, "start": start, "stop": stop}
        for k, (start, stop) in enumerate(own)
    ]


def put_table(store, name, table):
    with store.scratch("table") as path:
        with TableWriter(path, table.schema) as writer:
            writer.write(table)
        store.put(name, path.read_bytes())


def change(store, plan, shard, edit):
    """Replace a shard by what ``edit`` makes of its table."""
    name = f"{plan.name(shard)}.parquet"
    put_table(store, name, edit(pq.read_table(pa.BufferReader(store.read(name)))))


def set_vector(row, value):
    """Return an edit that sets all elements of a vector, which may be null before."""

    def edit(table):
        found, valid = read_vectors(table.column("embedding"), "float32", DIM)
        vectors = np.zeros((len(valid), DIM), np.float32)
        vectors[valid] = found
        vectors[row], valid[row] = value, True
        column = vector_array(vectors, "float32", valid)
        return table.set_column(1, table.schema.field("embedding"), column)

    return edit


@pytest.mark.parametrize(
    "options",
    [
        *({"kind": kind} for kind in KINDS),
        {"id": None},
        {"chunks": 6},
        {"chunks": 6, "kind": "float16"},
        {"columns": ("body",)},
        {"task_column": "task"},
    ],
)
def test_an_output_that_is_right_has_no_problems(options, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    store, plan = make(tmp_path, **options)
    assert len(plan.shards) == 3
    assert verify(store) == []
    assert verify(store, Model(), sample=24) == []
    [*others] = verify(store, Model(bias=1.0), sample=24)
    assert others
    assert all("encoded again" in own for own in others)


@pytest.mark.parametrize(
    ("edit", "problems"),
    [
        (lambda t: t.take([1, 0, *range(2, 8)]), ["row 0: expected id 'id-8', as in the inputs"]),
        (
            lambda t: t.slice(1),
            ["rows: 8 in the statistics, 7", "expected the 8 rows", "row 0: ex"],
        ),
        (
            lambda t: t.take([0, 0, *range(2, 8)]),
            ["row 1: expected id 'id-9'", "id: 1 values are not unique, as 'id-8'"],
        ),
        (set_vector(3, np.nan), ["row 3: embedding has length nan, expected 1 ± 1e-05"]),
        (set_vector(5, 0.251), ["row 5: embedding has length 1.004, expected 1"]),
        (lambda t: t.drop_columns("embedding"), ["expected columns"]),
        (
            lambda t: t.replace_schema_metadata({"jina_jax": '{"plan": "x", "shard": 1}'}),
            ["expected plan", "got x"],
        ),
        (lambda t: t.replace_schema_metadata(), ["expected plan", "expected shard 1 in the meta"]),
    ],
)
def test_what_is_wrong_with_a_shard(edit, problems, tmp_path):
    store, plan = make(tmp_path)
    change(store, plan, 1, edit)
    found = verify(store)
    assert found
    assert all(own.startswith(f"{plan.name(1)}.parquet: ") for own in found)
    assert all(any(problem in own for own in found) for problem in problems), found


def test_files_that_are_missing_torn_or_of_another_plan(tmp_path):
    store, plan = make(tmp_path)
    names = [f"{plan.name(shard)}.parquet" for shard in range(3)]
    store.put("part-00000-12345678.parquet", b"")
    store.remove(names[0])
    store.put(names[1], store.read(names[1])[:-20])
    store.remove(f"_stats/{plan.name(2)}.json")
    missing, foreign, torn, statistics = verify(store)
    assert missing == f"{names[0]}: is missing"
    assert foreign == "part-00000-12345678.parquet: is no shard of the plan"
    assert torn.startswith(f"{names[1]}: cannot be read (")
    assert statistics == f"{names[2]}: its statistics are missing"


def test_a_bad_row_that_is_nowhere(tmp_path):
    store, plan = make(tmp_path)
    store.remove(f"_errors/{plan.name(0)}.parquet")
    first, second, *_ = verify(store)
    assert first.endswith("bad: 1 in the statistics, 0 in the output")
    assert second.endswith("expected the 8 rows of the inputs, got 7")


def test_inputs_that_changed(tmp_path):
    store, _ = make(tmp_path)
    os.utime(tmp_path / "in" / "0.parquet", ns=(5, 5))
    (tmp_path / "in" / "1.parquet").unlink()
    changed, missing = verify(store, Model(), sample=5)
    assert changed.endswith("0.parquet: has changed since the plan was made")
    assert missing.endswith("1.parquet: the input is missing; its rows cannot be compared")


def test_chunks_that_are_not_in_order(tmp_path):
    store, plan = make(tmp_path, chunks=6)
    change(store, plan, 0, lambda t: t.take([0, 2, 1, *range(3, t.num_rows)]))
    assert verify(store) == [f"{plan.name(0)}.parquet: row 1: expected the next chunk of 'id-0'"]


def test_a_vector_where_there_is_no_text(tmp_path):
    store, plan = make(tmp_path)
    change(store, plan, 1, set_vector(1, 0.25))
    found = verify(store, Model(), sample=200)
    assert f"{plan.name(1)}.parquet: row 1: embedding: expected no vector" in "\n".join(found)


def test_status(tmp_path):
    store, plan = make(tmp_path)
    store.remove(f"{plan.name(2)}.parquet")
    lease = {"worker": "w", "beat": 3}
    for shard in (1, 2):
        store.put(f"_leases/{plan.name(shard)}.json", json.dumps(lease).encode())
    now = datetime.datetime.fromisoformat("2026-01-01T00:00:45+00:00")
    found = status(store, now)
    assert (found.shards, found.done, found.rows, found.all_rows) == (3, 2, 15, 24)
    assert (found.tokens, found.bad) == (200, 1)
    (worker,) = found.workers
    assert (worker.name, worker.shards, worker.is_working) == ("h:0", 2, True)
    assert found.tokens_per_second == worker.tokens_per_second == 10  # 200 tokens, 00:10 to 00:30
    assert found.seconds_left == pytest.approx(10, rel=0.1)
    assert found.leases == {2: "w"}
    later = status(store, now + datetime.timedelta(hours=1))
    assert (later.tokens_per_second, later.seconds_left) == (0, None)


def test_status_at_the_end_and_without_a_plan(tmp_path):
    store, _ = make(tmp_path)
    end = datetime.datetime.fromisoformat("2026-01-01T00:00:45+00:00")
    found = status(store, end)
    assert found.seconds_left == 0
    assert not any(worker.is_working for worker in found.workers)
    with pytest.raises(FileNotFoundError, match="expected the output of a bulk job"):
        status(Store(str(tmp_path / "in")))
    with pytest.raises(FileNotFoundError, match="expected the output of a bulk job"):
        verify(Store(str(tmp_path / "none")))
