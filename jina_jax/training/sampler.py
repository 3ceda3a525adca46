"""Endless batches for training: each from one source, no text twice, resumed exactly.

A source's rows come in a new order each epoch, and batches run on from one epoch into the next. A
row with a text that is in the batch already waits, and is tried first for later batches.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import is_integer
from jina_jax.data import Source
from jina_jax.training.tuples import Tuples, tuple_marks

FORMS = ("rows", "tuples")

# Separates the generator of sources from those of orders, [seed, source, epoch].
_SOURCE_STREAM = 1


class TextBatch(NamedTuple):
    """A batch of B rows of C texts.

    Attributes:
      source: number of their source.
      rows: int64 (B,), their numbers in the source; of tuples, those of the first texts.
      texts: B·C, those of row i from i·C on.
      columns: C.
      targets: float32 (B,) scores or int32 (B,) classes, else None; None for tuples.
      teacher: float32 (B, d), or None.
    """

    source: int
    rows: np.ndarray
    texts: list[str]
    columns: int
    targets: np.ndarray | None
    teacher: np.ndarray | None


class Sampler:
    """An endless iterator of batches.

    Where one text is in more than 1/B of the rows of a source, its rows wait longer and longer,
    since each batch has room for one of them; ``state`` lists the waiting rows.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_sizes: Sequence[int],
        weights: Sequence[float],
        forms: Sequence[str],
        seed: int,
    ) -> None:
        """Prepare the first batch.

        Args:
          sources: to draw from.
          batch_sizes: rows per batch of each source.
          weights: frequencies of batches of each source, relative to each other.
          forms: "rows" for unchanged rows; "tuples" for rows of two texts of a class and seven of
            others, drawn from a labelled source (``Tuples``).
          seed: of every draw, from 0 to 2**32 - 1.

        Raises:
          ValueError: for options that do not fit the sources, or a source without tuples.
        """
        _check_options(sources, batch_sizes, weights, forms, seed)
        self._seed = seed = int(seed)  # NumPy's are no JSON
        bounds = np.cumsum(np.array(weights, np.float64))
        self._bounds = bounds / bounds[-1]
        self._drawn = 0
        self._streams = [
            _Stream(index, source, int(size), form, seed)
            for index, (source, size, form) in enumerate(
                zip(sources, batch_sizes, forms, strict=True)
            )
        ]

    def __iter__(self) -> Iterator[TextBatch]:
        """Return itself."""
        return self

    def __next__(self) -> TextBatch:
        """Return the next batch.

        Raises:
          ValueError: if a source has too few different texts to fill one.
        """
        entropy = [self._seed, self._drawn, 0, _SOURCE_STREAM]
        draw = np.random.default_rng(entropy).random()
        stream = self._streams[int(np.searchsorted(self._bounds, draw, side="right"))]
        batch = stream.take(self._drawn)
        self._drawn += 1
        return batch

    def check(self) -> None:
        """Refuse sources from which no batch can be drawn; the position stays.

        Raises:
          ValueError: for the first one whose rows have too many texts in common.
        """
        state = self.state()
        for stream in self._streams:
            stream.take(0)
        self.restore(state)

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values, to ``restore`` later."""
        streams = [stream.state() for stream in self._streams]
        return {"seed": self._seed, "batches": self._drawn, "sources": streams}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the position of another iterator with the same arguments.

        Args:
          state: returned by its ``state``.

        Raises:
          ValueError: if the state is of other sources or another seed.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"state: expected a mapping, got {type(state).__name__}")
        streams = state.get("sources")
        if state.get("seed") != self._seed:
            raise ValueError(f"state: expected seed {self._seed}, got {state.get('seed')!r}")
        if not isinstance(streams, list) or len(streams) != len(self._streams):
            got = len(streams) if isinstance(streams, list) else streams
            raise ValueError(f"state: expected {len(self._streams)} sources, got {got!r}")
        _check_count("state", "batches", state.get("batches"))
        for stream, saved in zip(self._streams, streams, strict=True):
            stream.check(saved)
        self._drawn = state["batches"]
        for stream, saved in zip(self._streams, streams, strict=True):
            stream.restore(saved)


class _Filling:
    """A batch that is being filled; ``taken`` has its texts, and exhausted classes."""

    def __init__(self, step: int, seed: int) -> None:
        self.rows: list[int] = []
        self.texts: list[str] = []
        self.taken: set[str | int] = set()
        self.random = random.Random(f"{seed}/{step}")
        self.mark = self.random.getrandbits(32)


class _Stream:
    """The rows of one source in the order of each epoch, and those that wait.

    A row waits under the text, or class of a tuple, that blocked it. So of all rows that wait for
    the same, only the first need be tried.
    """

    def __init__(self, index: int, source: Source, size: int, form: str, seed: int) -> None:
        self._index, self._source, self._size, self._seed = index, source, size, seed
        self._tuples = Tuples(source) if form == "tuples" else None
        self._waiting: dict[str | int, deque[int]] = {}
        self._start(0, 0)

    def _start(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        generator = np.random.default_rng([self._seed, self._index, epoch])
        self._order = generator.permutation(len(self._source))

    def take(self, step: int) -> TextBatch:
        batch = _Filling(step, self._seed)
        self._offer_waiting(batch)
        left = 2 * len(self._order) - self._position  # all that an epoch has is seen after so many
        while len(batch.rows) < self._size:
            if not left:
                raise ValueError(
                    f"source {self._source.name!r}: expected {self._size} rows without a text in "
                    f"common for a batch, found {len(batch.rows)}; lower the batch size or add rows"
                )
            self._offer(self._next_row(), batch)
            left -= 1
        return self._finish(batch)

    def _next_row(self) -> int:
        if self._position == len(self._order):
            self._start(self._epoch + 1, 0)
        self._position += 1
        return int(self._order[self._position - 1])

    def _offer_waiting(self, batch: _Filling) -> None:
        for key in list(self._waiting):
            queue = self._waiting[key]
            while queue and key not in batch.taken and len(batch.rows) < self._size:
                self._offer(queue.popleft(), batch)
            if not queue:
                del self._waiting[key]

    def _keys(self, row: int) -> tuple[str | int, ...]:
        texts = self._source.texts[row]
        return texts if self._tuples is None else (*texts, self._tuples.class_of(row))

    def _offer(self, row: int, batch: _Filling) -> None:
        """Add a row to the batch, or let it wait."""
        keys = self._keys(row)
        blocked = next((key for key in keys if key in batch.taken), None)
        if blocked is None:
            texts = self._texts(row, batch)
            if texts is not None:
                batch.rows.append(row)
                batch.texts += texts
                batch.taken.update(texts)
                return
            # Taken texts stay taken: other rows of the class need not be tried.
            blocked = keys[-1]
            batch.taken.add(blocked)
        self._waiting.setdefault(blocked, deque()).append(row)

    def _texts(self, row: int, batch: _Filling) -> tuple[str, ...] | None:
        if self._tuples is None:
            return self._source.texts[row]
        return self._tuples.draw(row, batch.taken, batch.random)

    def _finish(self, batch: _Filling) -> TextBatch:
        rows = np.array(batch.rows, np.int64)
        columns = len(batch.texts) // len(rows)
        if self._tuples is not None:
            marks = [mark for mark in tuple_marks(rows, batch.mark) for _ in range(columns)]
            texts = [f"{text} {mark}" for text, mark in zip(batch.texts, marks, strict=True)]
            return TextBatch(self._index, rows, texts, columns, None, None)
        targets = self._source.targets
        picked = None if targets is None else targets[rows]
        teacher = self._source.teacher_of(rows)
        return TextBatch(self._index, rows, batch.texts, columns, picked, teacher)

    def state(self) -> dict[str, Any]:
        return {
            "rows": len(self._source),
            "epoch": self._epoch,
            "position": self._position,
            "waiting": [
                [row, self._keys(row).index(key)]
                for key, queue in self._waiting.items()
                for row in queue
            ],
        }

    def check(self, state: Any) -> None:
        rows, name = len(self._source), f"state of source {self._source.name!r}"
        if not isinstance(state, dict) or state.get("rows") != rows:
            got = state.get("rows") if isinstance(state, dict) else state
            raise ValueError(f"{name}: expected {rows} rows, got {got!r}")
        _check_count(name, "epoch", state.get("epoch"))
        _check_count(name, "position", state.get("position"), rows)
        waiting = state.get("waiting")
        for entry in waiting if isinstance(waiting, list) else [waiting]:
            if not isinstance(entry, list) or len(entry) != 2:
                raise ValueError(f"{name}: waiting: expected [row, column], got {entry!r}")
            _check_count(name, "waiting row", entry[0], rows - 1)
            _check_count(name, "waiting column", entry[1], len(self._keys(entry[0])) - 1)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._start(state["epoch"], state["position"])
        self._waiting = {}
        for row, column in state["waiting"]:
            self._waiting.setdefault(self._keys(row)[column], deque()).append(row)


def _check_count(name: str, field: str, value: Any, most: int | None = None) -> None:
    if not is_integer(value, 0) or (most is not None and value > most):
        rule = "from 0" if most is None else f"from 0 to {most}"
        raise ValueError(f"{name}: {field}: expected an integer {rule}, got {value!r}")


def _check_options(
    sources: Sequence[Source],
    batch_sizes: Sequence[int],
    weights: Sequence[float],
    forms: Sequence[str],
    seed: int,
) -> None:
    if not sources:
        raise ValueError("sources: expected one or more, got none")
    given = {"batch_sizes": batch_sizes, "weights": weights, "forms": forms}
    for name, values in given.items():
        if len(values) != len(sources):
            raise ValueError(f"{name}={values!r}: expected one for each of {len(sources)} sources")
    if not all(is_integer(size, 1) for size in batch_sizes):
        raise ValueError(f"batch_sizes={batch_sizes!r}: expected integers of at least 1")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights={weights!r}: expected finite numbers above 0")
    if any(form not in FORMS for form in forms):
        raise ValueError(f"forms={forms!r}: expected each to be 'rows' or 'tuples'")
    if not is_integer(seed, 0) or seed >= 2**32:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**32 - 1")
