"""Rules that select negatives among a query's candidates."""

from __future__ import annotations

import collections
import dataclasses
import math
import numbers
from collections.abc import Iterator

import numpy as np

from jina_jax.checks import check_integer
from jina_jax.tasks import SAMPLING_STRATEGIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules that select negatives among a query's candidates.

    Fields have the names and the meaning of the options of sentence-transformers'
    ``mine_hard_negatives``. A query's candidates are the ``range_max`` texts nearest to it by
    cosine similarity; of those that the filters leave, the first ``range_min`` are skipped.

    Attributes:
      num_negatives: negatives per pair.
      range_min: nearest candidates to skip, which are often unmarked positives.
      range_max: candidates per query.
      max_score, min_score: bounds of a negative's score.
      absolute_margin: least distance of a negative's score below the positive's; with several
        positives below the lowest of their scores.
      relative_margin: the same as a share of the size of the positive's score; NV-Retriever (arXiv
        2407.15831) uses 0.05.
      sampling_strategy: "top" for the nearest, "random" for a random draw among all that are left.
      seed: seed of the random draw.

    Raises:
      ValueError: for a field out of range.
    """

    num_negatives: int = 7
    range_min: int = 0
    range_max: int = 100
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: str = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_negatives", 1), ("range_min", 0), ("range_max", 1), ("seed", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        least = self.range_min + self.num_negatives
        if self.range_max < least:
            raise ValueError(
                f"range_max={self.range_max}: expected at least range_min + num_negatives = {least}"
            )
        for name in ("max_score", "min_score", "absolute_margin", "relative_margin"):
            value = getattr(self, name)
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (is_number and math.isfinite(value)):
                raise ValueError(f"{name}={value!r}: expected a finite number or None")
        if self.sampling_strategy not in SAMPLING_STRATEGIES:
            expected = " or ".join(map(repr, SAMPLING_STRATEGIES))
            raise ValueError(f"sampling_strategy={self.sampling_strategy!r}: expected {expected}")

    def keep(
        self, scores: np.ndarray, positive: np.floating, removed: collections.Counter[str]
    ) -> np.ndarray:
        """Mark the candidates that the filters leave, and count the others.

        Args:
          scores: float32 (n,), scores of the candidates.
          positive: score that margins count from.
          removed: is increased, for each filter, by the number of candidates that it removed and
            the filters before it had left.

        Returns:
          bool (n,), True for the candidates that are left.
        """
        kept = np.ones(len(scores), bool)
        for name, mask in self._removed(scores, positive):
            removed[name] += int((kept & mask).sum())
            kept &= ~mask
        return kept

    def _removed(
        self, scores: np.ndarray, positive: np.floating
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each filter with a mask of the scores that it removes."""
        if self.absolute_margin is not None:
            yield "absolute_margin", scores + np.float32(self.absolute_margin) > positive
        if self.relative_margin is not None:
            # Of the score's size: a plain factor would raise the bound where scores are negative.
            margin = np.abs(positive) * np.float32(self.relative_margin)
            yield "relative_margin", scores > positive - margin
        if self.max_score is not None:
            yield "max_score", scores > np.float32(self.max_score)
        if self.min_score is not None:
            yield "min_score", scores < np.float32(self.min_score)

    def choose(self, count: int, query: int) -> np.ndarray | None:
        """Choose among the candidates that the filters left.

        Args:
          count: number of candidates; they are sorted, the nearest first.
          query: index of the query. A draw depends on it and on the seed alone.

        Returns:
          int (num_negatives,) indices of candidates, ascending; None if there are too few.
        """
        indices = np.arange(self.range_min, count)
        if len(indices) < self.num_negatives:
            return None
        if self.sampling_strategy == "top":
            return indices[: self.num_negatives]
        rng = np.random.default_rng([self.seed, query])
        return np.sort(rng.choice(indices, self.num_negatives, replace=False))
