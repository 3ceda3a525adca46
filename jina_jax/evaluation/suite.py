"""An evaluation with its data, which is loaded once and can be reused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data import read_beir
from jina_jax.data.lines import labelled
from jina_jax.evaluation.classes import classification, clustering
from jina_jax.evaluation.encoding import optional
from jina_jax.evaluation.files import read_labelled, read_pairs, read_scored
from jina_jax.evaluation.ranking import retrieval
from jina_jax.evaluation.similarity import bitext, check_varied, sts
from jina_jax.tasks import EVALUATIONS, Task, TextEncoder


class _Kind(NamedTuple):
    """A kind of evaluation: function, main metric, numbers of files, packages it needs."""

    score: Callable[..., dict[str, float]]
    primary: str
    files: tuple[int, ...]
    modules: tuple[str, ...]


_KINDS = {
    "sts": _Kind(sts, "spearman", (1,), ("scipy", "sklearn")),
    "bitext": _Kind(bitext, "accuracy", (2,), ("sklearn",)),
    "classification": _Kind(classification, "logistic_accuracy", (1, 2), ("sklearn",)),
    "clustering": _Kind(clustering, "v_measure", (1,), ("sklearn",)),
    "retrieval": _Kind(retrieval, "ndcg_at_10", (1,), ("pytrec_eval",)),
}
_WITHOUT_COLUMNS = ("bitext", "retrieval")
KINDS = tuple(EVALUATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on data from files, which are read on construction.

    Attributes:
      kind: one of ``KINDS``, each documented at the function of that name.
      paths: sts and clustering one file; bitext two, line i of one a translation of line i of the
        other; classification one for cross validation, or one to train and one to test;
        retrieval a directory in the layout of BEIR.
      name: used in the names of metrics; None for the first file's name without its suffix.
      task: adapter, or None for the base model; "auto" for the adapter that this kind uses, if the
        model has it. For retrieval also a pair of these.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.
      columns: names, or positions in CSV and TSV without a header: for sts of two sentences and a
        score, for classification and clustering of text and label; None for the usual names.
      split: of retrieval, a split of the data set; None for "test", and for other kinds.

    Raises:
      ValueError: if kind, paths, columns and split do not go together, or a file cannot be used.
      OSError: if a file cannot be read.
      ImportError: without the extra ``eval``.
    """

    kind: str
    paths: Sequence[str | Path]
    name: str | None = None
    task: Task = "auto"
    dims: Sequence[int] | None = None
    max_length: int | None = None
    columns: Sequence[str] | Sequence[int] | None = None
    split: str | None = None
    _data: tuple[Any, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}")
        kind = _KINDS[self.kind]
        if isinstance(self.paths, str | Path) or len(self.paths) not in kind.files:
            wanted = " or ".join(map(str, kind.files))
            paths = self.paths if isinstance(self.paths, str | Path) else [*map(str, self.paths)]
            raise ValueError(f"paths={paths!r}: expected {wanted} for {self.kind}")
        if self.columns is not None and self.kind in _WITHOUT_COLUMNS:
            raise ValueError(f"columns={self.columns!r}: expected None, {self.kind} has no columns")
        if self.split is not None and self.kind != "retrieval":
            raise ValueError(f"split={self.split!r}: expected None, {self.kind} has no splits")
        for module in kind.modules:
            optional(module)  # now, rather than after hours of training
        if self.name is None:
            first = Path(self.paths[0]).absolute()
            object.__setattr__(self, "name", first.name if first.is_dir() else first.stem)
        object.__setattr__(self, "_data", self._read())

    def _read(self) -> tuple[Any, ...]:
        if self.kind == "retrieval":
            return read_beir(self.paths[0], self.split or "test")
        if self.kind == "bitext":
            return read_pairs(*self.paths)
        if self.kind == "sts":
            scored = read_scored(self.paths[0], self.columns)
            with labelled(str(self.paths[0])):
                check_varied(scored.scores, "scores")
            return scored
        return sum((read_labelled(path, self.columns) for path in self.paths), ())

    @property
    def primary(self) -> str:
        """Name of the main metric in the results of ``run``, at the model's own dimension."""
        return f"{self.kind}/{self.name}/{_KINDS[self.kind].primary}"

    def run(self, model: TextEncoder) -> dict[str, float]:
        """Evaluate a model.

        Returns:
          Metrics by "kind/name/metric", for each of ``dims`` also "kind/name/metric@dim".

        Raises:
          ValueError: if data, model and options do not go together.
        """
        metrics = _KINDS[self.kind].score(
            model, *self._data, task=self.task, dims=self.dims, max_length=self.max_length
        )
        return {f"{self.kind}/{self.name}/{metric}": value for metric, value in metrics.items()}
