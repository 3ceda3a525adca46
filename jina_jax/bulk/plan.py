"""The plan of a job: its inputs, its settings, its model, and its shards.

It is made once, and put into the output as ``_manifest.json``. Whoever comes later, to go on or to
help, must want the same; what would differ is an error that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from jina_jax.bulk.columns import unified
from jina_jax.bulk.inputs import InputFile
from jina_jax.bulk.settings import Settings
from jina_jax.bulk.sources import Piece, open_source
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import output_schema

MANIFEST = "_manifest.json"
ERRORS, STATS, LEASES = "_errors", "_stats", "_leases"
_VERSION = 1
_FOOTERS_AT_ONCE = 16
_MOST_SHOWN = 5


class PlanError(ValueError):
    """Another plan than the one in the output."""


class ModelId(NamedTuple):
    """A model.

    Attributes:
      name: what it was called: an absolute path, a Hub id, or "tiny".
      sha256: of its files (``hash_of``).
      revision: branch, tag or commit on the Hub; None for none.
    """

    name: str
    sha256: str
    revision: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A plan.

    Attributes:
      settings: of the vectors.
      model: that makes them.
      inputs: files.
      shard_rows, shard_bytes: most rows, and about most bytes of text, of a shard.
      columns: names and types of the columns that are read.
      shards: their pieces.
    """

    settings: Settings
    model: ModelId
    inputs: tuple[InputFile, ...]
    shard_rows: int
    shard_bytes: int
    columns: pa.Schema
    shards: tuple[tuple[Piece, ...], ...]

    @functools.cached_property
    def hash(self) -> str:
        """The SHA-256 of the plan."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def name(self, shard: int) -> str:
        """Return the name of a shard's files, without their suffix."""
        return f"part-{shard:05d}-{self.hash[:8]}"

    @property
    def rows(self) -> int | None:
        """Rows of all shards; None if that is known only after reading them."""
        rows = [piece.rows for shard in self.shards for piece in shard]
        return None if None in rows else sum(rows)  # type: ignore[arg-type]

    def size(self, shard: int) -> int:
        """Return the bytes of a shard's texts, about."""
        return sum(piece.size for piece in self.shards[shard])

    def done(self, store: Store) -> set[int]:
        """Return the shards that are in the output."""
        there = set(store.names())
        return {k for k in range(len(self.shards)) if f"{self.name(k)}.parquet" in there}

    def to_json(self) -> bytes:
        """Return it as the manifest's content, the same for the same plan."""
        values = {
            "version": _VERSION,
            "settings": self.settings.to_dict(),
            "model": self.model._asdict(),
            "shard_rows": self.shard_rows,
            "shard_bytes": self.shard_bytes,
            "columns": self.columns.serialize().to_pybytes().hex(),
            "inputs": self.inputs,
            "shards": self.shards,
        }
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Return the plan of a manifest's content.

        Raises:
          PlanError: if it is none of this version.
        """
        try:
            values = json.loads(content)
            version = values["version"]
            if version == _VERSION:
                return cls._from_values(values)
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{MANIFEST}: expected a plan of a bulk job ({error})") from None
        raise PlanError(f"{MANIFEST}: expected version {_VERSION}, got {version}")

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Manifest:
        return cls(
            Settings.from_dict(values["settings"]),
            ModelId(**values["model"]),
            tuple(InputFile(*own) for own in values["inputs"]),
            values["shard_rows"],
            values["shard_bytes"],
            pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(values["columns"]))),
            tuple(tuple(Piece(*own) for own in shard) for shard in values["shards"]),
        )


def find_plan(store: Store) -> Manifest | None:
    """Return the plan in an output, if there is one."""
    content = store.read(MANIFEST)
    return None if content is None else Manifest.from_json(content)


def agree(
    store: Store,
    inputs: Sequence[InputFile],
    settings: Settings,
    model: ModelId,
    *,
    shard_rows: int,
    shard_bytes: int,
    check: Callable[[], object] = lambda: None,
) -> Manifest:
    """Return the plan in an output, or make it, call ``check``, and put it there.

    Raises:
      PlanError: if there is one of other inputs, settings, or weights.
      ValueError: if the inputs cannot be read, or lack a column.
    """
    plan = find_plan(store)
    if plan is None:
        plan = make_plan(inputs, settings, model, shard_rows=shard_rows, shard_bytes=shard_bytes)
        content = plan.to_json()
        check()
        if store.put_new(MANIFEST, content):
            return Manifest.from_json(content)  # as all others read it: types may be written anew
        plan = find_plan(store)
        assert plan is not None
    wanted = dataclasses.replace(
        plan,
        settings=settings,
        model=model,
        inputs=tuple(inputs),
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
    )
    if found := differences(plan, wanted):
        shown = "; ".join(found[:_MOST_SHOWN]) + ("; …" if len(found) > _MOST_SHOWN else "")
        raise PlanError(
            f"{store.url}: has another plan: {shown}. Name another output, or remove it"
        )
    return plan


def differences(plan: Manifest, wanted: Manifest) -> list[str]:
    """Return what is wanted otherwise than planned, in words; names of a model are no matter."""
    found = []
    old, new = plan.settings.to_dict(), wanted.settings.to_dict()
    old |= {"shard_rows": plan.shard_rows, "shard_mb": plan.shard_bytes / (1 << 20)}
    new |= {"shard_rows": wanted.shard_rows, "shard_mb": wanted.shard_bytes / (1 << 20)}
    for name, value in old.items():
        if new[name] != value:
            found.append(f"{name}={value!r} there, {new[name]!r} here")
    if plan.model.sha256 != wanted.model.sha256:
        found.append(f"model: {plan.model.name} there and {wanted.model.name} here differ")
    before = {own.url: own for own in plan.inputs}
    after = {own.url: own for own in wanted.inputs}
    found += [f"input {url}: there, not here" for url in before.keys() - after.keys()]
    found += [f"input {url}: here, not there" for url in after.keys() - before.keys()]
    for url in before.keys() & after.keys():
        if before[url] != after[url]:
            found.append(f"input {url}: has changed ({_change(before[url], after[url])})")
    return found


def make_plan(
    inputs: Sequence[InputFile],
    settings: Settings,
    model: ModelId,
    *,
    shard_rows: int,
    shard_bytes: int,
) -> Manifest:
    """Divide inputs into shards; reads footers of files, and no data.

    Raises:
      ValueError: for a file that cannot be read, or lacks a column.
    """
    names = columns_of(settings)

    def read(number: int) -> tuple[pa.Schema | None, list[Piece]]:
        source = open_source(inputs[number])
        pieces = source.pieces(number, settings.text, shard_rows, shard_bytes)
        missing = [name for name in names if name not in source.schema.names]
        if missing and source.is_empty:
            return None, []
        if missing:
            there = ", ".join(map(repr, source.schema.names))
            raise ValueError(f"{source.file.url}: expected a column {missing[0]!r}, found {there}")
        found = pa.schema([source.schema.field(name) for name in names])
        if settings.task_column is not None:
            source.check(pa.schema([(settings.task_column, pa.string())]))
        source.check(found)
        return found, pieces

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        found = list(pool.map(read, range(len(inputs))))
    columns = unified([own for own, _ in found if own is not None], settings)
    output_schema(settings, columns, {})  # its errors must precede the plan, which would stay
    if settings.id is not None and pa.types.is_nested(columns.field(settings.id).type):
        raise ValueError(
            f"id: expected a column of single values, got {settings.id!r} of "
            f"{columns.field(settings.id).type}"
        )
    everything = itertools.chain.from_iterable(own for _, own in found)
    shards = tuple(_shards(everything, shard_rows, shard_bytes))
    return Manifest(settings, model, tuple(inputs), shard_rows, shard_bytes, columns, shards)


def columns_of(settings: Settings) -> list[str]:
    """Return the names of the columns that are read, each once: the id, those of texts, others."""
    names = [settings.id, *settings.text, settings.task_column, *settings.columns]
    return list(dict.fromkeys(name for name in names if name is not None))


def _shards(
    pieces: Iterator[Piece], most_rows: int, most_bytes: int
) -> Iterator[tuple[Piece, ...]]:
    """Yield consecutive pieces, at least one, that are together within the bounds.

    Rows of JSONL are unknown; of a file that was divided, each piece is about as large as may be.
    """
    own: list[Piece] = []
    rows = size = 0
    for piece in pieces:
        is_divided = own and piece.rows is None and own[-1].file == piece.file
        is_full = rows + (piece.rows or 0) > most_rows or size + piece.size > most_bytes
        if own and (is_full or is_divided):
            yield tuple(own)
            own, rows, size = [], 0, 0
        own.append(piece)
        rows, size = rows + (piece.rows or 0), size + piece.size
    if own:
        yield tuple(own)


def _change(before: InputFile, after: InputFile) -> str:
    if before.size != after.size:
        return f"{before.size} bytes before, {after.size} now"
    return f"version {before.version} before, {after.version} now"
