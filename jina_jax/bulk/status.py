"""How far a job is: from its plan, a listing of its output, and the statistics of its shards."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jina_jax.bulk.plan import LEASES, STATS, Manifest, find_plan
from jina_jax.bulk.stores import Store

_READS_AT_ONCE = 16
_PATIENCE = 3  # a worker is at work for so many times its longest shard after its last one
_LEAST_PATIENCE = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    """A process that committed shards.

    Attributes:
      name: its host and process id, "host:pid".
      shards: how many it committed.
      tokens_per_second: from the begin of its first to the end of its last.
      finished: when it committed its last, UTC.
      is_working: whether shards are left, and that was not long ago for the time of its shards.
    """

    name: str
    shards: int
    tokens_per_second: float
    finished: datetime.datetime
    is_working: bool


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a job is.

    Attributes:
      url: of the output.
      shards, done: planned, and in the output.
      rows: in the output.
      all_rows: of the inputs; None if that is known only at the end.
      tokens: encoded.
      bad: rows that are not in the output.
      tokens_per_second: of the workers that are at work, together.
      seconds_left: with these; None without any, 0 at the end.
      workers: that committed shards.
      leases: shard's number → who has it, of shards that are not done.
    """

    url: str
    shards: int
    done: int
    rows: int
    all_rows: int | None
    tokens: int
    bad: int
    tokens_per_second: float
    seconds_left: float | None
    workers: tuple[WorkerStatus, ...]
    leases: dict[int, str]


def read_plan(store: Store) -> Manifest:
    """Return the plan of an output.

    Raises:
      FileNotFoundError: if it has none.
      PlanError: if it is none of this version.
    """
    plan = find_plan(store)
    if plan is None:
        raise FileNotFoundError(f"{store.url}: expected the output of a bulk job, found no plan")
    return plan


def status(store: Store, now: datetime.datetime | None = None) -> Status:
    """Report how far a job is.

    Args:
      store: the output.
      now: the time; None for this machine's.

    Raises:
      FileNotFoundError: if the output has no plan.
    """
    plan = read_plan(store)
    done = plan.done(store)
    found = read_statistics(store, plan, done)
    now = now or datetime.datetime.now(datetime.UTC)
    workers = tuple(_workers(found.values(), now, len(done) < len(plan.shards)))
    rate = sum(worker.tokens_per_second for worker in workers if worker.is_working)
    return Status(
        url=store.url,
        shards=len(plan.shards),
        done=len(done),
        rows=sum(own["rows"] for own in found.values()),
        all_rows=plan.rows,
        tokens=sum(own["tokens"] for own in found.values()),
        bad=sum(own["bad"] for own in found.values()),
        tokens_per_second=rate,
        seconds_left=_seconds_left(plan, found, done, rate),
        workers=workers,
        leases=_leases(store, plan, done),
    )


def read_statistics(store: Store, plan: Manifest, shards: Iterable[int]) -> dict[int, Any]:
    """Return the statistics of shards by number, of those that have some."""
    return _read(store, STATS, {shard: f"{plan.name(shard)}.json" for shard in sorted(shards)})


def _read(store: Store, folder: str, names: dict[int, str]) -> dict[int, Any]:
    """Return the JSON of files by shard; a file that has just been removed is left out."""
    there = set(store.names(folder))
    names = {shard: f"{folder}/{name}" for shard, name in names.items() if name in there}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        contents = pool.map(store.read, names.values())
    found = zip(names, contents, strict=True)
    return {shard: json.loads(content) for shard, content in found if content is not None}


def _workers(
    found: Iterable[dict[str, Any]], now: datetime.datetime, is_going_on: bool
) -> Iterable[WorkerStatus]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for own in found:
        by_name.setdefault(f"{own['host']}:{own['pid']}", []).append(own)
    for name, shards in sorted(by_name.items()):
        ends = [datetime.datetime.fromisoformat(own["finished"]) for own in shards]
        seconds = [own["seconds"] for own in shards]
        begins = [
            end - datetime.timedelta(seconds=own) for end, own in zip(ends, seconds, strict=True)
        ]
        span = max((max(ends) - min(begins)).total_seconds(), 1e-3)
        patience = max(_PATIENCE * max(seconds), _LEAST_PATIENCE)
        yield WorkerStatus(
            name=name,
            shards=len(shards),
            tokens_per_second=sum(own["tokens"] for own in shards) / span,
            finished=max(ends),
            is_working=is_going_on and (now - max(ends)).total_seconds() <= patience,
        )


def _seconds_left(
    plan: Manifest, found: dict[int, Any], done: set[int], rate: float
) -> float | None:
    """Return the time for the texts that are left, if they have as many tokens per byte."""
    missing = sum(plan.size(shard) for shard in range(len(plan.shards)) if shard not in done)
    size = sum(plan.size(shard) for shard in found)
    if len(done) == len(plan.shards):
        return 0.0
    if not rate or not size:
        return None
    return missing * sum(own["tokens"] for own in found.values()) / size / rate


def _leases(store: Store, plan: Manifest, done: set[int]) -> dict[int, str]:
    missing = [shard for shard in range(len(plan.shards)) if shard not in done]
    found = _read(store, LEASES, {shard: f"{plan.name(shard)}.json" for shard in missing})
    return {shard: own["worker"] for shard, own in found.items()}
