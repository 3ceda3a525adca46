"""From texts to vectors without a pause: while the device computes, a thread prepares what is next.

Texts are taken a *pool* at a time: enough for many full steps, yet few enough for the device to
start early. A pool is tokenised ahead, in a thread; its batches are made and run in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from jina_jax.runtime.batching import Batch, Batching, make_batches
from jina_jax.runtime.engine import Engine, Step

_T = TypeVar("_T")
_STEPS_IN_POOL = 32
_STEPS_IN_FIRST_POOL = 4
_CHARACTERS_PER_TOKEN = 4


class Item(NamedTuple):
    """Token ids that go into one place of a batch.

    Attributes:
      text: position of their text.
      ids: at most as many as the encoder may see at once.
      pieces: (vector, start, stop), ranges of the ids, each with the vector of its text that it is
        a part of; None for one vector of all ids.
      is_last: whether the text is complete with it.
    """

    text: int
    ids: Sequence[int]
    pieces: list[tuple[int, int, int]] | None = None
    is_last: bool = True


class Pipeline:
    """Runs items through an engine.

    Args:
      engine: the encoder.
      batching: how items are put into batches.
      task_ids: int (n,), the task of each text, -1 for none.

    Attributes:
      used, computed: tokens so far, and positions that were computed for them.
    """

    def __init__(self, engine: Engine, batching: Batching, task_ids: np.ndarray):
        self._engine = engine
        self._batching = batching
        self._task_ids = task_ids
        self.used = self.computed = 0

    @property
    def padding(self) -> float:
        """Share of the computed positions that held no token."""
        return 1 - self.used / self.computed if self.computed else 0.0

    def pools(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Cut texts into pools of positions.

        Where each text is padded, texts of like length come together, the longest first; where
        texts share rows, long and short ones fit better as they come.
        """
        order: Sequence[int] = range(len(texts))
        if not self._batching.row_lengths:
            order = sorted(order, key=lambda i: -len(texts[i]))
        step = self._batching.token_budget * self._engine.row_multiple * _CHARACTERS_PER_TOKEN
        pool, characters, most = [], 0, _STEPS_IN_FIRST_POOL * step
        for i in order:
            pool.append(i)
            characters += len(texts[i])
            if characters >= most:
                yield pool
                pool, characters, most = [], 0, _STEPS_IN_POOL * step
        if pool:
            yield pool

    def run(
        self, pools: Iterable[list[Item]], pooling: str | None
    ) -> Iterator[tuple[Item, np.ndarray]]:
        """Run pools of items.

        Yields:
          Each item with its vectors: float32 (pieces or 1, D), or under ``pooling=None`` one a
          token. They are views of a step's result.
        """
        under_way: deque[list[Item]] = deque()

        def steps() -> Iterator[Step]:
            for items in pools:
                for batch in self._batches(items):
                    mine = [items[i] for i in batch.indices]
                    under_way.append(mine)
                    yield Step(batch, self._tasks(batch, mine), _spans(batch, mine))

        for step, output in self._engine.run(steps(), pooling):
            yield from _results(step, under_way.popleft(), output, pooling)

    def _batches(self, items: list[Item]) -> list[Batch]:
        engine = self._engine
        batches = make_batches(
            [item.ids for item in items],
            self._batching,
            engine.config.pad_token_id,
            engine.row_multiple,
        )
        self.used += sum(len(item.ids) for item in items)
        self.computed += sum(batch.input_ids.size for batch in batches)
        return batches

    def _tasks(self, batch: Batch, items: list[Item]) -> np.ndarray | None:
        """Return the tasks of a batch's places, int32 (B, S); None if no text has one."""
        tasks = np.full(batch.segments.shape[:2], -1, np.int32)
        tasks[batch.rows, batch.places] = self._task_ids[[item.text for item in items]]
        return tasks if (tasks >= 0).any() else None


def ahead(values: Iterator[_T]) -> Iterator[_T]:
    """Yield values, each computed in a thread while the one before is being used."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, values, nothing)
        while (value := coming.result()) is not nothing:
            coming = pool.submit(next, values, nothing)
            yield value  # type: ignore[misc]


def _spans(batch: Batch, items: list[Item]) -> np.ndarray | None:
    """Return the ranges to pool in each row, int32 (B, P, 2); None if they are the places."""
    if all(item.pieces is None for item in items):
        return None
    rows: list[list[tuple[int, int]]] = [[] for _ in batch.input_ids]
    for row, place, item in zip(batch.rows, batch.places, items, strict=True):
        start, stop = batch.segments[row, place].tolist()
        pieces = [(0, 0, stop - start)] if item.pieces is None else item.pieces
        rows[row] += [(start + left, start + right) for _, left, right in pieces]
    most = max(map(len, rows))
    spans = np.zeros((len(rows), 1 << (most - 1).bit_length(), 2), np.int32)
    for row, found in enumerate(rows):
        spans[row, : len(found)] = np.reshape(found, (-1, 2))
    return spans


def _results(
    step: Step, items: list[Item], output: np.ndarray, pooling: str | None
) -> Iterator[tuple[Item, np.ndarray]]:
    """Hand each item its part of a step's result."""
    batch = step.batch
    taken = np.zeros(len(batch.input_ids), np.int64)  # ranges of each row handed out so far
    for row, place, item in zip(batch.rows, batch.places, items, strict=True):
        if pooling is None:
            start, stop = batch.segments[row, place]
        elif step.pool_spans is None:
            start, stop = place, place + 1
        else:
            start = taken[row]
            stop = taken[row] = start + (1 if item.pieces is None else len(item.pieces))
        yield item, output[row, start:stop]
