"""Evaluation of retrieval: are a query's relevant documents among the nearest?"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence

import numpy as np

from jina_jax.evaluation.encoding import Vectors, optional
from jina_jax.search.nearest import Nearest
from jina_jax.tasks import Task, TextEncoder, pick_tasks

DEPTH = 100
_DOCUMENTS, _QUERIES = 32768, 256  # encoded, and compared, at a time

Document = str | Mapping[str, str]
Qrels = Mapping[str, Mapping[str, int]]


def retrieval(
    model: TextEncoder,
    corpus: Mapping[str, Document],
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    task: Task = "auto",
    dims: Sequence[int] | None = None,
    max_length: int | None = None,
    ignore_identical_ids: bool = True,
) -> dict[str, float]:
    """Evaluate retrieval: rank all documents for each query by cosine.

    The metrics are trec_eval's, by pytrec_eval: of equal scores the larger id is first, judged
    documents that are not in the corpus count as not found, and a query without relevant documents
    counts with 0.

    Args:
      model: with an ``encode`` like that of ``JinaEmbeddings``.
      corpus: text of each document by id; or its "title" and "text", which are joined by a space
        as in BEIR.
      queries: text of each query by id. Queries without judgements are ignored.
      qrels: relevance of documents by id, for each query by id; 0 for irrelevant ones.
      task: adapter for queries and documents, None for the base model, or a pair (queries,
        documents); "auto" for "retrieval.query" and "retrieval.passage" if the model has them.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.
      ignore_identical_ids: leave out a document with the id of the query, as BEIR does; MTEB does
        so for some tasks only (ArguAna, Quora, …).

    Returns:
      "ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10" in 0 … 1, means over the queries;
      for each of ``dims`` also "ndcg_at_10@64" and so on.

    Raises:
      ValueError: for unknown ids, or an argument out of range.
      ImportError: without the extra ``eval``.
    """
    optional("pytrec_eval")
    qrels = {query: judged for query, judged in qrels.items() if judged}
    _check(corpus, queries, qrels)
    for_queries, for_documents = pick_tasks(model, "retrieval", task)
    vectors = Vectors(model, dims, max_length)
    asked = vectors.encode([queries[query] for query in qrels], for_queries)
    ids = sorted(corpus, reverse=True)  # so that the first of equals is trec_eval's first
    best = {suffix: _Best(*units) for suffix, units in vectors.cut(asked).items()}
    for start in range(0, len(ids), _DOCUMENTS):
        block = ids[start : start + _DOCUMENTS]
        documents = vectors.encode([_text(corpus[one]) for one in block], for_documents)
        for suffix, units in vectors.cut(documents).items():
            best[suffix].add(*units)
    return {
        f"{name}{suffix}": value
        for suffix, found in best.items()
        for name, value in _metrics(qrels, found.run(qrels, ids, ignore_identical_ids)).items()
    }


def _check(corpus: Mapping[str, Document], queries: Mapping[str, str], qrels: Qrels) -> None:
    if not corpus or not qrels:
        raise ValueError("corpus, qrels: expected at least one document and one query")
    lacking = [query for query in qrels if query not in queries]
    if lacking:
        raise ValueError(f"qrels: query {lacking[0]!r} is not among the queries")
    if not any(document in corpus for judged in qrels.values() for document in judged):
        raise ValueError("qrels: expected documents of the corpus, got none of them")
    for query, judged in qrels.items():
        for document, relevance in judged.items():
            if isinstance(relevance, bool) or not isinstance(relevance, numbers.Integral):
                raise ValueError(
                    f"qrels[{query!r}][{document!r}]={relevance!r}: expected an integer"
                )


def _text(document: Document) -> str:
    if isinstance(document, str):
        return document
    return f"{document.get('title', '')} {document['text']}".strip()


class _Best:
    """The documents nearest to each query (unit vectors) so far; of equal ones the first."""

    def __init__(self, queries: np.ndarray):
        # One more than is scored, since one may have the query's own id.
        self._blocks = [
            Nearest(queries[start : start + _QUERIES], DEPTH + 1)
            for start in range(0, len(queries), _QUERIES)
        ]

    def add(self, documents: np.ndarray) -> None:
        """Compare the next documents of the corpus."""
        for block in self._blocks:
            block.add(documents)

    def run(
        self, queries: Mapping[str, object], ids: list[str], ignore_identical_ids: bool
    ) -> dict[str, dict[str, float]]:
        """Return the scores of the best documents by id, for each query by id; best first."""
        run = {}
        rows = (row for block in self._blocks for row in zip(*block.result(), strict=True))
        for query, (scores, indices) in zip(queries, rows, strict=True):
            pairs = zip(indices.tolist(), scores.tolist(), strict=True)
            found = [(ids[index], score) for index, score in pairs if index >= 0]
            if ignore_identical_ids:
                found = [pair for pair in found if pair[0] != query]
            run[query] = dict(found)
        return run


def _metrics(qrels: Qrels, run: dict[str, dict[str, float]]) -> dict[str, float]:
    judged = {
        query: {document: int(relevance) for document, relevance in documents.items()}
        for query, documents in qrels.items()
    }
    results = _mean(judged, run, {"ndcg_cut.10", "recall.10,100"})
    # trec_eval has no reciprocal rank with a cut-off; here it gets ten documents.
    tops = {query: dict(list(found.items())[:10]) for query, found in run.items()}
    return {
        "ndcg_at_10": results["ndcg_cut_10"],
        "recall_at_10": results["recall_10"],
        "recall_at_100": results["recall_100"],
        "mrr_at_10": _mean(judged, tops, {"recip_rank"})["recip_rank"],
    }


def _mean(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], measures: set[str]
) -> dict[str, float]:
    evaluator = optional("pytrec_eval").RelevanceEvaluator(qrels, measures)
    results = list(evaluator.evaluate(run).values())
    return {name: sum(result[name] for result in results) / len(qrels) for name in results[0]}
