"""An evaluation with its data: read once, run as often as one likes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data.kinds import EVALUATIONS as KINDS
from jina_jax.evaluation.classes import classification, clustering
from jina_jax.evaluation.encoding import Task, TextEncoder, optional
from jina_jax.evaluation.files import read_beir, read_labelled, read_pairs, read_scored
from jina_jax.evaluation.ranking import retrieval
from jina_jax.evaluation.similarity import bitext, sts


class _Kind(NamedTuple):
    """How to score, the main metric, how many files it takes, what must be installed."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on data from files, which are read when this is made.

    Attributes:
      kind: one of ``KINDS``; each is explained at the function of that name.
      paths: sts and clustering one file; bitext two, line i of one a translation of line i of the
        other; classification one for cross validation, or one to train and one to test;
        retrieval a directory in the layout of BEIR.
      name: in the names of metrics; None for that of the first file, without its suffix.
      task: adapter, None or "none" for the base model, for retrieval also a pair of these; "auto"
        for the one that the paper uses for this kind, if the model has it.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: most tokens of a text; None for the model's limit.
      columns: names, or positions for CSV and TSV without a header, for sts of two sentences and a
        score, for classification and clustering of text and label; None for the usual names.
      split: of a retrieval data set, whose judgements to take.

    Raises:
      ValueError: if kind, paths and columns do not go together, or a file cannot be used.
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
    split: str = "test"
    _data: tuple[Any, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}")
        kind = _KINDS[self.kind]
        if isinstance(self.paths, str | Path) or len(self.paths) not in kind.files:
            wanted = " or ".join(map(str, kind.files))
            raise ValueError(f"paths={self.paths!r}: expected {wanted} for {self.kind}")
        if self.columns is not None and self.kind in _WITHOUT_COLUMNS:
            raise ValueError(f"columns={self.columns!r}: expected None, {self.kind} has no columns")
        for module in kind.modules:
            optional(module)  # now, rather than after hours of training
        if self.name is None:
            first = Path(self.paths[0]).absolute()
            object.__setattr__(self, "name", first.name if first.is_dir() else first.stem)
        object.__setattr__(self, "_data", self._read())

    def _read(self) -> tuple[Any, ...]:
        if self.kind == "retrieval":
            return read_beir(self.paths[0], self.split)
        if self.kind == "bitext":
            return read_pairs(*self.paths)
        read = read_scored if self.kind == "sts" else read_labelled
        return sum((read(path, self.columns) for path in self.paths), ())

    @property
    def primary(self) -> str:
        """Name of the main metric among those that ``run`` gives, at the model's own dimension."""
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
