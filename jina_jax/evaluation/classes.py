"""Evaluations with labels: classification and clustering."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jina_jax.evaluation.encoding import Vectors, check_lengths, optional
from jina_jax.tasks import Task, TextEncoder, pick_tasks

FOLDS = 5
SEED = 42

Label = str | int


def classification(
    model: TextEncoder,
    train_texts: Sequence[str],
    train_labels: Sequence[Label],
    test_texts: Sequence[str] | None = None,
    test_labels: Sequence[Label] | None = None,
    *,
    task: Task = "auto",
    dims: Sequence[int] | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Evaluate classification: can simple classifiers learn labels from vectors?

    Logistic regression as in MTEB (L2 with C = 1, at most 100 iterations), and the label of the
    nearest neighbour by cosine. All training texts are used; MTEB draws 8 texts per label, ten
    times, so its scores are lower (see ``MtebModel``).

    Args:
      model: with an ``encode`` like that of ``JinaEmbeddings``.
      train_texts: n strings.
      train_labels: n strings or integers, of at least two values.
      test_texts, test_labels: the same for m other texts; None for the mean over a stratified
        5-fold cross validation on the training texts, always with the same folds.
      task: adapter, or None for the base model; "auto" for "classification" if the model has it.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.

    Returns:
      "logistic_accuracy", "logistic_f1", "knn_accuracy", "knn_f1" in 0 … 1, F1 as the mean over
      labels (macro); for each of ``dims`` also "logistic_accuracy@64" and so on.

    Raises:
      ValueError: for too few texts, columns of different length, or an argument out of range.
      ImportError: without the extra ``eval``.
    """
    classifiers = _classifiers()
    check_lengths(train_texts=train_texts, train_labels=train_labels)
    _check_labels(train_labels, () if test_labels is None else test_labels)
    (adapter,) = pick_tasks(model, "classification", task)
    vectors = Vectors(model, dims, max_length)
    labels = np.asarray(train_labels)
    if test_texts is None or test_labels is None:
        if test_texts is not test_labels:
            raise ValueError("test_texts, test_labels: expected both or none")
        folds = list(_folds(labels))
        return vectors.score(
            lambda x: _cross_validate(classifiers, x, labels, folds),
            vectors.encode(train_texts, adapter),
        )
    check_lengths(test_texts=test_texts, test_labels=test_labels)
    return vectors.score(
        lambda x, y: _fit_and_score(classifiers, x, labels, y, np.asarray(test_labels)),
        vectors.encode(train_texts, adapter),
        vectors.encode(test_texts, adapter),
    )


def _check_labels(labels: Sequence[Label], others: Sequence[Label] = ()) -> None:
    if len(set(labels)) < 2:
        raise ValueError(f"labels: expected at least two, got only {labels[0]!r}")
    kinds = sorted({type(label).__name__ for label in [*labels, *others]})
    if len(kinds) > 1:
        raise ValueError(f"labels: expected strings or integers, got {' and '.join(kinds)}")


def _classifiers() -> dict[str, Callable[[], Any]]:
    linear, neighbors = optional("sklearn.linear_model"), optional("sklearn.neighbors")
    return {
        "logistic": lambda: linear.LogisticRegression(max_iter=100),
        "knn": lambda: neighbors.KNeighborsClassifier(1, metric="cosine"),
    }


def _folds(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    label, count = min(Counter(labels.tolist()).items(), key=lambda item: item[1])
    if count < FOLDS:
        raise ValueError(
            f"train_labels: expected at least {FOLDS} texts of each label for cross validation, "
            f"got {count} of {label!r}; give test_texts instead"
        )
    selection = optional("sklearn.model_selection")
    splitter = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    return splitter.split(np.zeros(len(labels)), labels)


def _cross_validate(
    classifiers: dict[str, Callable[[], Any]],
    vectors: np.ndarray,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    results = [
        _fit_and_score(classifiers, vectors[train], labels[train], vectors[test], labels[test])
        for train, test in folds
    ]
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


def _fit_and_score(
    classifiers: dict[str, Callable[[], Any]],
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    scoring = optional("sklearn.metrics")
    results = {}
    for name, make in classifiers.items():
        with warnings.catch_warnings():
            # That 100 iterations may not suffice is part of MTEB's rule.
            warnings.simplefilter("ignore", optional("sklearn.exceptions").ConvergenceWarning)
            predicted = make().fit(train, train_labels).predict(test)
        results[f"{name}_accuracy"] = scoring.accuracy_score(test_labels, predicted)
        results[f"{name}_f1"] = scoring.f1_score(test_labels, predicted, average="macro")
    return results


def clustering(
    model: TextEncoder,
    texts: Sequence[str],
    labels: Sequence[Label],
    *,
    task: Task = "auto",
    dims: Sequence[int] | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Evaluate clustering: do the clusters of k-means agree with labels?

    As in MTEB (``ClusteringEvaluator``): mini-batch k-means on batches of 500 unit vectors, as many
    clusters as labels, one start, a fixed seed.

    Args:
      model: with an ``encode`` like that of ``JinaEmbeddings``.
      texts: n strings.
      labels: n strings or integers, of at least two values.
      task: adapter, or None for the base model; "auto" for "separation" if the model has it.
      dims: Matryoshka dimensions to score beside the model's own.
      max_length: maximum tokens per text; None for the model's limit.

    Returns:
      "v_measure" in 0 … 1; for each of ``dims`` also "v_measure@64" and so on.

    Raises:
      ValueError: for columns of different length, or an argument out of range.
      ImportError: without the extra ``eval``.
    """
    cluster, scoring = optional("sklearn.cluster"), optional("sklearn.metrics")
    check_lengths(texts=texts, labels=labels)
    _check_labels(labels)
    (adapter,) = pick_tasks(model, "clustering", task)
    vectors = Vectors(model, dims, max_length)

    def metrics(units: np.ndarray) -> dict[str, float]:
        kmeans = cluster.MiniBatchKMeans(
            len(set(labels)), batch_size=500, n_init="auto", random_state=SEED
        )
        return {"v_measure": scoring.v_measure_score(labels, kmeans.fit(units).labels_)}

    return vectors.score(metrics, vectors.encode(texts, adapter))
