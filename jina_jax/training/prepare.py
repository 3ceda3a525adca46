"""From settings to what a run is made of: sources, their batches and losses, evaluations."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jina_jax.data import Source, read_source
from jina_jax.evaluation import Evaluation
from jina_jax.training import losses, run
from jina_jax.training.sampler import Sampler
from jina_jax.training.settings import Data, Loss, Settings, SettingsError
from jina_jax.training.tuples import TUPLE_NEGATIVES


def loss_function(loss: Loss) -> Callable[..., jax.Array]:
    """Make the function of ``jina_jax.training.losses`` that a section [data.loss] asks for."""
    fields = loss.model_dump(exclude={"name", "matryoshka", "mask_rate"}, exclude_none=True)
    function = functools.partial(losses.LOSSES[loss.name], **fields)
    if loss.matryoshka is None:
        return function
    return losses.matryoshka(function, **loss.matryoshka.model_dump())


def read_data(data: Data) -> Source:
    """Read the files of a section [[data]]. Raises ``DataError`` for rows that cannot be used."""
    return read_source(
        data.paths,
        data.kind,
        columns=data.columns,
        negatives=data.negatives,
        teacher=data.teacher,
        bad_rows=data.bad_rows,
        drop_overlap=data.drop_overlap,
    )


def make_sampler(settings: Settings, sources: list[Source]) -> Sampler:
    """Make the iterator of batches over all sources."""
    return Sampler(
        sources,
        batch_sizes=[data.batch_size or settings.batches.size for data in settings.data],
        weights=[data.weight for data in settings.data],
        forms=[data.form for data in settings.data],
        seed=settings.seed,
    )


def name_sources(settings: Settings) -> list[str]:
    """Name the sources in the log; those that would be called the same by number."""
    names = [f"{d.loss.name}:{'+'.join(path.name for path in d.paths)}" for d in settings.data]
    return [
        f"{name}#{number}" if names.count(name) > 1 else name
        for number, name in enumerate(names, start=1)
    ]


def make_evaluations(settings: Settings) -> list[Evaluation]:
    """Read the data of all sections [[evaluation]]. Raises ``SettingsError`` for equal names."""
    made = [Evaluation(**fields.arguments()) for fields in settings.evaluation]
    names = [each.primary.rpartition("/")[0] for each in made]
    same = sorted({name for name in names if names.count(name) > 1})
    if same:
        raise SettingsError(f"evaluation.name: expected one for each, {', '.join(same)} come again")
    return made


def check_sources(settings: Settings, sources: list[Source], width: int) -> None:
    """Try each loss on shapes: what it refuses is refused before anything is trained.

    Raises:
      SettingsError: if a loss does not take such batches, or there are too few rows for one.
    """
    for number, (data, source) in enumerate(zip(settings.data, sources, strict=True)):
        rows = data.batch_size or settings.batches.size
        if rows > len(source):
            raise SettingsError(
                f"data[{number}].batch_size: expected at most the {len(source)} rows there are, "
                f"got {rows}"
            )
        if data.loss.name == "mlm":
            continue
        vectors, targets = _shapes(data, source, rows, width)
        try:
            jax.eval_shape(loss_function(data.loss), *vectors, **targets)
        except ValueError as error:
            raise SettingsError(f"data[{number}].loss: {error}") from error


def _shapes(data: Data, source: Source, rows: int, width: int) -> tuple[list, dict[str, Any]]:
    """Return the arrays that a loss is called with, without their values."""
    columns = source.columns if data.form == "rows" else 2 + TUPLE_NEGATIVES
    shapes = [(rows, width)] * min(columns, 2) + [(rows, columns - 2, width)] * (columns > 2)
    targets = {}
    if source.teacher is not None:
        targets["teacher"] = jax.ShapeDtypeStruct((rows, source.teacher.shape[1]), np.float32)
    elif source.targets is not None and data.form == "rows":
        name = "scores" if data.kind == "scored" else "labels"
        targets[name] = jax.ShapeDtypeStruct((rows,), source.targets.dtype)
    return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes], targets


def warn_bad_rows(settings: Settings, sources: list[Source]) -> None:
    """List the rows that were left out in a file, and say how many they are."""
    problems = [problem for source in sources for problem in source.problems]
    if not problems:
        return
    path = settings.output / run.BAD_ROWS
    lines = [f"{p.file}:{p.line}: {p.reason}\n" for p in problems]
    path.write_text("".join(lines), encoding="utf-8")
    warnings.warn(f"{len(problems)} rows are left out; {path} lists them", stacklevel=3)
