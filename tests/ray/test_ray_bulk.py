"""Bulk jobs on Ray clusters of two nodes on this machine, one of which is lost."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jina_jax
from jina_jax.bulk import job
from jina_jax.bulk.stores import Store

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

TINY = Path(jina_jax.__file__).parent / "tiny"
ROWS, PER_SHARD = 400, 10


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    cluster.size = size
    cluster.add_node(**size)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def plan(tmp_path):
    table = pa.table({"id": list(range(ROWS)), "body": [f"Row {n} of all." for n in range(ROWS)]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=PER_SHARD)
    store = Store(str(tmp_path / "vectors"))
    settings = job.resolve(TINY, text=["body"], id="id", tasks=["retrieval.passage"])
    inputs = [str(tmp_path / "in.parquet")]
    return job.plan(inputs, store, settings, TINY, name="tiny", shard_rows=PER_SHARD), store


def ids(manifest, store):
    paths = [f"{store.url}/{manifest.name(k)}.parquet" for k in range(len(manifest.shards))]
    return [number for path in paths for number in pq.read_table(path)["id"].to_pylist()]


def processes(store):
    return {json.loads(store.read(f"_stats/{name}"))["pid"] for name in store.names("_stats")}


def test_a_node_is_lost_while_it_works(cluster, plan):
    from jina_jax.bulk import on_ray

    manifest, store = plan
    lost, done = [], []

    def report(progress):
        done.append(progress.shard) if progress.is_done else None
        if not lost:
            time.sleep(0.05)
            if len(processes(store)) == 2:
                lost.extend(set(cluster.worker_nodes))
                cluster.remove_node(lost[0], allow_graceful=False)

    on_ray.run(cluster.address, manifest, store, TINY, report)
    assert lost
    assert sorted(done) == list(range(len(manifest.shards)))
    assert ids(manifest, store) == list(range(ROWS))
    on_ray.run(cluster.address, manifest, store, TINY, lambda progress: pytest.fail("it is done"))


def test_an_actor_dies(cluster, plan):
    """Killed from outside, with a shard in its hands, or before; another computes it."""
    from jina_jax.bulk import on_ray

    _, store = plan

    class Killing(on_ray.Computer):
        def compute(self, shard):
            import os
            import signal

            if shard == 3 and self._store.put_new("_tmp_killed", b""):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().compute(shard)

    make, done = ray.remote(Killing).options(num_cpus=1), []
    shards = list(range(6))
    on_ray._divide(shards, lambda: make.remote(store.url, str(TINY)), lambda: 1, done.append)
    assert sorted(own.shard for own in done if own.is_done) == shards
    assert store.exists("_tmp_killed")
    assert len(processes(store)) == 2


def test_an_error_of_a_worker_ends_the_job(cluster, plan, tmp_path):
    from jina_jax.bulk import on_ray

    manifest, store = plan
    pq.write_table(pa.table({"id": [1], "body": ["changed"]}), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="has changed since the plan was made"):
        on_ray.run(cluster.address, manifest, store, TINY)


def test_another_model_is_refused(cluster, plan, tmp_path):
    from jina_jax.bulk import on_ray

    manifest, store = plan
    with pytest.raises(ValueError, match="model: expected the files of tiny, got others"):
        on_ray.run(cluster.address, manifest, store, tmp_path / "missing")
