"""Measure the finished model on development data: every number of the model card.

    python recipes/tiny/evaluate.py work MODEL

prints the tables and writes ``scores.json`` and ``dims.png`` into logs. Needs the extras
``eval`` and ``plot``, and bm25s.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDS, SHARED, STS_LANGUAGES, read_rows

from jina_jax import JinaEmbeddings
from jina_jax.evaluation import Evaluation, read_beir
from jina_jax.tasks import from_word

TATOEBA = ("ben", "ell", "fin", "fra", "jpn", "kor", "nld", "spa", "ukr", "vie")
DIMS = (32, 64, 128)
SEEDS = 20  # starts of k-means

Scores = dict[str, Any]


class Prompted:
    """A model with one prompt, or none, for every text in place of the task's own."""

    def __init__(self, model: JinaEmbeddings, prompt: str | None):
        self._model, self._prompt, self.config = model, prompt, model.config

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return self._model.encode(texts, **{**options, "prompt": self._prompt})


def main() -> None:
    work, model = Path(sys.argv[1]), JinaEmbeddings.from_pretrained(sys.argv[2])
    teacher = Prompted(JinaEmbeddings.from_pretrained(work / "teacher"), "query: ")
    scores: Scores = {}
    for label, encoder, task in (
        ("teacher", teacher, "none"),
        ("none", model, "none"),
        ("text-matching", model, "text-matching"),
    ):
        scores[f"sts {label}"] = sts(encoder, task)
        scores[f"tatoeba {label}"] = tatoeba(encoder, task)
    scores["banking teacher"] = banking(teacher, "none", work)
    for task in ("none", "classification"):
        scores[f"banking {task}"] = banking(model, task, work)
    for name in ("banking-unseen", "glosses-test", "help-test"):
        for task in ("none", "separation"):
            scores[f"clusters {name} {task}"] = clusters(model, task, work / f"{name}.jsonl")
    for name in ("search", "search-en"):
        for label, encoder, task in (
            ("teacher", teacher, "none"),
            ("none", model, "none"),
            ("auto", model, "auto"),
            ("auto no prompt", Prompted(model, None), "auto"),
        ):
            scores[f"{name} {label}"] = one(
                encoder, "ndcg_at_10", kind="retrieval", paths=[work / name], task=task
            )
        scores[f"{name} bm25"] = {"full": bm25(work / name)}
    for name, value in scores.items():
        show = (f"{key} {number:.4f}" for key, number in value.items() if key != "each")
        print(f"{name:<32}", *show)
    place = Path(__file__).with_name("logs") / "scores.json"
    place.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    plot(scores, model.config.hidden_size)


def one(model: Any, metric: str, task: str, **fields: Any) -> dict[str, float]:
    """Return one metric of an evaluation, by dimension; "full" is the whole vector."""
    evaluation = Evaluation(dims=DIMS, name="x", task=from_word(task), **fields)
    results = evaluation.run(model)
    return {
        (key.partition("@")[2] or "full"): value
        for key, value in results.items()
        if key.rpartition("/")[2].partition("@")[0] == metric
    }


def mean(results: dict[str, dict[str, float]]) -> Scores:
    keys = next(iter(results.values()))
    means = {key: float(np.mean([r[key] for r in results.values()])) for key in keys}
    return {**means, "each": {name: result["full"] for name, result in results.items()}}


def sts(model: Any, task: str) -> Scores:
    """Spearman's correlation on STS-b (dev), eleven languages."""
    path = SHARED / "eval" / "stsb-{}-dev.csv"
    return mean(
        {
            code: one(
                model,
                "spearman",
                kind="sts",
                paths=[str(path).format(code)],
                columns=(0, 1, 2),
                task=task,
            )
            for code in STS_LANGUAGES
        }
    )


def tatoeba(model: Any, task: str) -> Scores:
    """Accuracy of finding translations among 1,000, mean of both directions, ten languages."""
    results = {}
    for code in TATOEBA:
        paths = [SHARED / "eval" / f"tatoeba.{code}-eng.{side}" for side in (code, "eng")]
        both = [
            one(model, "accuracy", kind="bitext", paths=pair, task=task)
            for pair in (paths, paths[::-1])
        ]
        results[code] = {key: (both[0][key] + both[1][key]) / 2 for key in both[0]}
    return mean(results)


def banking(model: Any, task: str, work: Path) -> Scores:
    """Accuracy of the nearest neighbour on Banking77 (train) in five folds.

    The adapter of a fold is trained without it: ``folds/K`` was trained on the other four.
    """
    results = {}
    for fold in range(FOLDS):
        own = work / "folds" / str(fold)
        encoder = model if task == "none" else JinaEmbeddings.from_pretrained(own)
        paths = [work / "banking" / f"{part}-{fold}.jsonl" for part in ("train", "test")]
        options = {"kind": "classification", "paths": paths, "task": task}
        results[str(fold)] = one(encoder, "knn_accuracy", **options)
    return mean(results)


def clusters(model: JinaEmbeddings, task: str, path: Path) -> Scores:
    """V-measure of k-means, mean of SEEDS starts: one varies as much as an adapter changes it."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    rows = list(read_rows(path))
    labels = [row["label"] for row in rows]
    vectors = model.encode([row["text"] for row in rows], task=from_word(task))
    scores: Scores = {}
    for dim in (*DIMS, vectors.shape[1]):
        units = vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
        found = []
        for seed in range(SEEDS):
            kmeans = MiniBatchKMeans(
                len(set(labels)), batch_size=500, n_init="auto", random_state=seed
            )
            found.append(v_measure_score(labels, kmeans.fit_predict(units)))
        name = "full" if dim == vectors.shape[1] else str(dim)
        scores[name] = float(np.mean(found))
        scores[f"{name} deviation"] = float(np.std(found, ddof=1))
    return scores


def bm25(directory: Path) -> float:
    """nDCG@10 of BM25 on words, without code of the model."""
    import bm25s
    import pytrec_eval

    corpus, queries, qrels = read_beir(directory, "test")
    names = list(corpus)
    index = bm25s.BM25()
    texts = [corpus[name]["text"] for name in names]
    index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), stopwords=None, show_progress=False)
    found, values = index.retrieve(tokens, k=10, show_progress=False)
    run = {
        query: {names[i]: float(s) for i, s in zip(row, line, strict=True)}
        for query, row, line in zip(queries, found.tolist(), values.tolist(), strict=True)
    }
    results = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([result["ndcg_cut_10"] for result in results.values()]))


def plot(scores: Scores, width: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = {
        "STS-b, text-matching": "sts text-matching",
        "Tatoeba, no adapter": "tatoeba none",
        "Banking77, classification": "banking classification",
        "search, retrieval pair": "search auto",
    }
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    dims = [*DIMS, width]
    for label, name in lines.items():
        values = [scores[name][str(dim)] for dim in DIMS] + [scores[name]["full"]]
        axes.plot(dims, values, marker="o", label=label)
    axes.set(xscale="log", xlabel="dimensions kept", ylabel="score", ylim=(0, 1))
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(__file__).with_name("logs") / "dims.png", dpi=120)


if __name__ == "__main__":
    main()
