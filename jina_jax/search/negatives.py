"""Hard negatives: for each query, texts that are near it but do not answer it."""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jina_jax.data.lines import check_text, labelled
from jina_jax.files import new_output
from jina_jax.search.nearest import nearest
from jina_jax.search.rules import Rules
from jina_jax.tasks import Task, pick_tasks

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

Pair = tuple[str, str]


class MinedRow(NamedTuple):
    """A pair with its negatives.

    Attributes:
      query, positive: the pair.
      negatives: ``num_negatives`` texts, the nearest to the query first.
      scores: float32 cosine similarities to the query, of the positive and then of the negatives.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...]


class Mined(NamedTuple):
    """Result of ``mine_hard_negatives``.

    Attributes:
      rows: pairs with their negatives, in the order of the pairs.
      left_out: indices of pairs whose query has fewer than ``num_negatives`` negatives.
      repeated: indices of pairs that repeat an earlier one, and are not used again.
      removed: for each filter the number of candidates that it removed, of those that the filters
        before it in this order had left.
      queries: number of distinct queries.
      texts: number of distinct texts that were searched.
    """

    rows: list[MinedRow]
    left_out: list[int]
    repeated: list[int]
    removed: dict[str, int]
    queries: int
    texts: int


def mine_hard_negatives(
    model: JinaEmbeddings,
    pairs: Sequence[Pair],
    corpus: Sequence[str] | None = None,
    *,
    rules: Rules | None = None,
    task: Task = "auto",
    truncate_dim: int | None = None,
    show_progress_bar: bool | None = None,
) -> Mined:
    """Find texts that are near a query, and are none of its positives.

    A query's candidates are the ``range_max`` texts nearest to it by cosine similarity, without
    its positives and without a text equal to the query; ``rules`` select among them. The search is
    exact; of equally near texts the first in order is used.

    Args:
      model: encodes queries and texts.
      pairs: (query, positive). Every text paired with a query is one of its positives.
      corpus: texts to search, in addition to all positives; None for the positives alone.
      rules: number of negatives and filters, named as the options of sentence-transformers; None
        for the defaults of ``Rules``.
      task: adapter, None for the base model, or a pair (queries, texts); "auto" for
        "retrieval.query" and "retrieval.passage" if the model has them.
      truncate_dim: Matryoshka dimension to search in; None for the checkpoint's own.
      show_progress_bar: as for ``JinaEmbeddings.encode``.

    Returns:
      ``Mined``, with a row for each distinct pair that has ``num_negatives`` negatives.

    Raises:
      ValueError: for no pairs, a text that is blank or no valid string, or a task or dimension
        that the model lacks; the message names it.
    """
    rules = rules or Rules()
    pairs, corpus = _check_pairs(pairs), _check_corpus(corpus)
    # dict.fromkeys drops what comes again and keeps the order.
    queries = list(dict.fromkeys(query for query, _ in pairs))
    texts = list(dict.fromkeys([*corpus, *(positive for _, positive in pairs)]))
    query_task, text_task = pick_tasks(model, "hard negatives", task)
    encode = functools.partial(
        model.encode, truncate_dim=truncate_dim, show_progress_bar=show_progress_bar
    )
    vectors = encode(queries, task=query_task), encode(texts, task=text_task)
    found, removed = _search(pairs, queries, texts, *vectors, rules)
    rows, left_out, repeated = _rows(pairs, found)
    return Mined(rows, left_out, repeated, dict(removed), len(queries), len(texts))


def write_triplets(path: str | Path, mined: Mined, *, force: bool = False) -> None:
    """Write rows as JSON lines, which ``jina_jax.data.source`` reads as triplets.

    A row has "anchor", "positive", "negative" (a list) and "scores". The file appears only when it
    is complete.

    Args:
      path: the file to write.
      mined: rows to write.
      force: overwrite an existing file.

    Raises:
      ValueError: if there are no rows.
      FileExistsError: if the file exists and ``force`` is False.
      FileNotFoundError: if its directory does not exist.
    """
    with new_output(Path(path), force=force) as file:
        file.writelines(triplet_lines(mined))


def triplet_lines(mined: Mined) -> Iterator[bytes]:
    """Yield the lines of ``write_triplets``. Raises ``ValueError`` if there are no rows."""
    if not mined.rows:
        raise ValueError(
            f"mined: expected at least one row, but none of {len(mined.left_out)} pairs has enough "
            f"negatives from {mined.texts} texts; removed by filters: {mined.removed or 'none'}"
        )
    for row in mined.rows:
        fields = {
            "anchor": row.query,
            "positive": row.positive,
            "negative": row.negatives,
            # Nine digits give a float32 back exactly.
            "scores": [float(f"{score:.9g}") for score in row.scores],
        }
        yield (json.dumps(fields, ensure_ascii=False) + "\n").encode()


class _Found(NamedTuple):
    """Scores of a query's positives, and its negatives with scores; None if there are too few."""

    positives: dict[str, float]
    negatives: list[tuple[str, float]] | None


