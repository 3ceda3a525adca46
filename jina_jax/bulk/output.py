"""The files of a shard: its table, its bad rows, its statistics, and the moment they are there."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import pyarrow as pa

from jina_jax import __version__
from jina_jax.bulk.plan import ERRORS, STATS, Manifest
from jina_jax.bulk.retries import named
from jina_jax.bulk.rows import Bad, Rows
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import TableWriter, errors_schema, output_schema, vector_array


class ShardFiles:
    """Writes a shard.

    Args:
      manifest: the plan.
      shard: the shard's number.
      store: the output.
    """

    def __init__(self, manifest: Manifest, shard: int, store: Store):
        self.shard = shard
        self._manifest, self._store = manifest, store
        self._name = manifest.name(shard)
        settings = manifest.settings
        facts = {
            "model": manifest.model.name,
            "model_sha256": manifest.model.sha256,
            "plan": manifest.hash,
            "shard": shard,
            "settings": settings.to_dict(),
            "versions": versions(),
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        }
        self._schema = output_schema(settings, manifest.columns, facts)
        id_type = None if settings.id is None else manifest.columns.field(settings.id).type
        self._errors_schema = errors_schema(id_type)
        self._errors: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._begun = time.perf_counter()
        self._stack = contextlib.ExitStack()
        self._writer: TableWriter | None = None

    def count(self, file: str, bad: Sequence[Bad], counts: Mapping[str, int]) -> None:
        """Add what else is known of rows of an input file.

        Args:
          file: where they are from.
          bad: rows that are not in the output.
          counts: for the statistics.
        """
        self._counts.update(counts)
        self._counts.update(bad=len(bad))
        for own in sorted(bad, key=lambda own: own.row):
            values = {"file": file, **own._asdict()}
            self._errors.append({name: values[name] for name in self._errors_schema.names})

    def write(self, file: str, rows: Rows) -> None:
        """Add rows of the output; ``file`` is where they are from."""
        self._counts.update(rows=rows.table.num_rows)
        try:
            self._open().write(self._table(file, rows))
        except OSError as error:  # of a full disk, which pyarrow raises without a name
            raise named(error, f"{self._store.url}/{self._name}.parquet") from error

    def commit(self, more: Mapping[str, Any]) -> bool:
        """Put the files into the output, that of the vectors last.

        Args:
          more: statistics beside those that are counted.

        Returns:
          Whether the shard was not there yet.
        """
        writer = self._open()
        with self._stack:
            writer.close()
            self._writer = None
            if self._errors:
                with self._store.scratch(f"{self._name}.parquet") as path:
                    table = pa.Table.from_pylist(self._errors, self._errors_schema)
                    with TableWriter(path, self._errors_schema) as errors:
                        errors.write(table)
                    self._store.put(f"{ERRORS}/{self._name}.parquet", path.read_bytes())
            statistics = json.dumps(self._statistics(more), indent=1).encode()
            self._store.put(f"{STATS}/{self._name}.json", statistics)
            return self._store.put_new(f"{self._name}.parquet", self._path)

    def close(self) -> None:
        """Remove what was written, unless it is committed."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
        self._stack.close()

    def _open(self) -> TableWriter:
        if self._writer is None:
            name = f"{self._name}.parquet"
            self._path = self._stack.enter_context(self._store.scratch(name))
            self._writer = TableWriter(self._path, self._schema)
        return self._writer

    def _table(self, file: str, rows: Rows) -> pa.Table:
        settings, count = self._manifest.settings, rows.table.num_rows
        columns = {name: rows.table.column(name) for name in rows.table.column_names}
        if settings.id is None:
            columns["file"] = pa.array([file] * count, pa.string())
        if rows.chunks is not None:
            absent = ~rows.valid[0]
            for k, (name, kind) in enumerate(_CHUNK_COLUMNS):
                columns[name] = pa.array(rows.chunks[:, k], kind, mask=absent)
        for name, vectors, valid in zip(settings.vectors, rows.vectors, rows.valid, strict=True):
            columns[name] = vector_array(vectors, settings.kind, valid)
        arrays = [columns[name] for name in self._schema.names]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _statistics(self, more: Mapping[str, Any]) -> dict[str, Any]:
        names = ("rows", "bad", "nulls", "duplicates", "tokens", "truncated")
        return {
            **{name: self._counts[name] for name in names},
            "seconds": round(time.perf_counter() - self._begun, 3),
            **more,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


_CHUNK_COLUMNS = (("chunk", pa.int32()), ("start", pa.int64()), ("stop", pa.int64()))


def versions() -> dict[str, str]:
    """Return the versions of what vectors depend on."""
    return {"jina-jax": __version__, "jax": version("jax"), "jaxlib": version("jaxlib")}
