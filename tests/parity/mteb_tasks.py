"""Tasks of the package mteb with data made here. Importing this imports mteb and PyTorch."""

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClusteringLegacy,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType as PromptType

WORDS = ("cat", "dog", "tree", "house", "river", "stone", "bread", "water", "light", "night")
RNG = np.random.default_rng(3)


def sentences(count, length=5):
    """Draw sentences, all different."""
    drawn = [" ".join(RNG.choice(WORDS, length)) for _ in range(2 * count)]
    return list(dict.fromkeys(drawn))[:count]


def metadata(name, kind, score):
    return TaskMetadata(
        name=name,
        description="made here",
        type=kind,
        category="t2t",
        dataset={"path": "none", "revision": "none"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )


class InMemory:
    """The part of a task that would download its data."""

    def load_data(self, **_):
        self.data_loaded = True


FIRST, SECOND = sentences(60), sentences(60, 4)
SCORES = RNG.integers(0, 6, 60).tolist()
LABELS = [text.count("a") % 3 for text in FIRST]
# All different, as of equal sentences either may be found.
TRANSLATIONS = [
    " ".join([*words[2:], "bread", "bread", *words[:2]]) for words in map(str.split, FIRST)
]


class LocalSTS(InMemory, AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")
    dataset = DatasetDict(
        test=Dataset.from_dict({"sentence1": FIRST, "sentence2": SECOND, "score": SCORES})
    )


class LocalBitext(InMemory, AbsTaskBitextMining):
    metadata = metadata("LocalBitext", "BitextMining", "f1")
    dataset = DatasetDict(test=Dataset.from_dict({"sentence1": FIRST, "sentence2": TRANSLATIONS}))


class LocalClassification(InMemory, AbsTaskClassification):
    metadata = metadata("LocalClassification", "Classification", "accuracy")
    # All of the training texts, once: the one protocol that ours and mteb's have in common.
    samples_per_label, n_experiments = 1000, 1
    dataset = DatasetDict(
        train=Dataset.from_dict({"text": FIRST[:40], "label": LABELS[:40]}),
        test=Dataset.from_dict({"text": FIRST[40:], "label": LABELS[40:]}),
    )


class LocalClustering(InMemory, AbsTaskClusteringLegacy):
    metadata = metadata("LocalClustering", "Clustering", "v_measure")
    dataset = DatasetDict(test=Dataset.from_dict({"sentences": [FIRST], "labels": [LABELS]}))


CORPUS = {f"d{i}": {"title": "about it" if i % 3 else "", "text": t} for i, t in enumerate(SECOND)}
QUERIES = {f"q{i}": text for i, text in enumerate(FIRST[:20])} | {"d7": SECOND[7]}
QRELS = {
    query: {f"d{one}": int(RNG.integers(0, 3)) for one in RNG.choice(60, 8, replace=False)}
    | {f"d{30 + i}": 2}
    for i, query in enumerate(QUERIES)
}


class LocalRetrieval(InMemory, AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def __init__(self, **options):
        super().__init__(**options)
        documents = [{"id": one, **document} for one, document in CORPUS.items()]
        queries = [{"id": one, "text": text} for one, text in QUERIES.items()]
        split = {"corpus": Dataset.from_list(documents), "queries": Dataset.from_list(queries)}
        qrels = {query: dict(judged) for query, judged in QRELS.items()}
        self.dataset = {"default": {"test": {**split, "relevant_docs": qrels, "top_ranked": None}}}


class LocalArguAna(LocalRetrieval):
    metadata = metadata("LocalArguAna", "Retrieval", "ndcg_at_10")
    ignore_identical_ids = True
