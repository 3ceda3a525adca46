"""Shared parts of the recipe: folders of data, and JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# The public data beside the repository.
SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[3] / "shared"))
STS_LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
FOLDS = 5  # folds of Banking77
# As in jinaai/jina-embeddings-v3, except for the sizes.
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_searches(work: Path) -> set[str]:
    """Return the texts of the held-out searches, which are excluded from training files."""
    return {
        row["text"]
        for search in ("search", "search-en")
        for name in ("queries.jsonl", "corpus.jsonl")
        for row in read_rows(work / search / name)
    }
