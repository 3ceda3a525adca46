"""Items into steps, and the results of steps back into the vectors of their requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jina_jax.runtime.batching import CompleteBatching
from jina_jax.runtime.engine import Engine, Step
from jina_jax.runtime.packing import Batch, make_batches
from jina_jax.runtime.requests import Item, Prepared


class Result(NamedTuple):
    """The vectors of one request.

    Attributes:
      owner: the position of the request in the input, or another owner of a ``Sum``.
      vectors: float32 (n, D), one per chunk, or one; under ``pooling=None`` one per token. Often a
        view of a step's result: copy what is to be kept.
      prepared: what was encoded, and what was cut off.
    """

    owner: Any
    vectors: np.ndarray
    prepared: Prepared


class Sum:
    """The vectors of a request, as far as its items have been encoded.

    Args:
      owner: comes back with the result.
      prepared: the request.
    """

    def __init__(self, owner: Any, prepared: Prepared):
        self.owner, self.prepared = owner, prepared
        self._missing = len(prepared.items)
        self._vectors: np.ndarray | None = None

    @property
    def parts(self) -> list[Part]:
        """Its items."""
        return [Part(item, self) for item in self.prepared.items]

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
            yield Result(self.owner, vectors, self.prepared)


class Part(NamedTuple):
    """An item with the sum that its vectors belong to."""

    item: Item
    sum: Sum


class Packer:
    """Puts parts into steps, whose results ``results`` returns to them.

    Args:
      engine: the encoder.
      batching: how items are put into batches (``Batching.on``).

    Attributes:
      used, computed: tokens so far, and positions that were computed for them.
    """

    def __init__(self, engine: Engine, batching: CompleteBatching):
        self._engine, self._batching = engine, batching
        self.used = self.computed = 0

    @property
    def budget(self) -> int:
        """Tokens of a full step, padding included."""
        return self._batching.token_budget * self._engine.row_multiple

    @property
    def padding(self) -> float:
        """Share of the computed positions that held no token."""
        return 1 - self.used / self.computed if self.computed else 0.0

    def steps(self, parts: Sequence[Part], pooling: str | None) -> Iterator[Step]:
        """Yield the steps of some parts, those of the longest items first."""
        ids = [part.item.ids for part in parts]
        engine = self._engine
        batches = make_batches(ids, self._batching, engine.config.pad_token_id, engine.row_multiple)
        self.used += sum(map(len, ids))
        self.computed += sum(batch.input_ids.size for batch in batches)
        for batch in batches:
            own = [parts[i] for i in batch.indices]
            yield Step(batch, pooling, _tasks(batch, own), _pool_spans(batch, own), own)


def results(step: Step, output: np.ndarray) -> Iterator[Result]:
    """Return a step's output to the sums of its parts; yield the results that are complete."""
    for part, vectors in _split(step, output):
        yield from part.sum.add(part.item, vectors)


def _tasks(batch: Batch, parts: Sequence[Part]) -> np.ndarray | None:
    """Return the tasks of a batch's slots, int32 (B, S); None if no text has one."""
    tasks = np.full(batch.text_spans.shape[:2], -1, np.int32)
    tasks[batch.rows, batch.slots] = [part.sum.prepared.task_id for part in parts]
    return tasks if (tasks >= 0).any() else None


def _pool_spans(batch: Batch, parts: Sequence[Part]) -> np.ndarray | None:
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


def _split(step: Step, output: np.ndarray) -> Iterator[tuple[Part, np.ndarray]]:
    """Split a step's result by item."""
    batch = step.batch
    taken = np.zeros(len(batch.input_ids), np.int64)  # ranges of each row used so far
    for row, slot, part in zip(batch.rows, batch.slots, step.owners, strict=True):
        if step.pooling is None:
            start, stop = batch.text_spans[row, slot]
        elif step.pool_spans is None:
            start, stop = slot, slot + 1
        else:
            start = taken[row]
            stop = taken[row] = start + (len(part.item.pieces) or 1)
        yield part, output[row, start:stop]
