"""Shards as tasks of Ray: actors with a model each, on all machines of a cluster.

An actor that dies, alone or with its machine, costs the shard that it had: another gets that shard,
and a new actor starts where there is room. Actors that wait for room make a cluster grow that can;
nothing is given to an actor before its model is loaded. (Ray's own retries would leave a shard to
its actor, and wait for a machine that may never return.)
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from jina_jax.bulk import job
from jina_jax.bulk.local_disk import absolute
from jina_jax.bulk.shards import Progress
from jina_jax.bulk.status import read_plan
from jina_jax.bulk.stores import Store

if TYPE_CHECKING:
    from jina_jax.bulk.plan import Manifest

_MOST_DEATHS = 5  # of actors with the same shard, or of actors in a row that load their model
_SECONDS = 5.0  # after which the size of the cluster is looked at again


class Computer:
    """An actor: a model, and the job that it computes shards of.

    Args:
      url: of the output.
      directory: of the model, on the actor's machine.
    """

    def __init__(self, url: str, directory: str):
        self._store, self._directory = Store(url), Path(directory)

    def load(self) -> None:
        """Load the model. (Ray would take an error of ``__init__`` for a death.)"""
        self._manifest = read_plan(self._store)
        job.check_model(self._manifest, self._directory)
        self._model = job.load(self._directory, self._manifest.settings)

    def compute(self, shard: int) -> list[Progress]:
        """Compute a shard; return what was written."""
        found: list[Progress] = []
        job.work(self._model, self._manifest, self._store, [shard], found.append)
        return found


def run(
    address: str,
    manifest: Manifest,
    store: Store,
    directory: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    actors: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> None:
    """Compute the shards that are not done on a Ray cluster.

    Args:
      address: of the cluster; "auto" for the one of this machine, "local" to start one here. A
        program that is connected already stays so.
      manifest: the plan.
      store: the output, which all machines reach by its URL.
      directory: of the model; all machines have it there.
      report: called with what was written, in this process.
      actors: most of them; more than there is room for make a cluster grow that can. None for as
        many as there is room for, now and later.
      resources: of an actor, by Ray's names; None for one GPU where the cluster has some, else one
        TPU chip, else one CPU.

    Raises:
      ConnectionError: if there is no cluster.
      RuntimeError: if actors die again and again.
      ValueError, OSError: of a worker, as without Ray.
    """
    connected = ray.is_initialized()
    if not connected:
        ray.init(address, log_to_driver=False)
    try:
        wanted = dict(resources or _resources())
        make = ray.remote(Computer).options(
            num_cpus=wanted.get("CPU", 0),
            num_gpus=wanted.get("GPU", 0),
            resources={name: n for name, n in wanted.items() if name not in ("CPU", "GPU")},
        )
        _divide(
            job.own_shards(manifest, store),
            lambda: make.remote(absolute(store.url), absolute(str(directory))),
            lambda: actors or _room(wanted),
            report,
        )
    finally:
        if not connected:
            ray.shutdown()


def _resources() -> dict[str, float]:
    """Return what an actor needs: one device of the kind that the cluster has."""
    there = ray.cluster_resources()
    return {next((kind for kind in ("GPU", "TPU") if there.get(kind)), "CPU"): 1}


def _room(wanted: Mapping[str, float]) -> int:
    """Return how many actors the cluster has room for; at least one, for which it may grow."""
    there = ray.cluster_resources()
    return max(1, int(min(there.get(kind, 0) // amount for kind, amount in wanted.items())))


def _divide(
    shards: Sequence[int],
    make: Callable[[], Any],
    room: Callable[[], int],
    report: Callable[[Progress], None],
) -> None:
    """Give shards to actors that are free, until all are done."""
    left, deaths = deque(shards), Counter[int | None]()
    tasks: dict[Any, tuple[Any, int | None]] = {}  # actors with their shard; None while they load
    while left or any(shard is not None for _, shard in tasks.values()):
        computing = sum(shard is not None for _, shard in tasks.values())
        for _ in range(min(room(), len(left) + computing) - len(tasks)):
            actor = make()
            tasks[actor.load.remote()] = actor, None
        for task in ray.wait(list(tasks), timeout=_SECONDS)[0]:
            actor, shard = tasks.pop(task)
            try:
                done = ray.get(task)
            except (RayActorError, OutOfMemoryError) as error:
                _count(deaths, shard, error)
                if shard is not None:
                    left.appendleft(shard)
                continue
            except RayTaskError as error:  # its text is a page; the cause is as without Ray
                raise error.cause or error from None
            deaths[None] = 0
            for progress in done or ():
                report(progress)
            if left:
                following = left.popleft()
                tasks[actor.compute.remote(following)] = actor, following


def _count(deaths: Counter[int | None], shard: int | None, error: Exception) -> None:
    """Count a death; raise after too many."""
    deaths[shard] += 1
    if deaths[shard] > _MOST_DEATHS:
        cause = "while they loaded the model" if shard is None else f"with shard {shard}"
        raise RuntimeError(f"ray: {deaths[shard]} actors died {cause}: {error}") from error
