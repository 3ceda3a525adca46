"""Workers of a bulk job, killed at random: every row is there once, bit for bit."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import loopback_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.bulk.stores import Store

SCRIPT = """
import os, sys
from pathlib import Path
import loopback_store
from jina_jax.bulk import job
from jina_jax.bulk.leases import Leases
from jina_jax.bulk.ranks import Position
from jina_jax.bulk.stores import Store

source, output, directory, rank, world = sys.argv[1:]
directory = Path(directory)
store = Store(output)
settings = job.resolve(directory, text=["body"], id="id", tasks=["classification"], dedup=True)
plan = job.plan([source], store, settings, directory, name="m", shard_rows=25)
if rank == "leases":
    with Leases(store, str(os.getpid()), seconds=4, heartbeat=1, pause=0.5) as leases:
        shards = job.leased_shards(plan, leases)
        job.work(job.load(directory, settings), plan, store, shards)
else:
    shards = job.own_shards(plan, store, Position(int(rank), int(world)))
    job.work(job.load(directory, settings), plan, store, shards)
"""
ROWS = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.parquet"
    texts = [f"{'text ' * (i % 17)}{i % 290}" for i in range(ROWS)]
    pq.write_table(pa.table({"id": list(range(ROWS)), "body": texts}), path, row_group_size=100)
    return path


def start(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def contents(url):
    store = Store(str(url))
    return {name: store.read(name) for name in store.names() if name.endswith(".parquet")}


@pytest.fixture(scope="module")
def whole(directory, source, tmp_path_factory):
    """The files of a job that nobody killed, and its seconds, with programs from the cache."""
    for name in ("first", "second"):
        output = tmp_path_factory.mktemp(name)
        begun = time.monotonic()
        finish(start(source, output, directory, 0, 1))
    return contents(output), time.monotonic() - begun


@pytest.fixture
def outputs(tmp_path):
    """Where a job may write: a directory, or an object store that fails every tenth time."""
    with loopback_store.running(fail_every=10):
        yield {"disk": str(tmp_path / "vectors"), "store": "loop://bucket/vectors"}


MANY = [(1, "ranks"), (4, "ranks"), (2, "leases"), (4, "leases")]


@pytest.mark.parametrize(
    ("place", "workers", "mode", "kills"),
    [
        pytest.param("disk", 1, "ranks", 1, id="once"),
        *(
            pytest.param(place, n, mode, 50, id=f"{place}-{n}-{mode}", marks=pytest.mark.slow)
            for place in ("disk", "store")
            for n, mode in MANY
        ),
    ],
)
def test_killed_workers_leave_every_row_once(
    directory, source, whole, outputs, place, workers, mode, kills
):
    expected, seconds = whole
    draw, output, killed = random.Random(workers), outputs[place], 0
    ranks = ["leases"] * workers if mode == "leases" else range(workers)
    while killed < kills:
        started = [start(source, output, directory, rank, workers) for rank in ranks]
        for process in draw.sample(started, workers):
            time.sleep(draw.uniform(0.2, 1.0) * seconds)
            killed += process.poll() is None
            process.kill()
            process.communicate()
        there = contents(output)
        assert there.items() <= expected.items()
        if len(there) == len(expected):  # all was done before the last one was killed
            store = Store(output)
            for name in there:
                store.remove(name)
    for process in [start(source, output, directory, rank, workers) for rank in ranks]:
        finish(process)
    assert contents(output) == expected
    tables = [pq.read_table(pa.BufferReader(own)) for _, own in sorted(expected.items())]
    assert pa.concat_tables(tables).column("id").to_pylist() == list(range(ROWS))
