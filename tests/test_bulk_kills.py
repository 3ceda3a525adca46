"""Workers of a bulk job, killed at random: every row is there once, bit for bit."""

import os
import random
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCRIPT = """
import sys
from pathlib import Path
from jina_jax.bulk import job
from jina_jax.bulk.ranks import Position
from jina_jax.bulk.stores import Store

source, output, directory, rank, world = sys.argv[1:]
directory = Path(directory)
store = Store(output)
settings = job.resolve(directory, text=["body"], id="id", tasks=["classification"], dedup=True)
plan = job.plan([source], store, settings, directory, name="m", shard_rows=25)
shards = job.own_shards(plan, store, Position(int(rank), int(world)))
job.work(job.load(directory, settings), plan, store, shards)
"""
ROWS = 600
MOST_TRIES = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.parquet"
    texts = [f"{'text ' * (i % 17)}{i % 290}" for i in range(ROWS)]
    pq.write_table(pa.table({"id": list(range(ROWS)), "body": texts}), path, row_group_size=100)
    return path


def start(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def whole(directory, source, tmp_path_factory):
    """The files of a job that nobody killed, and its seconds."""
    output = tmp_path_factory.mktemp("whole") / "vectors"
    for _ in range(2):  # the first one compiles
        begun = time.monotonic()
        with start(source, output, directory, 0, 1) as process:
            _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        if len(contents(output)) == ROWS // 25:
            break
    return contents(output), time.monotonic() - begun


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(1, 1, id="one"),
        *(pytest.param(n, 50, id=f"many-{n}", marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
)
def test_killed_workers_leave_every_row_once(directory, source, whole, tmp_path, workers, kills):
    expected, seconds = whole
    draw, output, killed = random.Random(workers), tmp_path / "vectors", 0
    for _ in range(MOST_TRIES):
        ranks = range(workers)
        started = [start(source, output, directory, rank, workers) for rank in ranks]
        if killed >= kills:
            for process in started:
                _, error = process.communicate(timeout=300)
                assert process.returncode == 0, error
            break
        for process in draw.sample(started, workers):
            time.sleep(draw.uniform(0.2, 1.0) * seconds)
            killed += process.poll() is None
            process.kill()
            process.communicate()
        there = contents(output)
        assert there.items() <= expected.items()
        if len(there) == len(expected):  # all was done before the last one was killed
            for path in output.glob("*.parquet"):
                path.unlink()
    assert contents(output) == expected
    ids = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
    assert sorted(ids.column("id").to_pylist()) == list(range(ROWS))
