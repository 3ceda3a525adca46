"""Evaluation data in files, in the forms in which it is published.

Scored and labelled rows are read as training data are (``jina_jax.data.source``). Text is UTF-8,
and every line counts: none is skipped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data import read_source
from jina_jax.data.lines import decode_line
from jina_jax.data.records import DELIMITERS, Columns, read_records

QRELS_COLUMNS = ("query-id", "corpus-id", "score")

Label = str | int


class Scored(NamedTuple):
    """Pairs of sentences with a score each: n strings, n strings, n numbers."""

    sentences1: list[str]
    sentences2: list[str]
    scores: list[float]


class Labelled(NamedTuple):
    """Texts with a label each: n strings, n strings or integers."""

    texts: list[str]
    labels: list[Label]


class Pairs(NamedTuple):
    """Sentences and their translations: n strings each."""

    source: list[str]
    target: list[str]


class Judged(NamedTuple):
    """A corpus, queries and what is relevant to them, as ``retrieval`` takes them."""

    corpus: dict[str, dict[str, str]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


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
    """Read two files of which line i has the same meaning. Only a line feed ends a line.

    Raises:
      ValueError: if they have not equally many lines, or one is blank; names file and line.
      OSError: if a file cannot be read.
    """
    sides = [[_text(*line) for line in _lines(Path(path))] for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        counts = f"{source} {len(sides[0])}, {target} {len(sides[1])}"
        raise ValueError(f"expected equally many lines, got {counts}")
    return Pairs(*sides)


def read_beir(directory: str | Path, split: str = "test") -> Judged:
    """Read a retrieval data set in the layout of BEIR.

    Args:
      directory: with corpus.jsonl ("_id", "text" and mostly "title"), queries.jsonl ("_id",
        "text") and qrels/SPLIT.tsv (a header, then query-id, corpus-id, score).
      split: whose judgements to take.

    Raises:
      ValueError: for anything that is not of this form; names file and line.
      OSError: if a file cannot be read.
    """
    directory = Path(directory)
    judgements = directory / "qrels" / f"{split}.tsv"
    if judgements.parent.is_dir() and not judgements.is_file():
        splits = ", ".join(sorted(path.stem for path in judgements.parent.glob("*.tsv")))
        raise ValueError(f"split={split!r}: {directory} has {splits or 'none'}")
    corpus, queries = {}, {}
    for where, name, row in _by_id(directory / "corpus.jsonl"):
        title = "" if row.get("title") is None else _string(where, row["title"], "title")
        corpus[name] = {"title": title, "text": _string(where, row.get("text"))}
    for where, name, row in _by_id(directory / "queries.jsonl"):
        queries[name] = _text(where, row.get("text"))
    return Judged(corpus, queries, _read_qrels(judgements, queries))


def _is_bare(path: Path) -> bool:
    """Tell whether CSV begins with a row of three, a number last, instead of a header."""
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            first = next(csv.reader(file, delimiter=delimiter), [])
            float(first[-1] if len(first) == 3 else "header")
        except (csv.Error, ValueError):
            return False
    return True


def _targets(source: Any) -> list[Any]:
    return source.targets.tolist()


def _by_id(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield ("file:line", id, object) of JSONL with an "_id" in each line."""
    seen = set()
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        name = _text(where, row.get("_id"), "_id")
        if name in seen:
            raise ValueError(f"{where}: _id {name!r} is there twice")
        seen.add(name)
        yield where, name, row


def _read_qrels(path: Path, queries: dict[str, str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for record in read_records(path, Columns(QRELS_COLUMNS)):
        where = f"{path}:{record.line}"
        if record.reason:
            raise ValueError(f"{where}: {record.reason}")
        query, document, relevance = (value for _, value in record.fields)
        if query not in queries:
            raise ValueError(f"{where}: query {query!r} is not in queries.jsonl")
        judged = qrels.setdefault(query, {})
        if document in judged:
            raise ValueError(f"{where}: query {query!r} and document {document!r} are there twice")
        judged[document] = _integer(where, relevance)
    if not qrels:
        raise ValueError(f"{path}: expected rows below the header")
    return qrels


def _integer(where: str, text: str) -> int:
    try:
        number = float(text)  # some data sets have 1.0
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: expected an integer score, got {text!r}") from None
    return int(number)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line", line)."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = decode_line(raw, number)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            yield where, line
        if not file.tell():
            raise ValueError(f"{path}: is empty")


def _string(where: str, value: Any, field: str = "text") -> str:
    if not isinstance(value, str):
        got = "none" if value is None else type(value).__name__
        raise ValueError(f"{where}: {field}: expected a string, got {got}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {field}: expected Unicode text, got a lone surrogate")
    return value


def _text(where: str, value: Any, field: str = "text") -> str:
    if not _string(where, value, field).strip():
        raise ValueError(f"{where}: {field}: expected a text, got a blank one")
    return value
