"""Requests in, vectors out, without a pause: while the device computes, a thread prepares the next.

Requests are read a *pool* at a time: enough for many full steps, yet few enough for the device to
start early, and for memory to be bounded however many there are. A pool is prepared ahead, in a
thread, whose only result is what it returns; batches are made, run and added up in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeGuard, TypeVar

import numpy as np

from jina_jax.runtime.batching import CompleteBatching
from jina_jax.runtime.distributed import share_preparation, spans_processes
from jina_jax.runtime.engine import Engine, Step
from jina_jax.runtime.packing import Batch, make_batches
from jina_jax.runtime.requests import Item, Preparation, Prepared, Request

_T = TypeVar("_T")
_STEPS_IN_POOL = 32
_STEPS_IN_FIRST_POOL = 4
_CHARACTERS_PER_TOKEN = 4


class Result(NamedTuple):
    """The vectors of one request.

    Attributes:
      position: of the request in the input.
      vectors: float32 (n, D), one per chunk, or one; under ``pooling=None`` one per token. Often a
        view of a step's result: copy what is to be kept.
      prepared: what was encoded, and what was cut off.
    """

    position: int
    vectors: np.ndarray
    prepared: Prepared


class _Part(NamedTuple):
    """An item with the sum that its vectors belong to."""

    item: Item
    sum: _Sum


class _Sum:
    """The vectors of a request, as far as its items have been encoded."""

    def __init__(self, position: int, prepared: Prepared):
        self.position, self.prepared = position, prepared
        self._missing = len(prepared.items)
        self._vectors: np.ndarray | None = None

    def add(self, item: Item, vectors: np.ndarray) -> Iterator[Result]:
        """Add an item's vectors, (pieces, D) or its own; yield the result once it is complete."""
        self._missing -= 1
        if item.pieces:
            if self._vectors is None:
                self._vectors = np.zeros((self.prepared.vectors, vectors.shape[-1]), np.float32)
            for piece, vector in zip(item.pieces, vectors, strict=False):
                self._vectors[piece.vector] += np.float32(piece.weight) * vector
            vectors = self._vectors
        if not self._missing:
            yield Result(self.position, vectors, self.prepared)


class Pipeline:
    """Runs requests through an engine.

    Args:
      engine: the encoder.
      batching: how items are put into batches (``Batching.on``).
      preparation: how requests become items.
      pooling: as for ``jina_jax.nn.pooling.pool``; None for the vectors of all tokens.

    Attributes:
      used, computed: tokens so far, and positions that were computed for them.
    """

    def __init__(
        self,
        engine: Engine,
        batching: CompleteBatching,
        preparation: Preparation,
        pooling: str | None,
    ):
        self._engine, self._batching = engine, batching
        self._preparation, self._pooling = preparation, pooling
        self.used = self.computed = 0

    @property
    def padding(self) -> float:
        """Share of the computed positions that held no token."""
        return 1 - self.used / self.computed if self.computed else 0.0

    def run(self, requests: Iterable[Request | None]) -> Iterator[Result]:
        """Encode requests.

        Args:
          requests: read as they are needed, about a pool ahead of the device. None among them
            means that nothing more is there for now: results of those before it are yielded
            without waiting for more. On a mesh of several processes, the same requests on each.

        Yields:
          Each request's result, once it is complete: near the order of requests, not in it.
        """
        under_way: deque[list[_Part]] = deque()
        empty: deque[Result] = deque()

        def steps() -> Iterator[Step | None]:
            for pool in self._prepared(requests):
                if not pool:
                    yield None
                sums = [_Sum(position, prepared) for position, prepared in pool]
                empty.extend(self._empty(own) for own in sums if not own.prepared.items)
                parts = [_Part(item, own) for own in sums for item in own.prepared.items]
                for batch in self._batches(parts):
                    mine = [parts[i] for i in batch.indices]
                    under_way.append(mine)
                    yield Step(batch, _tasks(batch, mine), _pool_spans(batch, mine))

        for step, output in self._engine.run(steps(), self._pooling):
            for part, vectors in _split(step, under_way.popleft(), output, self._pooling):
                yield from part.sum.add(part.item, vectors)
            while empty:
                yield empty.popleft()
        yield from empty

    def _prepared(self, requests: Iterable[Request | None]) -> Iterator[list[tuple[int, Prepared]]]:
        """Yield pools of prepared requests with their positions."""
        if spans_processes(self._engine.mesh):
            # Processes share the work by collectives, which must not meet those of the device.
            everything = [request for request in requests if request is not None]
            yield list(enumerate(share_preparation(everything, self._preparation)))
            return
        if isinstance(requests, Sequence) and self._is_one_pool(requests):
            # A thread would save nothing, and delay calls of several threads.
            yield list(enumerate(self._preparation(requests)))
            return
        pools = self._pools(requests)
        start = 0
        for pool in ahead(map(self._preparation, pools)):
            yield list(enumerate(pool, start))
            start += len(pool)

    def _pools(self, requests: Iterable[Request | None]) -> Iterator[list[Request]]:
        """Yield pools, and an empty one for each None."""
        step = self._characters_per_step
        pool: list[Request] = []
        characters, most = 0, _STEPS_IN_FIRST_POOL * step
        for request in requests:
            if request is not None:
                pool.append(request)
                characters += len(request.text)
            if pool and (request is None or characters >= most):
                yield pool
                pool, characters, most = [], 0, _STEPS_IN_POOL * step
            if request is None:
                yield []
        if pool:
            yield pool

    @property
    def _characters_per_step(self) -> int:
        return self._batching.token_budget * self._engine.row_multiple * _CHARACTERS_PER_TOKEN

    def _is_one_pool(self, requests: Sequence[Request | None]) -> TypeGuard[Sequence[Request]]:
        """Return whether nothing is left to prepare while the device computes."""
        characters = sum(len(request.text) for request in requests if request is not None)
        is_short = characters < _STEPS_IN_FIRST_POOL * self._characters_per_step
        return is_short and None not in requests

    def _batches(self, parts: list[_Part]) -> list[Batch]:
        ids = [part.item.ids for part in parts]
        engine = self._engine
        batches = make_batches(ids, self._batching, engine.config.pad_token_id, engine.row_multiple)
        self.used += sum(map(len, ids))
        self.computed += sum(batch.input_ids.size for batch in batches)
        return batches

    def _empty(self, own: _Sum) -> Result:
        width = self._engine.config.hidden_size
        return Result(own.position, np.zeros((0, width), np.float32), own.prepared)


