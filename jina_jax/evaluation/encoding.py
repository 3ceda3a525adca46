"""Vectors for evaluations: computed once, checked, cut to each dimension; optional packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jina_jax.checks import check_integer
from jina_jax.nn.pooling import cut_and_normalize
from jina_jax.tasks import TextEncoder


class Vectors:
    """Vectors of a model: computed once, and cut to each dimension that is to be scored.

    Args:
      model: the model to evaluate.
      dims: Matryoshka dimensions to score beside the model's own; None for none.
      max_length: maximum tokens per text, see ``JinaEmbeddings.encode``.

    Raises:
      ValueError: for a dimension that the model lacks.
    """

    def __init__(self, model: TextEncoder, dims: Sequence[int] | None, max_length: int | None):
        self._model = model
        self._max_length = max_length
        self._dims = _check_dims(dims)
        self._own: int | None = None
        self._truncate_dim: int | None = None
        config = getattr(model, "config", None)
        if config is not None and self._dims:
            self._own = config.embedding_dim(None)
            self._truncate_dim = max(self._own, *map(config.embedding_dim, self._dims))

    def encode(self, texts: Sequence[str], task: str | None) -> np.ndarray:
        """Return float32 (n, d), not normalised, for ``cut`` and ``score``.

        Raises:
          ValueError: for infinities or NaN, or fewer dimensions than are to be scored.
        """
        vectors = self._model.encode(
            list(texts),
            task=task,
            prompt="auto",
            truncate_dim=self._truncate_dim,
            max_length=self._max_length,
            normalize_embeddings=False,
        )
        # ``JinaEmbeddings`` refuses these itself; other encoders may not.
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if broken.size:
            raise ValueError(f"embedding of text {broken[0] + 1} is not finite; try float32")
        if self._dims and max(self._dims) > vectors.shape[1]:
            raise ValueError(
                f"dims={self._dims}: expected at most {vectors.shape[1]}, the model's dimension"
            )
        return vectors

    def cut(self, *vectors: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
        """Return unit vectors for each dimension, by the suffix of its metrics' names.

        They equal those of ``encode(truncate_dim=dim)``.
        """
        dims = {"": self._own or vectors[0].shape[1], **{f"@{dim}": dim for dim in self._dims}}
        return {
            suffix: tuple(cut_and_normalize(array, dim, normalize=True) for array in vectors)
            for suffix, dim in dims.items()
        }

    def score(
        self, metrics: Callable[..., dict[str, float]], *vectors: np.ndarray
    ) -> dict[str, float]:
        """Return metrics of unit vectors; names of other dimensions than the own end in "@dim"."""
        return {
            f"{name}{suffix}": float(value)
            for suffix, cut in self.cut(*vectors).items()
            for name, value in metrics(*cut).items()
        }


def _check_dims(dims: Sequence[int] | None) -> tuple[int, ...]:
    if dims is None:
        return ()
    numbers = tuple(check_integer("dims", dim, 1) for dim in dims)
    if not numbers:
        raise ValueError(f"dims={dims!r}: expected None, or positive integers")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"dims={dims!r}: expected each dimension once")
    return numbers


def check_lengths(**columns: Sequence[Any]) -> None:
    """Refuse columns that are empty or of different length."""
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"expected equally many of each, and at least one, got {found}")


def optional(module: str, install: str = '"jina-jax[eval]"') -> Any:
    """Import a module of an optional dependency.

    Args:
      module: dotted name.
      install: argument of pip install.

    Raises:
      ImportError: if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise ImportError(f"this evaluation needs {name}: pip install {install}") from error
