"""Evaluation data from files, in the forms in which it is published.

Scored and labelled rows are read like training data (``jina_jax.data.source``). No line is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data import read_source
from jina_jax.data.lines import check_text, labelled, path_lines
from jina_jax.data.records import DELIMITERS, read_delimited

Label = str | int


class Scored(NamedTuple):
    """Pairs of sentences with their scores: n strings, n strings, n numbers."""

    sentences1: list[str]
    sentences2: list[str]
    scores: list[float]


class Labelled(NamedTuple):
    """Texts with their labels: n strings, n strings or integers."""

    texts: list[str]
    labels: list[Label]


class Pairs(NamedTuple):
    """Sentences and their translations: n strings each."""

    source: list[str]
    target: list[str]


def read_scored(path: str | Path, columns: Sequence[str | int] | None = None) -> Scored:
    """Read sentence pairs with scores, as the STS benchmark is published.

    Args:
      path: as for ``jina_jax.data.source.read_source``.
      columns: names of two sentences and a score; or their positions from 0, in CSV or TSV without
        a header. None for sentence1, sentence2, score; or, if the first line of CSV or TSV has
        three fields with a number as the last, for these three without a header.

    Raises:
      ValueError: for rows that cannot be used; names file and line.
      OSError: if the file cannot be read.
    """
    path = Path(path)
    if columns is None and _is_bare(path):
        columns = (0, 1, 2)
    source = read_source([path], "scored", columns=columns)
    first, second = map(list, zip(*source.texts, strict=True))
    return Scored(first, second, _targets(source))


def read_labelled(path: str | Path, columns: Sequence[str | int] | None = None) -> Labelled:
    """Read texts with labels.

    Args:
      path: as for ``jina_jax.data.source.read_source``.
      columns: names of text and label; or their positions from 0, in CSV or TSV without a header.
        None for text, label.

    Raises:
      ValueError: for rows that cannot be used; names file and line.
      OSError: if the file cannot be read.
    """
    source = read_source([Path(path)], "labelled", columns=columns)
    labels = [source.label_names[number] for number in _targets(source)]
    return Labelled([text for (text,) in source.texts], labels)


def read_pairs(source: str | Path, target: str | Path) -> Pairs:
    """Read two files in which line i has the same meaning. Only a line feed ends a line.

    Raises:
      ValueError: if their numbers of lines differ, or a line is blank; names file and line.
      OSError: if a file cannot be read.
    """
    sides = [[_sentence(*line) for line in path_lines(Path(path))] for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        counts = f"{source} {len(sides[0])}, {target} {len(sides[1])}"
        raise ValueError(f"expected equally many lines, got {counts}")
    return Pairs(*sides)


def _is_bare(path: Path) -> bool:
    """Return whether CSV begins with a row of three, a number last, instead of a header."""
    if path.suffix.lower() not in DELIMITERS:
        return False
    first = next(read_delimited(path), None)
    if first is None or len(first.fields) != 3:
        return False
    try:
        float(first.fields[-1][1])
    except ValueError:
        return False
    return True


def _sentence(label: str, line: str) -> str:
    with labelled(label):
        return check_text(line, "line")


def _targets(source: Any) -> list[Any]:
    return source.targets.tolist()
