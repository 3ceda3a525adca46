"""Retrieval data sets in the layout of BEIR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.data.lines import check_string, check_text, json_lines, labelled, path_lines
from jina_jax.data.records import Columns, read_records

_QRELS = Columns(("query-id", "corpus-id", "score"))


class Judged(NamedTuple):
    """A retrieval data set.

    Attributes:
      corpus: "title" and "text" of each document by id.
      queries: text of each query by id.
      qrels: for each query by id the relevance of documents by id.
    """

    corpus: dict[str, dict[str, str]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_beir(directory: str | Path, split: str = "test") -> Judged:
    """Read a retrieval data set in the layout of BEIR.

    Args:
      directory: with corpus.jsonl ("_id", "text" and mostly "title"), queries.jsonl ("_id",
        "text") and qrels/SPLIT.tsv (a header, then query-id, corpus-id, score).
      split: name of the file of judgements.

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
    for label, name, row in _by_id(directory / "corpus.jsonl"):
        with labelled(label):
            title = "" if row.get("title") is None else row["title"]
            corpus[name] = {
                "title": check_string(title, "field 'title'"),
                "text": check_string(row.get("text"), "field 'text'"),
            }
    for label, name, row in _by_id(directory / "queries.jsonl"):
        with labelled(label):
            queries[name] = check_text(row.get("text"), "field 'text'")
    return Judged(corpus, queries, _read_qrels(judgements, queries))


def _by_id(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield ("file:line", id, object) of JSONL with an "_id" in each line."""
    seen = set()
    for label, _, row in json_lines(path_lines(path)):
        with labelled(label):
            name = check_text(row.get("_id"), "field '_id'")
            if name in seen:
                raise ValueError(f"_id {name!r} repeats an earlier line's")
        seen.add(name)
        yield label, name, row


def _read_qrels(path: Path, queries: dict[str, str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for record in read_records(path, _QRELS):
        with labelled(f"{path}:{record.line}"):
            if record.reason:
                raise ValueError(record.reason)
            query, document, relevance = (value for _, value in record.fields)
            if query not in queries:
                raise ValueError(f"query {query!r} is not in queries.jsonl")
            judged = qrels.setdefault(query, {})
            if document in judged:
                raise ValueError(f"query {query!r} and document {document!r} repeat a line")
            judged[document] = _integer(relevance)
    if not qrels:
        raise ValueError(f"{path}: expected rows below the header")
    return qrels


def _integer(text: str) -> int:
    try:
        number = float(text)  # some data sets have 1.0
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"expected an integer score, got {text!r}") from None
    return int(number)
