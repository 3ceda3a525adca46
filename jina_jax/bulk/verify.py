"""Verify an output: its shards, their rows against the inputs, and their vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.bulk.expected import (
    Expected,
    first_rows,
    read_errors,
    read_expected,
    row_problems,
)
from jina_jax.bulk.inputs import describe
from jina_jax.bulk.plan import Manifest
from jina_jax.bulk.sampled import Sampled, differences, vectors_at
from jina_jax.bulk.status import read_plan, read_statistics
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import output_schema, read_facts, read_vectors

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

# Most that a norm may differ from 1. Rounding to float16 changes a value by at most 2⁻¹¹ of it.
_ROUNDING = {"float32": 1e-5, "bytes": 1e-5, "float16": 1e-3}


def verify(
    store: Store, model: JinaEmbeddings | None = None, sample: int = 0, seed: int = 0
) -> list[str]:
    """Return the problems of an output, none for one that is complete and right.

    Every shard is there, is of the plan, and has the rows of its part of the inputs in their
    order, but for those in ``_errors``, whose number is that of the statistics. Ids are unique in a
    shard; that one is in two shards is only possible if it is in the inputs twice. Vectors are
    finite and of unit length.

    Args:
      store: the output.
      model: the plan's, loaded with the plan's settings, to encode a sample again.
      sample: how many texts are encoded again, about; drawn by ``seed``.

    Raises:
      FileNotFoundError: if the output has no plan.
    """
    plan = read_plan(store)
    done = sorted(plan.done(store))
    problems = [*_missing(plan, done), *_foreign(store, plan)]
    changed = _changed(plan)
    problems += changed.values()
    statistics = read_statistics(store, plan, done)
    sizes = np.array([plan.size(shard) for shard in done], float)
    rng = np.random.default_rng(seed)
    draws = _draws(rng, sizes, sample if model else 0)
    sampled: list[Sampled] = []
    for shard, draw in zip(done, draws, strict=True):
        readable = not any(piece.file in changed for piece in plan.shards[shard])
        check = _Shard(store, plan, shard, statistics.get(shard), rng if readable else None)
        problems += check.problems(int(draw), sampled)
    return problems + (differences(model, plan.settings, sampled) if model else [])


def _draws(rng: np.random.Generator, sizes: np.ndarray, sample: int) -> np.ndarray:
    """Return how many texts of each shard are encoded again, in proportion to their sizes."""
    if not sizes.sum():
        return np.zeros(len(sizes), np.int64)
    return rng.multinomial(sample, sizes / sizes.sum())


def _missing(plan: Manifest, done: list[int]) -> list[str]:
    there = set(done)
    missing = [shard for shard in range(len(plan.shards)) if shard not in there]
    return [f"{plan.name(shard)}.parquet: is missing" for shard in missing]


def _foreign(store: Store, plan: Manifest) -> list[str]:
    own = {f"{plan.name(shard)}.parquet" for shard in range(len(plan.shards))}
    others = [name for name in store.names() if name.endswith(".parquet") and name not in own]
    return [f"{name}: is no shard of the plan" for name in others]


def _changed(plan: Manifest) -> dict[int, str]:
    """Return a problem per input that is not as it was planned, by its number."""
    found = {}
    for number, file in enumerate(plan.inputs):
        try:
            if describe(file.url) != file:
                found[number] = f"{file.url}: has changed since the plan was made"
        except FileNotFoundError:
            found[number] = f"{file.url}: the input is missing; its rows cannot be compared"
    return found


class _Shard(NamedTuple):
    """A shard to verify; without ``rng`` its inputs cannot be read."""

    store: Store
    plan: Manifest
    shard: int
    statistics: dict[str, Any] | None
    rng: np.random.Generator | None

    def problems(self, draw: int, sampled: list[Sampled]) -> Iterator[str]:
        """Yield problems; append ``draw`` texts to be encoded again to ``sampled``."""
        name = f"{self.plan.name(self.shard)}.parquet"
        try:
            with self.store.open(name) as file, pq.ParquetFile(file) as parquet:
                for problem in self._of_file(parquet, draw, sampled):
                    yield f"{name}: {problem}"
        except (pa.ArrowException, OSError, ValueError) as error:
            yield f"{name}: cannot be read ({error})"

    def _of_file(self, parquet: pq.ParquetFile, draw: int, sampled: list[Sampled]) -> Iterator[str]:
        wanted = output_schema(self.plan.settings, self.plan.columns, {})
        if not parquet.schema_arrow.equals(wanted):
            yield f"expected columns\n{wanted}\ngot\n{parquet.schema_arrow}"
            return
        facts = read_facts(parquet.schema_arrow) or {}
        for key, value in (("plan", self.plan.hash), ("shard", self.shard)):
            if facts.get(key) != value:
                yield f"expected {key} {value} in the metadata, got {facts.get(key)}"
        yield from self._of_vectors(parquet)
        yield from self._of_counts(parquet.metadata.num_rows)
        if self.rng is not None:
            yield from self._of_rows(parquet, draw, sampled)

    def _of_vectors(self, parquet: pq.ParquetFile) -> Iterator[str]:
        """Yield the first vector of each column that is not finite, or not of unit length."""
        settings = self.plan.settings
        most = _ROUNDING.get(settings.kind) if settings.normalize else None
        for name in settings.vectors if settings.kind != "ubinary" else ():
            begin = 0
            for group in range(parquet.num_row_groups):
                column = parquet.read_row_group(group, [name]).column(name)
                vectors, valid = read_vectors(column, settings.kind, settings.dim)
                rows = begin + np.flatnonzero(valid)
                begin += len(valid)
                norms = np.linalg.norm(vectors, axis=1)
                broken = ~np.isfinite(norms)
                if most is not None:
                    broken |= np.abs(norms - 1) > most
                if broken.any():
                    k = int(broken.argmax())
                    wanted = "a finite one" if most is None else f"1 ± {most:g}"
                    yield f"row {rows[k]}: {name} has length {norms[k]:.6g}, expected {wanted}"
                    break

    def _of_counts(self, rows: int) -> Iterator[str]:
        """Compare numbers of rows with the statistics, those of bad rows with ``_errors``."""
        if self.statistics is None:
            yield "its statistics are missing"
            return
        bad = len(read_errors(self.store, self.plan, self.shard))
        for name, value in (("rows", rows), ("bad", bad)):
            if value != self.statistics[name]:
                yield f"{name}: {self.statistics[name]} in the statistics, {value} in the output"

    def _of_rows(self, parquet: pq.ParquetFile, draw: int, sampled: list[Sampled]) -> Iterator[str]:
        """Compare rows with the inputs; draw texts if they are the same."""
        settings = self.plan.settings
        names = [name for name in parquet.schema_arrow.names if name not in settings.vectors]
        table = parquet.read(columns=names)
        expected = read_expected(self.store, self.plan, self.shard, texts=draw > 0)
        problems = list(row_problems(table, settings, expected))
        yield from problems
        if draw and not problems:
            sampled += self._draw(parquet, table, expected, draw)

    def _draw(
        self, parquet: pq.ParquetFile, table: pa.Table, expected: Expected, draw: int
    ) -> Iterator[Sampled]:
        assert self.rng is not None
        settings, name = self.plan.settings, self.plan.name(self.shard)
        bounds = np.append(first_rows(table, settings), table.num_rows).tolist()
        texts = len(bounds) - 1
        chosen = sorted(self.rng.choice(texts, min(draw, texts), replace=False).tolist())
        ranges = [(bounds[i], bounds[i + 1]) for i in chosen]
        for k, column in enumerate(settings.vectors):
            vectors = vectors_at(parquet, column, ranges, settings)
            for i, (start, stop), own in zip(chosen, ranges, vectors, strict=True):
                where = f"{name}.parquet: row {start}: {column}"
                spans = None if settings.chunks is None else _spans(table, start, stop)
                yield Sampled(where, k, expected.texts[k][i], expected.tasks[i], own, spans)


def _spans(table: pa.Table, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the spans of a text's rows; a text without chunks has one row without a span."""
    part = table.select(["start", "stop"]).slice(start, stop - start).drop_null()
    return list(zip(*(column.to_pylist() for column in part.columns), strict=True))
