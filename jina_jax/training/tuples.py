"""Tuples of labelled texts, for training a classifier's embeddings by contrast.

Gecko's construction (arXiv 2403.20327), as jina-embeddings-v3 has it for its classification adapter
(arXiv 2409.10173): a text, another of its class, and seven of other classes. A text of the class in
another tuple would be a false negative. So all texts of a tuple end with a mark of its own, which
tells other tuples apart.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from random import Random

import numpy as np

from jina_jax.data import Source

TUPLE_NEGATIVES = 7

_RANDOM_TRIES = 32
# Odd, thus one to one modulo 2**32; near 2**32 / 1.618, so that the marks of near rows differ much.
_SPREAD = 2654435761


class Tuples:
    """Draw tuples from a labelled source."""

    def __init__(self, source: Source) -> None:
        """Sort the texts by class.

        Args:
          source: labelled; without a teacher, whose vectors would be of texts without marks.

        Raises:
          ValueError: for another source, a class that has no two different texts, or one with fewer
            than seven different texts besides its own.
        """
        self._name = f"source {source.name!r}, form 'tuples'"
        if source.kind != "labelled":
            raise ValueError(f"{self._name}: expected kind 'labelled', got {source.kind!r}")
        if source.teacher is not None:
            raise ValueError(f"{self._name}: expected no teacher, texts are changed")
        self._labels = np.asarray(source.targets)
        self._own = source.texts
        order = np.argsort(self._labels, kind="stable")
        self._by_class = [source.texts[row][0] for row in order]
        counts = np.bincount(self._labels)
        self._counts = counts.tolist()
        self._starts = (np.cumsum(counts) - counts).tolist()
        self._check(source.label_names or range(len(counts)))

    def _check(self, names: Sequence[str | int]) -> None:
        every = len(set(self._by_class))
        for name, start, count in zip(names, self._starts, self._counts, strict=True):
            own = len(set(self._by_class[start : start + count]))
            if own < 2:
                raise ValueError(
                    f"{self._name}: expected two different texts in each class, {name!r} has one"
                )
            if every - own < TUPLE_NEGATIVES:
                raise ValueError(
                    f"{self._name}: expected {TUPLE_NEGATIVES} different texts of other classes "
                    f"than {name!r}, got {every - own}"
                )

    def class_of(self, row: int) -> int:
        """Return the class of a row."""
        return int(self._labels[row])

    def draw(self, row: int, taken: Container[str | int], rng: Random) -> tuple[str, ...] | None:
        """Draw the tuple of a row.

        Args:
          row: of the first text.
          taken: texts that may not be drawn.
          rng: to draw with.

        Returns:
          The row's text, another of its class, and seven of others, all different; or None if too
          few are left.
        """
        label = self.class_of(row)
        start, count = self._starts[label], self._counts[label]
        # The texts of a class lie together, and all others follow them, around the end.
        spans = [(start, count)] + TUPLE_NEGATIVES * [(start + count, len(self._by_class) - count)]
        drawn = [self._own[row][0]]
        for first, size in spans:
            text = self._pick(first, size, taken, drawn, rng)
            if text is None:
                return None
            drawn.append(text)
        return tuple(drawn)

    def _pick(
        self, first: int, size: int, taken: Container[str | int], drawn: list[str], rng: Random
    ) -> str | None:
        """Draw a text of a span: a few times anywhere, then the next one that is free."""
        index = 0
        for turn in range(_RANDOM_TRIES + size):
            index = int(rng.random() * size) if turn < _RANDOM_TRIES else (index + 1) % size
            text = self._by_class[(first + index) % len(self._by_class)]
            if text not in taken and text not in drawn:
                return text
        return None


def tuple_marks(rows: np.ndarray, start: int) -> list[str]:
    """Make the marks of tuples: eight hexadecimal digits, different for different rows.

    Args:
      rows: int64 (B,) below 2**32.
      start: from 0 to 2**32 - 1, another in each batch.
    """
    return [f"{(row * _SPREAD + start) % 2**32:08x}" for row in rows.tolist()]