def _search(
    pairs: list[Pair],
    queries: list[str],
    texts: list[str],
    query_vectors: np.ndarray,
    text_vectors: np.ndarray,
    rules: Rules,
) -> tuple[dict[str, _Found], collections.Counter[str]]:
    """Find every query's candidates and choose among them; count what each filter removed."""
    index = {text: i for i, text in enumerate(texts)}
    positives: dict[str, list[int]] = {query: [] for query in queries}
    for query, positive in pairs:
        positives[query].append(index[positive])
    excluded = [{*positives[query], index.get(query, -1)} for query in queries]
    depth = min(rules.range_max + max(map(len, excluded)), len(texts))
    found: dict[str, _Found] = {}
    removed: collections.Counter[str] = collections.Counter()
    for i, (scores, ids) in enumerate(nearest(query_vectors, text_vectors, depth)):
        own = positives[queries[i]]
        own_scores = text_vectors[own] @ query_vectors[i]
        candidates = np.flatnonzero(~np.isin(ids, [*excluded[i]]))[: rules.range_max]
        candidates = candidates[rules.keep(scores[candidates], own_scores.min(), removed)]
        chosen = rules.choose(len(candidates), i)
        negatives = chosen if chosen is None else _named(candidates[chosen], scores, ids, texts)
        found[queries[i]] = _Found(
            {texts[k]: float(s) for k, s in zip(own, own_scores, strict=True)}, negatives
        )
    return found, removed


def _named(
    ranks: np.ndarray, scores: np.ndarray, ids: np.ndarray, texts: list[str]
) -> list[tuple[str, float]]:
    return [(texts[ids[rank]], float(scores[rank])) for rank in ranks]


def _rows(
    pairs: list[Pair], found: dict[str, _Found]
) -> tuple[list[MinedRow], list[int], list[int]]:
    """Return rows, the pairs that are left out, and those that repeat an earlier one."""
    rows: list[MinedRow] = []
    left_out: list[int] = []
    repeated: list[int] = []
    seen: set[Pair] = set()
    for i, pair in enumerate(pairs):
        query, positive = pair
        negatives = found[query].negatives
        if pair in seen:
            repeated.append(i)
        elif negatives is None:
            left_out.append(i)
        else:
            others, scores = zip(*negatives, strict=True)
            rows.append(MinedRow(*pair, others, (found[query].positives[positive], *scores)))
        seen.add(pair)
    return rows, left_out, repeated


def _check_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    if isinstance(pairs, str) or len(pairs) == 0:
        raise ValueError(f"pairs={pairs!r}: expected at least one (query, positive)")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"pairs[{i}]: expected (query, positive), got {pair!r}")
        _check_texts(f"pairs[{i}]", query=pair[0], positive=pair[1])
    return [(query, positive) for query, positive in pairs]


def _check_corpus(corpus: Sequence[str] | None) -> Sequence[str]:
    if isinstance(corpus, str):
        raise ValueError(f"corpus={corpus!r}: expected a sequence of texts or None")
    for i, text in enumerate(corpus or ()):
        _check_texts(f"corpus[{i}]", text=text)
    return corpus or ()


def _check_texts(label: str, **texts: Any) -> None:
    """Refuse texts that could not be read again from a file of triplets."""
    with labelled(label):
        for name, text in texts.items():
            check_text(text, name)
