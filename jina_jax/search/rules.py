"""Which of a query's candidates become negatives."""

from __future__ import annotations

import collections
import dataclasses
import math
import numbers
from collections.abc import Iterator

import numpy as np

SAMPLING_STRATEGIES = ("top", "random")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The options of ``mine_hard_negatives`` that choose among candidates.

    Raises:
      ValueError: for one that is out of range.
    """

    num_negatives: int
    range_min: int
    range_max: int
    max_score: float | None
    min_score: float | None
    absolute_margin: float | None
    relative_margin: float | None
    sampling_strategy: str
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("num_negatives", 1), ("range_min", 0), ("range_max", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
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
          scores: float32 (n,) of the candidates.
          positive: score that margins count from.
          removed: gets the number that each filter removed of what those before it left.

        Returns:
          bool (n,).
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
          count: of them; they are sorted, the nearest first.
          query: its index. A draw depends on it and on the seed alone.

        Returns:
          int (num_negatives,) places, ascending; None if there are too few.
        """
        places = np.arange(self.range_min, count)
        if len(places) < self.num_negatives:
            return None
        if self.sampling_strategy == "top":
            return places[: self.num_negatives]
        rng = np.random.default_rng([self.seed, query])
        return np.sort(rng.choice(places, self.num_negatives, replace=False))
