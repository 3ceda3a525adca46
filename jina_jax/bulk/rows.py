"""Rows of an input as requests, and their vectors as rows of the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.bulk.ids import ids_of
from jina_jax.bulk.settings import Settings
from jina_jax.bulk.sources import MOST_BYTES, Batch
from jina_jax.config import Config
from jina_jax.nn.pooling import unit
from jina_jax.runtime.arguments import WHOLE, make_requests
from jina_jax.runtime.requests import Request
from jina_jax.runtime.steps import Result

_Key = tuple[str, str, int]


class Bad(NamedTuple):
    """A row that is not in the output: its number, its id, the column at fault, and why."""

    row: int
    id: Any
    column: str | None
    reason: str


@dataclasses.dataclass(eq=False)
class Text:
    """A text to be encoded, for one or more rows.

    Attributes:
      request: what the encoder gets.
      vectors: float32 (n, D) once it is encoded: one, or one per chunk.
      tokens, dropped: used, and cut off.
      spans: characters of its chunks.
    """

    request: Request
    vectors: np.ndarray | None = None
    tokens: int = 0
    dropped: int = 0
    spans: Sequence[tuple[int, int]] = ()

    def add(self, result: Result) -> None:
        """Keep what was encoded."""
        self.vectors = result.vectors.copy()
        self.tokens, self.dropped = result.prepared.tokens, result.prepared.dropped
        self.spans = result.prepared.spans


class Rows(NamedTuple):
    """Rows of the output.

    Attributes:
      table: the columns that are passed through.
      vectors: per column of texts, float32 (n, d), zero where there are none.
      valid: per column of texts, bool (n,), whether there is a vector.
      chunks: int64 (n, 3), the number of each chunk in its text, its first character and the one
        after its last; None without chunks.
    """

    table: pa.Table
    vectors: list[np.ndarray]
    valid: list[np.ndarray]
    chunks: np.ndarray | None


class Block:
    """Rows that are read together, and written together once all their texts are encoded.

    Args:
      batch: the rows.
      settings: of the job.
      config: the model's.
      seen: texts of the shard so far, for ``dedup``; None without it.

    Attributes:
      texts: that are to be encoded for this block; others are encoded before.
      bad: rows that are not in the output, as far as they are known.
      counts: numbers of nulls, of texts that were encoded before, and of texts that were cut.
    """

    def __init__(
        self,
        batch: Batch,
        settings: Settings,
        config: Config,
        seen: dict[_Key, Text] | None = None,
    ):
        self._settings, self._config = settings, config
        self._table, self._numbers = batch.table, batch.rows
        self._ids = None if settings.id is None else batch.table.column(settings.id)
        self._good = np.ones(batch.table.num_rows, bool)
        self.bad = [Bad(row, None, None, reason) for row, reason in batch.bad]
        self.counts = dict.fromkeys(("nulls", "duplicates", "truncated"), 0)
        self.texts: list[Text] = []
        if self._ids is not None:
            for i in np.flatnonzero(np.asarray(self._ids.is_null())):
                self._refuse(int(i), settings.id, "expected an id, got null")
        tasks = self._own_tasks()
        strings = [self._strings(name) for name in settings.text]
        self._columns = [
            self._make(column, [own or task for own in tasks], seen)
            for column, task in zip(strings, settings.tasks, strict=True)
        ]

    def finish(self, project: Callable[[np.ndarray], np.ndarray]) -> Iterator[Rows]:
        """Yield the rows of the output, once all texts are encoded; ``bad`` is complete then.

        With chunks in portions: a long text that is passed through is there once per chunk.

        Args:
          project: maps complete vectors (``Model.project``).
        """
        for name, column in zip(self._settings.text, self._columns, strict=True):
            self._check_lengths(name, column)
        matrices = [
            self._matrix(name, column, project)
            for name, column in zip(self._settings.text, self._columns, strict=True)
        ]
        kept = np.flatnonzero(self._good)
        self.counts["nulls"] = sum(column[i] is None for column in self._columns for i in kept)
        if self._settings.chunks is not None:
            yield from self._by_chunk(kept, matrices[0], self._columns[0])
            return
        valid = [np.array([text is not None for text in column], bool) for column in self._columns]
        vectors = []
        for (starts, matrix), own in zip(matrices, valid, strict=True):
            found = np.zeros((len(kept), self._settings.dim), np.float32)
            found[own[kept]] = matrix[starts[kept][own[kept]]]
            vectors.append(found)
        yield Rows(self._passed(kept), vectors, [own[kept] for own in valid], None)

    # ------------------------------------------------------------ from rows to texts

    def _refuse(self, index: int, column: str | None, reason: str) -> None:
        if self._good[index]:
            self._good[index] = False
            own = None if self._ids is None else ids_of(self._ids.slice(index, 1))[0]
            self.bad.append(Bad(int(self._numbers[index]), own, column, reason))

    def _strings(self, name: str) -> list[str | None]:
        """Return a column's texts; what is not UTF-8 is refused, and None."""
        column = self._table.column(name)
        try:
            return column.cast(pa.large_string()).to_pylist()
        except pa.ArrowInvalid:
            return [self._decoded(i, name, own) for i, own in enumerate(column.to_pylist())]

    def _decoded(self, index: int, name: str, value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as error:
            reason = f"expected UTF-8 text, got {error.reason} at byte {error.start}"
            self._refuse(index, name, reason)
            return None

    def _own_tasks(self) -> list[str | None]:
        """Return the rows' own tasks, None for those that have none."""
        name = self._settings.task_column
        if name is None:
            return [None] * self._table.num_rows
        known = self._config.lora_adaptations
        tasks = self._strings(name)
        for i, task in enumerate(tasks):
            if task is not None and task not in known:
                expected = ", ".join(map(repr, known))
                self._refuse(i, name, f"expected one of {expected}, got {task!r}")
        return tasks

    def _make(
        self,
        strings: Sequence[str | None],
        tasks: Sequence[str | None],
        seen: dict[_Key, Text] | None,
    ) -> list[Text | None]:
        """Return a column's texts, the same one for identical ones where ``seen`` is given."""
        settings = self._settings
        there = [i for i, own in enumerate(strings) if own is not None and self._good[i]]
        requests = make_requests(
            self._config,
            [strings[i] for i in there],  # type: ignore[misc]
            [tasks[i] for i in there],
            settings.prompt,
            settings.prompt_name,
            WHOLE if settings.chunks is None else settings.chunks,
        )
        column: list[Text | None] = [None] * len(strings)
        for i, request in zip(there, requests, strict=True):
            key = (request.text, request.prompt, request.task_id)
            text = None if seen is None else seen.get(key)
            if text is None:
                text = Text(request)
                self.texts.append(text)
                if seen is not None:
                    seen[key] = text
            else:
                self.counts["duplicates"] += 1
            column[i] = text
        return column

    # ------------------------------------------------------------ from vectors to rows

    def _check_lengths(self, name: str, column: Sequence[Text | None]) -> None:
        for i, text in enumerate(column):
            if text is None or not text.dropped:
                continue
            if self._settings.long_text != "error":
                self.counts["truncated"] += 1
                continue
            count, most = text.tokens + text.dropped, self._settings.max_length
            self._refuse(i, name, f"expected at most {most} tokens, got {count}")

    def _matrix(
        self, name: str, column: Sequence[Text | None], project: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the first vector of each row, int64 (n,), and all vectors, float32 (m, d)."""
        own = [None if text is None else text.vectors for text in column]
        counts = np.array([0 if found is None else len(found) for found in own], np.int64)
        starts = np.cumsum(counts) - counts
        found = [vectors for vectors in own if vectors is not None]
        if not found:
            return starts, np.zeros((0, self._settings.dim), np.float32)
        matrix = project(np.concatenate(found))[:, : self._settings.dim]
        broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        for i in np.unique(np.searchsorted(starts + counts, broken, side="right")).tolist():
            self._refuse(i, name, "its vector is not finite")
        return starts, unit(matrix) if self._settings.normalize else np.ascontiguousarray(matrix)

    def _by_chunk(
        self, kept: np.ndarray, matrix: tuple[np.ndarray, np.ndarray], column: list[Text | None]
    ) -> Iterator[Rows]:
        """Yield a row per chunk, and one without a vector for a text that has none."""
        starts, vectors = matrix
        rows, chunks, found = [], [], []
        for i in kept.tolist():
            text = column[i]
            spans = () if text is None else text.spans
            for k, span in enumerate(spans):
                chunks.append((k, *span))
                found.append(starts[i] + k)
            if not spans:
                chunks.append((0, 0, 0))
                found.append(-1)
            rows += [i] * max(1, len(spans))
        index, spans = np.array(found, np.int64), np.array(chunks, np.int64).reshape(-1, 3)
        for part, table in self._portions(np.array(rows, np.int64)):
            valid = index[part] >= 0
            own = np.zeros((len(valid), self._settings.dim), np.float32)
            own[valid] = vectors[index[part][valid]]
            yield Rows(table, [own], [valid], spans[part])

    def _portions(self, rows: np.ndarray) -> Iterator[tuple[slice, pa.Table]]:
        """Yield ranges of rows, of bounded bytes but for a single row, with what is passed."""
        whole = self._passed(np.arange(self._table.num_rows))
        sizes = np.array([whole.slice(i, 1).nbytes for i in range(whole.num_rows)], np.int64)
        ends = np.cumsum(sizes[rows])
        start = 0
        while True:
            most = MOST_BYTES + (ends[start - 1] if start else 0)
            stop = max(int(np.searchsorted(ends, most, side="right")), start + 1)
            yield slice(start, stop), whole.take(pa.array(rows[start:stop]))
            start = stop
            if start >= len(rows):
                return

    def _passed(self, rows: np.ndarray) -> pa.Table:
        """Return the columns that are passed through, of some rows."""
        settings = self._settings
        names = [] if settings.id is None else [settings.id]
        columns = {name: self._table.column(name) for name in [*names, *settings.columns]}
        if settings.id is None:  # the input may have a "row" of its own, as its texts
            columns["row"] = pa.array(self._numbers, pa.int64())
        return pa.table(columns).take(pa.array(rows))
