"""Evaluations of sentence pairs: semantic similarity and bitext mining."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jina_jax.evaluation.encoding import Vectors, check_lengths, optional
from jina_jax.search.nearest import nearest
from jina_jax.tasks import Task, TextEncoder, pick_tasks


def sts(
    model: TextEncoder,
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    *,
    task: Task = "auto",
    dims: Sequence[int] | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Evaluate semantic textual similarity: correlation of cosine similarities with scores.

    Cosines are those of scikit-learn's ``paired_cosine_distances``, as in MTEB.

    Args:
      model: with an ``encode`` like that of ``JinaEmbeddings``.
      sentences1, sentences2: n strings each.
      scores: n numbers, larger for pairs that are more alike.
      task: adapter, or None for the base model; "auto" for "text-matching" if the model has it.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.

    Returns:
      "spearman" and "pearson", in -1 … 1; for each of ``dims`` also "spearman@64" and so on.

    Raises:
      ValueError: for columns of different length, constant or non-finite scores or similarities,
        or an argument out of range.
      ImportError: without the extra ``eval``.
    """
    stats, pairwise = optional("scipy.stats"), optional("sklearn.metrics.pairwise")
    check_lengths(sentences1=sentences1, sentences2=sentences2, scores=scores)
    gold = check_varied(scores, "scores")
    (adapter,) = pick_tasks(model, "sts", task)
    vectors = Vectors(model, dims, max_length)

    def metrics(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        distances = pairwise.paired_cosine_distances(first, second)
        cosines = check_varied(1 - distances.astype(np.float64), "cosine similarities")
        return {
            "spearman": stats.spearmanr(gold, cosines).statistic,
            "pearson": stats.pearsonr(gold, cosines).statistic,
        }

    both = vectors.encode([*sentences1, *sentences2], adapter)
    return vectors.score(metrics, *np.split(both, 2))


def check_varied(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """Return n values as float64, and refuse constant or non-finite ones."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        raise ValueError(f"{name}: expected finite numbers that are not all equal")
    return values


def bitext(
    model: TextEncoder,
    source: Sequence[str],
    target: Sequence[str],
    *,
    task: Task = "auto",
    dims: Sequence[int] | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Evaluate bitext mining: is a sentence's nearest neighbour by cosine its translation?

    Of two equal sentences only one counts as the translation.

    Args:
      model: with an ``encode`` like that of ``JinaEmbeddings``.
      source: n sentences of one language.
      target: their n translations, in the same order.
      task: adapter, or None for the base model; "auto" for "text-matching" if the model has it (the
        paper names no adapter for bitext mining).
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.

    Returns:
      "source_to_target" and "target_to_source", the shares of sentences whose translation is found
      among those of the other side; "accuracy", the mean of both; "f1", MTEB's weighted F1 from
      source to target. In 0 … 1; for each of ``dims`` also "accuracy@64" and so on.

    Raises:
      ValueError: for sides of different length, or an argument out of range.
      ImportError: without the extra ``eval``.
    """
    scoring = optional("sklearn.metrics")
    check_lengths(source=source, target=target)
    (adapter,) = pick_tasks(model, "bitext", task)
    vectors = Vectors(model, dims, max_length)
    numbers = np.arange(len(source))

    def metrics(sources: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        there, back = _nearest(sources, targets), _nearest(targets, sources)
        forward, backward = np.mean(there == numbers), np.mean(back == numbers)
        return {
            "source_to_target": forward,
            "target_to_source": backward,
            "accuracy": (forward + backward) / 2,
            "f1": scoring.f1_score(numbers, there, average="weighted", zero_division=0),
        }

    return vectors.score(metrics, vectors.encode(source, adapter), vectors.encode(target, adapter))


def _nearest(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return for each unit vector (n, d) the nearest of (m, d), of equals the first."""
    return np.concatenate([ids for _, ids in nearest(queries, documents, 1)])
