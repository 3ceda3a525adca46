"""The data of a run: sources read as the settings ask, checked against their losses, sampled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jina_jax.data import Source, read_source
from jina_jax.training.losses import loss_function
from jina_jax.training.sampler import Sampler
from jina_jax.training.settings import Data, Settings, SettingsError
from jina_jax.training.tuples import TUPLE_NEGATIVES


class Sources:
    """All sources of a run.

    Args:
      settings: of the run.

    Attributes:
      names: of the sources in the log; equal ones are numbered.
      sampler: the iterator of batches over all sources.

    Raises:
      DataError: for rows that cannot be used.
      ValueError: for a source that cannot give such batches.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._sources = [_read(data) for data in settings.data]
        self.names = _names(settings)
        self.sampler = Sampler(
            self._sources,
            batch_sizes=[data.batch_size or settings.batches.size for data in settings.data],
            weights=[data.weight for data in settings.data],
            forms=[data.form for data in settings.data],
            seed=settings.seed,
        )

    def check(self, width: int) -> None:
        """Draw a batch of each source, and try each loss on shapes, before anything is trained.

        Args:
          width: of embeddings.

        Raises:
          SettingsError: if a loss does not take such batches, or a source has too few rows.
          ValueError: if too many rows of a source have texts in common.
        """
        for number, (data, source) in enumerate(
            zip(self._settings.data, self._sources, strict=True)
        ):
            rows = data.batch_size or self._settings.batches.size
            if rows > len(source):
                raise SettingsError(
                    f"data[{number}].batch_size: expected at most the {len(source)} rows of the "
                    f"source, got {rows}"
                )
            if data.loss.name == "mlm":
                continue
            vectors, targets = _shapes(data, source, rows, width)
            try:
                jax.eval_shape(loss_function(data.loss), *vectors, **targets)
            except ValueError as error:
                raise SettingsError(f"data[{number}].loss: {error}") from error
        self.sampler.check()

    def warn_bad_rows(self, path: Path) -> None:
        """List the rows that were left out in a file, and warn of their number."""
        problems = [problem for source in self._sources for problem in source.problems]
        if not problems:
            return
        lines = [f"{p.file}:{p.line}: {p.reason}\n" for p in problems]
        path.write_text("".join(lines), encoding="utf-8")
        warnings.warn(f"{len(problems)} rows are left out; {path} lists them", stacklevel=3)

    def summary(self) -> list[str]:
        """Return one line per source: its name and number of rows."""
        pairs = zip(self.names, self._sources, strict=True)
        return [f"data     {name}: {len(source):,} rows" for name, source in pairs]


def _read(data: Data) -> Source:
    return read_source(
        data.paths,
        data.kind,
        columns=data.columns,
        negatives=data.negatives,
        teacher=data.teacher,
        bad_rows=data.bad_rows,
        drop_overlap=data.drop_overlap,
    )


def _names(settings: Settings) -> list[str]:
    names = [f"{d.loss.name}:{'+'.join(path.name for path in d.paths)}" for d in settings.data]
    return [
        f"{name}#{number}" if names.count(name) > 1 else name
        for number, name in enumerate(names, start=1)
    ]


def _shapes(data: Data, source: Source, rows: int, width: int) -> tuple[list, dict[str, Any]]:
    """Return the shapes of the vectors and targets that a loss is called with."""
    columns = source.columns if data.form == "rows" else 2 + TUPLE_NEGATIVES
    shapes = [(rows, width)] * min(columns, 2) + [(rows, columns - 2, width)] * (columns > 2)
    targets = {}
    if source.teacher is not None:
        targets["teacher"] = jax.ShapeDtypeStruct((rows, source.teacher.shape[1]), np.float32)
    elif source.targets is not None and data.form == "rows":
        name = "scores" if data.kind == "scored" else "labels"
        targets[name] = jax.ShapeDtypeStruct((rows,), source.targets.dtype)
    return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes], targets
