"""Errors of a bulk job in each of its threads: it ends, with the error, and commits no part."""

import os
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.bulk import job, tables
from jina_jax.bulk.leases import Leases
from jina_jax.bulk.output import ShardFiles
from jina_jax.bulk.plan import MANIFEST
from jina_jax.bulk.sources import ParquetSource
from jina_jax.bulk.stores import Store

ROWS = 30


@pytest.fixture
def planned(directory, tmp_path):
    """A plan of three shards, and its output."""
    columns = {"id": list(range(ROWS)), "body": [f"text {i}" for i in range(ROWS)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=5)
    store = Store(str(tmp_path / "out"))
    settings = job.resolve(directory, text=["body"], id="id")
    plan = job.plan(
        [str(tmp_path / "a.parquet")], store, settings, directory, name="m", shard_rows=10
    )
    return plan, store


def leftovers(store):
    return [name for name in (*store.names(), *store.names("_tmp")) if name != MANIFEST]


def test_a_shard_whose_rows_cannot_be_written_is_not_committed(model, planned, monkeypatch):
    plan, store = planned

    def write(*_):
        raise ValueError("not to be written")

    def shards():
        yield 0
        time.sleep(1)  # meanwhile nobody asks how the writing went

    monkeypatch.setattr(ShardFiles, "write", write)
    with pytest.raises(ValueError, match="not to be written"):
        job.work(model, plan, store, shards())
    assert leftovers(store) == []


def test_a_shard_is_put_last_and_only_if_it_is_not_there(model, planned, monkeypatch):
    """Of two workers, the second leaves the first one's table; what belongs to it precedes it."""
    plan, store = planned
    put_new, there = Store.put_new, []

    def watch(own, name, data):
        there.append((name, own.names("_stats")))
        return put_new(own, name, data)

    monkeypatch.setattr(Store, "put_new", watch)
    job.work(model, plan, store, [0])
    assert there == [(f"{plan.name(0)}.parquet", [f"{plan.name(0)}.json"])]
    store.put(f"{plan.name(0)}.parquet", b"of another")
    job.work(model, plan, store, [0])
    assert store.read(f"{plan.name(0)}.parquet") == b"of another"


def test_an_input_that_changes_while_it_is_read(model, planned, tmp_path, monkeypatch):
    plan, store = planned
    source = tmp_path / "a.parquet"
    read = ParquetSource.read

    def change(*arguments, **options):
        yield from read(*arguments, **options)
        os.utime(source, ns=(5, 5))

    monkeypatch.setattr(ParquetSource, "read", change)
    with pytest.raises(ValueError, match=r"a\.parquet: has changed since the plan was made"):
        job.work(model, plan, store, [0])
    assert leftovers(store) == []


def test_a_full_disk_is_named_and_leaves_nothing(model, planned, monkeypatch):
    plan, store = planned

    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.TableWriter, "write", write)
    with pytest.raises(OSError, match=r"No space left on device: '.*out/part-0000[01]"):
        job.work(model, plan, store, [0, 1])
    assert leftovers(store) == []


def test_a_worker_whose_commit_fails_waits_for_no_other(model, planned, monkeypatch):
    plan, store = planned
    commit = ShardFiles.commit

    def fail(files, more):
        if files.shard != 0:
            return commit(files, more)
        time.sleep(0.5)  # the leases of others are waited for
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardFiles, "commit", fail)
    for shard in (1, 2):  # of a worker that renews its lease for ever
        store.put_new(f"_leases/{plan.name(shard)}.json", b"{}")
    ended = []

    def work():
        with Leases(store, "one", seconds=600, heartbeat=300, pause=0.05) as leases:
            try:
                job.work(model, plan, store, job.leased_shards(plan, leases), stop=leases.stop)
            except OSError as error:
                ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert [error.errno for error in ended] == [28]
    assert store.names("_leases") == [f"{plan.name(shard)}.json" for shard in (1, 2)]


@pytest.mark.parametrize("where", ["read", "device"])
def test_errors_of_other_threads_end_the_job(model, planned, monkeypatch, where):
    plan, store = planned

    def fail(*_):
        raise MemoryError(where)

    if where == "read":
        monkeypatch.setattr("jina_jax.bulk.shards.open_source", fail)
    else:
        monkeypatch.setattr(model.engine, "run", fail)
    with pytest.raises(MemoryError, match=where):
        job.work(model, plan, store, [0, 1, 2])
    assert leftovers(store) == []