def ahead(values: Iterator[_T]) -> Iterator[_T]:
    """Yield values, each computed in a thread while the one before is being used."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, values, nothing)
        while (value := coming.result()) is not nothing:
            coming = pool.submit(next, values, nothing)
            yield value  # type: ignore[misc]


def _tasks(batch: Batch, parts: Sequence[_Part]) -> np.ndarray | None:
    """Return the tasks of a batch's slots, int32 (B, S); None if no text has one."""
    tasks = np.full(batch.text_spans.shape[:2], -1, np.int32)
    tasks[batch.rows, batch.slots] = [part.sum.prepared.task_id for part in parts]
    return tasks if (tasks >= 0).any() else None


def _pool_spans(batch: Batch, parts: Sequence[_Part]) -> np.ndarray | None:
    """Return the ranges to pool in each row, int32 (B, P, 2); None if they are the texts."""
    if not any(part.item.pieces for part in parts):
        return None
    rows: list[list[tuple[int, int]]] = [[] for _ in batch.input_ids]
    for row, slot, part in zip(batch.rows, batch.slots, parts, strict=True):
        start, stop = batch.text_spans[row, slot].tolist()
        own = [(piece.start, piece.stop) for piece in part.item.pieces] or [(0, stop - start)]
        rows[row] += [(start + left, start + right) for left, right in own]
    most = max(map(len, rows))
    spans = np.zeros((len(rows), 1 << (most - 1).bit_length(), 2), np.int32)
    for row, found in enumerate(rows):
        spans[row, : len(found)] = np.reshape(found, (-1, 2))
    return spans


def _split(
    step: Step, parts: Sequence[_Part], output: np.ndarray, pooling: str | None
) -> Iterator[tuple[_Part, np.ndarray]]:
    """Split a step's result by item."""
    batch = step.batch
    taken = np.zeros(len(batch.input_ids), np.int64)  # ranges of each row used so far
    for row, slot, part in zip(batch.rows, batch.slots, parts, strict=True):
        if pooling is None:
            start, stop = batch.text_spans[row, slot]
        elif step.pool_spans is None:
            start, stop = slot, slot + 1
        else:
            start = taken[row]
            stop = taken[row] = start + (len(part.item.pieces) or 1)
        yield part, output[row, start:stop]
