"""Evaluations: metrics against formulas, what reaches the encoder, files and what is refused."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from published import PROMPTS, TASKS
from tiny import write_tiny

from jina_jax import JinaEmbeddings, evaluation
from jina_jax.evaluation import Evaluation, classes, ranking
from jina_jax.search import nearest as search
from jina_jax.tasks import from_word, pick_tasks
from jina_jax.training import settings

sklearn = pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("pytrec_eval")

WIDTH = 12


class Stub:
    """Gives each text the vector that is kept for it, and notes how it was asked."""

    def __init__(self, vectors, tasks=TASKS):
        self.vectors = {text: np.asarray(vector, np.float32) for text, vector in vectors.items()}
        self.calls = []
        if tasks is not None:
            self.config = SimpleNamespace(lora_adaptations=tasks, embedding_dim=self.embedding_dim)

    def embedding_dim(self, dim):
        width = len(next(iter(self.vectors.values())))
        if dim is not None and dim > width:
            raise ValueError(f"truncate_dim={dim}: expected at most {width}")
        return dim or width

    def encode(self, texts, **options):
        self.calls.append((list(texts), options))
        return np.stack([self.vectors[text] for text in texts])

    def asked(self):
        return [(options["task"], texts) for texts, options in self.calls]


def random_vectors(texts, seed=0, width=WIDTH):
    return dict(
        zip(texts, np.random.default_rng(seed).normal(size=(len(texts), width)), strict=True)
    )


def cosines(vectors, first, second, dim=None):
    """Return float64 cosines (n, m) of the first ``dim`` values."""
    left, right = (np.float64([vectors[t] for t in texts])[:, :dim] for texts in (first, second))
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    return left @ right.T


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return JinaEmbeddings.from_pretrained(write_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def write(tmp_path):
    """Write a file: bytes or text as they are, a list of objects as JSONL."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


class TestTasks:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("sts", ("text-matching",)),
            ("bitext", ("text-matching",)),
            ("classification", ("classification",)),
            ("clustering", ("separation",)),
            ("retrieval", ("retrieval.query", "retrieval.passage")),
            ("hard negatives", ("retrieval.query", "retrieval.passage")),
            ("late chunking", ("retrieval.passage",)),
        ],
    )
    def test_auto_is_the_papers_choice(self, kind, expected):
        assert pick_tasks(Stub({}), kind) == expected
        assert pick_tasks(Stub({}, ()), kind) == (None,) * len(expected)
        assert pick_tasks(Stub({}, None), kind) == (None,) * len(expected)

    @pytest.mark.parametrize(
        ("kind", "task", "expected"),
        [
            ("sts", "separation", ("separation",)),
            ("sts", None, (None,)),
            ("sts", [None], (None,)),
            ("retrieval", "separation", ("separation", "separation")),
            ("retrieval", None, (None, None)),
            ("retrieval", (None, "auto"), (None, "retrieval.passage")),
            ("retrieval", ("auto", None), ("retrieval.query", None)),
        ],
    )
    def test_chosen(self, kind, task, expected):
        assert pick_tasks(Stub({}), kind, task) == expected

    @pytest.mark.parametrize(
        ("kind", "task"),
        [("sts", ("a", "b")), ("sts", 3), ("retrieval", ("a",)), ("retrieval", ("a", 3))],
    )
    def test_refused(self, kind, task):
        with pytest.raises(ValueError, match=rf"task=.*: expected None.* for {kind}"):
            pick_tasks(Stub({}), kind, task)

    @pytest.mark.parametrize("task", ["none", ("auto", "none")])
    def test_none_is_spelled_none(self, task):
        with pytest.raises(ValueError, match=r"task='none': expected None .* for the base model"):
            pick_tasks(Stub({}), "retrieval", task)

    @pytest.mark.parametrize(
        ("word", "meant"),
        [
            ("none", None),
            ("auto", "auto"),
            ("separation", "separation"),
            (("none", "auto"), (None, "auto")),
            (None, None),
        ],
    )
    def test_words_of_the_command_line_and_of_toml(self, word, meant):
        assert from_word(word) == meant

    def test_an_adapter_that_the_model_lacks(self, model):
        with pytest.raises(ValueError, match="nothing-like-it"):
            evaluation.sts(model, ["a", "b"], ["c", "d"], [1, 2], task="nothing-like-it")


class TestEncoding:
    def test_everything_is_encoded_once_at_full_width(self):
        stub = Stub(random_vectors("abcdef"))
        evaluation.sts(stub, "abc", "def", [1, 2, 3], dims=(4, 8), max_length=7)
        ((texts, options),) = stub.calls
        assert texts == list("abcdef")
        assert options == {
            "task": "text-matching",
            "prompt": "auto",
            "truncate_dim": WIDTH,
            "max_length": 7,
            "normalize_embeddings": False,
        }

    def test_prompts_and_adapters_of_a_real_model(self, model):
        texts = ["what is it?", "a cat", "the dog", "no"]
        corpus, queries = dict(zip("xyz", texts[1:], strict=True)), {"q": texts[0]}
        seen = []
        spy = SimpleNamespace(config=model.config)
        spy.encode = lambda *args, **options: (
            seen.append(model.encode(*args, **options)) or seen[-1]
        )
        evaluation.retrieval(spy, corpus, queries, {"q": {"x": 1}})
        query, passage = "retrieval.query", "retrieval.passage"
        for got, task, own in [(seen[0], query, texts[:1]), (seen[1], passage, texts[:0:-1])]:
            prompted = [PROMPTS[task] + text for text in own]
            want = model.encode(prompted, task=task, prompt=None, normalize_embeddings=False)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

    def test_dims_are_those_of_encode(self, model):
        first, second = ["a cat", "the dog", "one", "two"], ["cats", "a hog", "two", "three"]
        scores = [4, 3, 1, 2.5]
        found = evaluation.sts(model, first, second, scores, dims=(32, 64))
        stats = pytest.importorskip("scipy.stats")
        for suffix, dim in [("", 64), ("@64", 64), ("@32", 32)]:
            left, right = (
                model.encode(texts, task="text-matching", truncate_dim=dim)
                for texts in (first, second)
            )
            similar = np.sum(np.float64(left) * np.float64(right), axis=1)
            want = stats.pearsonr(similar, scores).statistic
            assert found["pearson" + suffix] == pytest.approx(want, abs=1e-5)
        assert abs(found["pearson"] - found["pearson@32"]) > 1e-3

    def test_a_dim_beyond_the_models_own(self, tmp_path):
        small = JinaEmbeddings.from_pretrained(write_tiny(tmp_path / "m", truncate_dim=32))
        full = JinaEmbeddings.from_pretrained(write_tiny(tmp_path / "n"))
        data = ["a cat", "the dog", "one"], ["cats", "a hog", "two"], [3, 1, 2]
        found = evaluation.sts(small, *data, dims=(64,))
        want = evaluation.sts(full, *data, dims=(32,))
        assert found["pearson@64"] == pytest.approx(want["pearson"], abs=1e-6)
        assert found["pearson"] == pytest.approx(want["pearson@32"], abs=1e-6)

    @pytest.mark.parametrize("dims", [(), (0,), (-4,), (4.0,), (4, 4), ("4",), (True,)])
    def test_dims_refused(self, dims):
        with pytest.raises(ValueError, match="dims="):
            evaluation.sts(Stub(random_vectors("abcd")), "ab", "cd", [1, 2], dims=dims)

    @pytest.mark.parametrize("tasks", [TASKS, None])
    def test_dims_that_the_model_lacks(self, tasks):
        stub = Stub(random_vectors("abcd"), tasks)
        with pytest.raises(ValueError, match=f"expected at most {WIDTH}"):
            evaluation.sts(stub, "ab", "cd", [1, 2], dims=(WIDTH + 1,))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_vectors_that_are_not_finite(self, value):
        vectors = random_vectors("abcd")
        vectors["b"][3] = value
        with pytest.raises(ValueError, match="text 2 is not finite"):
            evaluation.sts(Stub(vectors), "ab", "cd", [1, 2])


class TestSts:
    def test_by_hand(self):
        # Cosines 0.6, 1, 0 have the ranks 2, 3, 1: with 1, 2, 3 rho = 1 - 6 * (1 + 1 + 4) / 24.
        stub = Stub({"x": [1, 0], "p": [3, 4], "q": [5, 0], "r": [0, 2]})
        found = evaluation.sts(stub, "xxx", "pqr", [10, 20, 30])
        assert found["spearman"] == pytest.approx(-0.5)
        # Deviations 1/15, 7/15, -8/15 and -10, 0, 10.
        assert found["pearson"] == pytest.approx(-9 / math.sqrt(114 * 2), abs=1e-6)

    def test_ties_have_the_mean_rank(self):
        # Ranks 1.5, 1.5, 3 and 2, 3, 1.
        stub = Stub({"x": [1, 0], "p": [3, 4], "q": [5, 0], "r": [0, 2]})
        found = evaluation.sts(stub, "xxx", "pqr", [10, 10, 30])
        assert found["spearman"] == pytest.approx(-1.5 / math.sqrt(1.5 * 2))

    @pytest.mark.parametrize("dim", [None, 5])
    def test_against_formulas(self, dim):
        first, second = [f"a{i}" for i in range(40)], [f"b{i}" for i in range(40)]
        vectors = random_vectors(first + second)
        gold = np.random.default_rng(1).permutation(40)
        found = evaluation.sts(Stub(vectors), first, second, gold, dims=dim and (dim,))
        similar = np.diag(cosines(vectors, first, second, dim))
        ranks = np.argsort(np.argsort(similar))
        suffix = f"@{dim}" if dim else ""
        rho = 1 - 6 * np.sum((ranks - gold) ** 2) / (40 * (40**2 - 1))
        assert found["spearman" + suffix] == pytest.approx(rho, abs=1e-12)
        r = np.corrcoef(similar, gold)[0, 1]
        assert found["pearson" + suffix] == pytest.approx(r, abs=1e-6)

    @pytest.mark.parametrize(
        ("second", "scores", "match"),
        [
            ("cd", [1], "sentences1 2, sentences2 2, scores 1"),
            ("c", [1, 2], "sentences2 1"),
            ("cd", [1, 1], "scores: expected finite numbers that are not all equal"),
            ("cd", [1, math.nan], "scores: expected finite"),
            ("ab", [1, 2], "cosine similarities: expected .* not all equal"),
        ],
    )
    def test_refused(self, second, scores, match):
        with pytest.raises(ValueError, match=match):
            evaluation.sts(
                Stub({t: [i + 1, 0] for i, t in enumerate("abcd")}), "ab", second, scores
            )

    def test_none_at_all(self):
        with pytest.raises(ValueError, match="at least one"):
            evaluation.sts(Stub({}), [], [], [])


class TestBitext:
    def test_by_hand(self):
        # Sources a and b are nearest to d; targets d and e are nearest to a and b.
        stub = Stub(
            {"a": [1, 0], "b": [4, 3], "c": [-1, 0], "d": [5, 1], "e": [0, 1], "f": [-2, 0]}
        )
        found = evaluation.bitext(stub, "abc", "def")
        assert found["source_to_target"] == pytest.approx(2 / 3)
        assert found["target_to_source"] == pytest.approx(1)
        assert found["accuracy"] == pytest.approx(5 / 6)
        # Predictions 0, 0, 2 of 0, 1, 2: F1 is 2/3, 0 and 1.
        assert found["f1"] == pytest.approx(5 / 9)
        assert stub.asked() == [("text-matching", list("abc")), ("text-matching", list("def"))]

    def test_of_equal_sentences_one_counts(self):
        stub = Stub({"a": [1, 0], "b": [0, 1], "c": [1, 0], "d": [0, 1]})
        assert evaluation.bitext(stub, "aab", "ccd")["accuracy"] == pytest.approx(2 / 3)

    @pytest.mark.parametrize("dim", [None, 3])
    def test_against_a_matrix_in_blocks(self, dim, monkeypatch):
        monkeypatch.setattr(search, "BLOCK_QUERIES", 7)
        monkeypatch.setattr(search, "BLOCK_TEXTS", 11)
        source, target = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
        vectors = random_vectors(source)
        noise = random_vectors(target, seed=1)
        vectors |= {b: vectors[a] + noise[b] for a, b in zip(source, target, strict=True)}
        found = evaluation.bitext(Stub(vectors), source, target, dims=dim and (dim,))
        similar = cosines(vectors, source, target, dim)
        suffix = f"@{dim}" if dim else ""
        there = np.mean(similar.argmax(axis=1) == np.arange(30))
        back = np.mean(similar.argmax(axis=0) == np.arange(30))
        assert 0 < there != back < 1
        assert found["source_to_target" + suffix] == pytest.approx(there)
        assert found["target_to_source" + suffix] == pytest.approx(back)
        assert found["accuracy" + suffix] == pytest.approx((there + back) / 2)

    def test_refused(self):
        with pytest.raises(ValueError, match="source 2, target 1"):
            evaluation.bitext(Stub({}), "ab", "c")


def labelled_vectors(count=90, labels=3):
    """Make texts, labels and vectors that scatter around the label's own direction."""
    texts = [f"t{i}" for i in range(count)]
    numbers = np.random.default_rng(5).integers(labels, size=count)
    vectors = random_vectors(texts)
    for text, number in zip(texts, numbers, strict=True):
        vectors[text][number] += 2
    return texts, [f"label {number}" for number in numbers], vectors


def macro_f1(gold, predicted):
    scores = []
    for label in sorted({*gold, *predicted}):
        both = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        scores.append(2 * both / (list(gold).count(label) + list(predicted).count(label)))
    return float(np.mean(scores))


def nearest_labels(vectors, train, labels, test, dim=None):
    return [labels[i] for i in cosines(vectors, test, train, dim).argmax(axis=1)]


def logistic_labels(vectors, train, labels, test, dim=None):
    linear = pytest.importorskip("sklearn.linear_model")
    units = {}
    for text in (*train, *test):
        cut = np.float32(vectors[text])[:dim]
        units[text] = cut / np.linalg.norm(cut)
    fitted = linear.LogisticRegression(max_iter=100).fit([units[t] for t in train], labels)
    return list(fitted.predict([units[t] for t in test]))


class TestClassification:
    @pytest.mark.parametrize("dim", [None, 4])
    def test_train_and_test(self, dim):
        texts, labels, vectors = labelled_vectors()
        train, test, known, gold = texts[:60], texts[60:], labels[:60], labels[60:]
        stub = Stub(vectors)
        found = evaluation.classification(stub, train, known, test, gold, dims=dim and (dim,))
        suffix = f"@{dim}" if dim else ""
        for name, predict in [("knn", nearest_labels), ("logistic", logistic_labels)]:
            predicted = predict(vectors, train, known, test, dim)
            accuracy = np.mean([g == p for g, p in zip(gold, predicted, strict=True)])
            assert 0.4 < accuracy < 1
            assert found[f"{name}_accuracy{suffix}"] == pytest.approx(accuracy)
            assert found[f"{name}_f1{suffix}"] == pytest.approx(macro_f1(gold, predicted))
        assert stub.asked() == [("classification", train), ("classification", test)]

    def test_cross_validation(self):
        texts, labels, vectors = labelled_vectors()
        stub = Stub(vectors)
        found = evaluation.classification(stub, texts, labels)
        assert stub.asked() == [("classification", texts)]  # encoded once
        selection = pytest.importorskip("sklearn.model_selection")
        folds = selection.StratifiedKFold(5, shuffle=True, random_state=classes.SEED)
        scores = []
        for train, test in folds.split(texts, labels):
            some = [labels[i] for i in train], [labels[i] for i in test]
            predicted = nearest_labels(
                vectors, [texts[i] for i in train], some[0], [texts[i] for i in test]
            )
            hits = np.mean([g == p for g, p in zip(some[1], predicted, strict=True)])
            scores.append((hits, macro_f1(some[1], predicted)))
        accuracy, f1 = np.mean(scores, axis=0)
        assert found["knn_accuracy"] == pytest.approx(accuracy)
        assert found["knn_f1"] == pytest.approx(f1)
        assert 0.5 < found["logistic_accuracy"] < 1
        assert evaluation.classification(Stub(vectors), texts, labels) == found

    def test_integers_and_arrays_are_labels(self):
        texts, labels, vectors = labelled_vectors()
        numbers = np.array([int(label[-1]) for label in labels])
        parts = texts[:60], numbers[:60], texts[60:], numbers[60:]
        found = evaluation.classification(Stub(vectors), *parts)
        named = evaluation.classification(
            Stub(vectors), texts[:60], labels[:60], texts[60:], labels[60:]
        )
        assert found == named

    @pytest.mark.parametrize(
        ("args", "match"),
        [
            (("ab", "xx"), "at least two, got only 'x'"),
            (("ab", ["x", 1]), "expected strings or integers, got int and str"),
            (("ab", "xy", "cd", [1, 2]), "expected strings or integers, got int and str"),
            (("ab", "x"), "train_texts 2, train_labels 1"),
            (("ab", "xy", "cd", "x"), "test_texts 2, test_labels 1"),
            (("ab", "xy", "cd"), "expected both or none"),
            (("ab", "xy", None, "xy"), "expected both or none"),
            (("abcdefghij", "xxxxxxyyyy"), "at least 5 texts of each label.* got 4 of 'y'"),
        ],
    )
    def test_refused(self, args, match):
        with pytest.raises(ValueError, match=match):
            evaluation.classification(Stub(random_vectors("abcdefghij")), *args)


def v_measure(labels, clusters):
    """Return the harmonic mean of homogeneity and completeness (Rosenberg & Hirschberg, 2007)."""

    def entropy(values):
        shares = np.array([values.count(v) for v in sorted(set(values))]) / len(values)
        return -np.sum(shares * np.log(shares))

    together = entropy(list(zip(labels, clusters, strict=True)))
    homogeneity = 1 - (together - entropy(clusters)) / entropy(labels)
    completeness = 1 - (together - entropy(labels)) / entropy(clusters)
    return 2 * homogeneity * completeness / (homogeneity + completeness)


class TestClustering:
    def grouped(self):
        """Two groups by direction, of different lengths, 6 and 4 texts."""
        vectors = random_vectors("abcdefghij", width=3)
        for i, text in enumerate("abcdefghij"):
            vectors[text] = 0.1 * vectors[text] + np.eye(3)[int(i >= 6)] * (1 + 9 * (i % 3))
        return Stub(vectors)

    @pytest.mark.parametrize(
        "labels", ["xxxxxxyyyy", "xxxxxyyyyy", "xyxyxxyyyx", [1, 1, 1, 2, 2, 2, 2, 2, 2, 1]]
    )
    def test_against_the_formula(self, labels):
        stub = self.grouped()
        found = evaluation.clustering(stub, "abcdefghij", list(labels))
        assert found == {"v_measure": pytest.approx(v_measure(list(labels), list("0000001111")))}
        assert stub.asked() == [("separation", list("abcdefghij"))]

    def test_always_the_same(self):
        texts = [f"text {i}" for i in range(60)]
        vectors, labels = random_vectors(texts), [f"{i % 6}" for i in range(60)]
        runs = [evaluation.clustering(Stub(vectors), texts, labels) for _ in range(5)]
        assert runs == [runs[0]] * 5

    def test_dims(self):
        # By all values the first half differs from the second, by the first value odd from even.
        vectors = {t: [(-1) ** i, 9 if i < 5 else -9] for i, t in enumerate("abcdefghij")}
        labels = list("xxxxxyyyyy")
        found = evaluation.clustering(Stub(vectors), "abcdefghij", labels, dims=(1,))
        odd = v_measure(labels, list("0101010101"))
        assert found == {"v_measure": pytest.approx(1), "v_measure@1": pytest.approx(odd)}
        assert odd < 0.1

    @pytest.mark.parametrize(
        ("labels", "match"), [("xx", "only 'x'"), ("xyz", "texts 2"), (["x", 1], "int and str")]
    )
    def test_refused(self, labels, match):
        with pytest.raises(ValueError, match=match):
            evaluation.clustering(Stub(random_vectors("ab")), "ab", labels)


def ranked(scores, query, ids, leave_out=True):
    """Order documents by score, of equal scores the larger id first."""
    pairs = [(s, d) for s, d in zip(scores, ids, strict=True) if not (leave_out and d == query)]
    return [document for _, document in sorted(pairs, reverse=True)]


def measures(ranking, judged):
    relevant = [document for document, relevance in judged.items() if relevance > 0]
    gains = [judged.get(document, 0) for document in ranking[:10]]
    ideal = sorted(judged.values(), reverse=True)[:10]
    dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(x)) for x in (gains, ideal))
    first = next((i for i, d in enumerate(ranking[:10]) if d in relevant), None)
    return {
        "ndcg_at_10": dcg / best if best else 0,
        "recall_at_10": sum(d in relevant for d in ranking[:10]) / max(len(relevant), 1),
        "recall_at_100": sum(d in relevant for d in ranking[:100]) / max(len(relevant), 1),
        "mrr_at_10": 0 if first is None else 1 / (first + 1),
    }


class TestRetrieval:
    def test_relevance_may_be_of_numpy(self):
        model, corpus = Stub(random_vectors("abcq")), {name: name for name in "abc"}
        found = [
            evaluation.retrieval(model, corpus, {"q": "q"}, {"q": {"a": kind(2), "b": kind(1)}})
            for kind in (int, np.int64)
        ]
        assert found[0] == found[1]

    def data(self):
        """Make 150 documents and 9 queries, two of them documents as well; grades 0, 1, 2."""
        rng = np.random.default_rng(3)
        corpus = {f"d{i}": f"document {i}" for i in range(150)}
        queries = {name: f"query {name}" for name in ["d7", "d11", *"abcdefg", "unasked"]}
        vectors = random_vectors([*corpus.values(), *queries.values()])
        qrels = {}
        for query in list(queries)[:-1]:
            chosen = rng.choice(150, size=8, replace=False)
            qrels[query] = {f"d{i}": int(rng.integers(0, 3)) for i in chosen}
            for document, grade in qrels[query].items():
                vectors[queries[query]] = vectors[queries[query]] + grade * 0.3 * np.asarray(
                    vectors[corpus[document]]
                )
        qrels["d7"] |= {"d7": 1, "elsewhere": 1}
        return corpus, queries, qrels, vectors

    @pytest.mark.parametrize("leave_out", [True, False])
    @pytest.mark.parametrize("dim", [None, 6])
    @pytest.mark.parametrize("blocks", [(32768, 256), (40, 4)])
    def test_against_formulas(self, leave_out, dim, blocks, monkeypatch):
        monkeypatch.setattr(ranking, "_DOCUMENTS", blocks[0])
        monkeypatch.setattr(ranking, "_QUERIES", blocks[1])
        corpus, queries, qrels, vectors = self.data()
        found = evaluation.retrieval(
            Stub(vectors),
            corpus,
            queries,
            qrels,
            dims=dim and (dim,),
            ignore_identical_ids=leave_out,
        )
        asked = [queries[query] for query in qrels]
        scores = cosines(vectors, asked, list(corpus.values()), dim)
        rows = [
            measures(ranked(row, query, list(corpus), leave_out), qrels[query])
            for query, row in zip(qrels, scores, strict=True)
        ]
        suffix = f"@{dim}" if dim else ""
        for name in rows[0]:
            want = np.mean([row[name] for row in rows])
            assert 0.1 < want < 1
            assert found[name + suffix] == pytest.approx(want, abs=1e-9), name

    def test_what_is_encoded(self):
        corpus = {
            "1": {"title": "A title", "text": "and text"},
            "2": {"text": "no title"},
            "3": {"title": "", "text": "blank title"},
            "4": "a string",
        }
        texts = ["a string", "blank title", "no title", "A title and text"]
        stub = Stub(random_vectors([*texts, "query"]))
        evaluation.retrieval(stub, corpus, {"q": "query", "r": "unasked"}, {"q": {"2": 1}})
        assert stub.asked() == [("retrieval.query", ["query"]), ("retrieval.passage", texts)]

    def test_by_hand(self):
        # c, b (of equal scores the larger id), a, d: the relevant ones are second and fourth.
        vectors = {"a": [3, 4], "b": [1, 0], "c": [2, 0], "d": [0, 1], "query": [1, 0]}
        corpus = {name: name for name in "abcd"}
        found = evaluation.retrieval(
            Stub(vectors), corpus, {"q": "query"}, {"q": {"b": 2, "d": 1, "c": 0}}
        )
        dcg = 2 / math.log2(3) + 1 / math.log2(5)
        assert found == {
            "ndcg_at_10": pytest.approx(dcg / (2 + 1 / math.log2(3)), abs=1e-6),
            "recall_at_10": 1,
            "recall_at_100": 1,
            "mrr_at_10": pytest.approx(1 / 2),
        }

    @pytest.mark.parametrize(("relevant", "found"), [("d099", 1), ("d100", 0)])
    def test_the_last_of_a_hundred(self, relevant, found):
        # In the order of their names, and the query's own would be the first.
        angles = {"q": 0.0, **{f"d{i:03}": (i + 1) / 100 for i in range(120)}}
        vectors = {name: [math.cos(angle), math.sin(angle)] for name, angle in angles.items()}
        corpus = {name: name for name in angles}
        metrics = evaluation.retrieval(Stub(vectors), corpus, {"q": "q"}, {"q": {relevant: 1}})
        assert metrics["recall_at_100"] == found

    @pytest.mark.parametrize(("relevant", "found"), [("d09", 1 / 10), ("d10", 0)])
    def test_no_reciprocal_rank_beyond_ten(self, relevant, found):
        angles = {"q": 0.0, **{f"d{i:02}": (i + 1) / 100 for i in range(20)}}
        vectors = {name: [math.cos(angle), math.sin(angle)] for name, angle in angles.items()}
        corpus = {name: name for name in angles}
        metrics = evaluation.retrieval(Stub(vectors), corpus, {"q": "q"}, {"q": {relevant: 1}})
        assert metrics["mrr_at_10"] == pytest.approx(found)

    @pytest.mark.parametrize("block", [32768, 70])
    def test_many_of_equal_scores(self, block, monkeypatch):
        monkeypatch.setattr(ranking, "_DOCUMENTS", block)
        corpus = {f"d{i:03}": "same" for i in range(300)}
        stub = Stub({"same": [1.0, 2.0], "query": [2.0, 1.0]})
        # By id from the largest: the sixth, the hundredth and the one after it.
        judged = {"d294": 1, "d200": 1, "d199": 1}
        metrics = evaluation.retrieval(stub, corpus, {"q": "query"}, {"q": judged})
        assert metrics["mrr_at_10"] == pytest.approx(1 / 6)
        assert metrics["recall_at_100"] == pytest.approx(2 / 3)

    def test_a_query_with_nothing_relevant_counts(self):
        corpus, queries = {"a": "a", "b": "b"}, {"q": "a", "r": "b"}
        stub = Stub({"a": [1, 0], "b": [0, 1]})
        found = evaluation.retrieval(stub, corpus, queries, {"q": {"a": 1}, "r": {"b": 0}})
        assert found == dict.fromkeys(found, pytest.approx(0.5))

    def test_a_query_left_without_documents_counts(self):
        stub = Stub({"a": [1, 0]})
        found = evaluation.retrieval(stub, {"a": "a"}, {"a": "a"}, {"a": {"a": 1}})
        assert found == dict.fromkeys(found, 0)

    @pytest.mark.parametrize(
        ("corpus", "queries", "qrels", "match"),
        [
            ({}, {"q": "a"}, {"q": {"a": 1}}, "at least one document"),
            ({"a": "a"}, {"q": "a"}, {}, "one query"),
            ({"a": "a"}, {"q": "a"}, {"q": {}}, "one query"),
            ({"a": "a"}, {"q": "a"}, {"p": {"a": 1}}, "query 'p' is not among the queries"),
            ({"a": "a"}, {"q": "a"}, {"q": {"b": 1}}, "expected documents of the corpus"),
            ({"a": "a"}, {"q": "a"}, {"q": {"a": 0.5}}, "0.5: expected an integer"),
        ],
    )
    def test_refused(self, corpus, queries, qrels, match):
        with pytest.raises(ValueError, match=match):
            evaluation.retrieval(Stub({"a": [1.0]}), corpus, queries, qrels)


SCORED = evaluation.files.Scored(["a", "c, d"], ["b", "e"], [2.5, 4.0])


class TestScoredAndLabelled:
    @pytest.mark.parametrize(
        ("name", "content", "columns"),
        [
            ("a.csv", 'a,b,2.5\n"c, d",e,4\n', None),
            ("a.tsv", "a\tb\t2.5\nc, d\te\t4\n", None),
            ("a.csv", '\ufeffa,b,2.5\r\n"c, d",e,4\r\n', None),
            ("a.csv", 'score,sentence2,sentence1\n2.5,b,a\n4,e,"c, d"\n', None),
            ("a.csv", 'x,a,b,2.5\nx,"c, d",e,4\n', (1, 2, 3)),
            ("a.csv", 'b,a,2.5\ne,"c, d",4\n', (1, 0, 2)),
            (
                "a.csv",
                'sentence1,sentence2,1\na,b,2.5\n"c, d",e,4\n',
                ("sentence1", "sentence2", "1"),
            ),
            ("a.csv", 'p,q,r\na,b,2.5\n"c, d",e,4\n', ("p", "q", "r")),
            (
                "a.jsonl",
                [
                    {"sentence1": "a", "sentence2": "b", "score": 2.5},
                    {"sentence1": "c, d", "sentence2": "e", "score": 4},
                ],
                None,
            ),
        ],
    )
    def test_scored(self, write, name, content, columns):
        assert evaluation.read_scored(write(name, content), columns) == SCORED

    def test_quotes_after_a_byte_order_mark(self, write):
        path = write("a.csv", '\ufeff"a, b",c,1\n')
        assert evaluation.read_scored(path) == (["a, b"], ["c"], [1])

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ("a,b,2.5\nc,d,x\n", r"a\.csv:2: column 2: expected a finite number"),
            ("a,b,2.5\n ,d,1\n", r"a\.csv:2: column 0: expected a text, got a blank one"),
            ("a,b,c\nd,e,1\n", r"a\.csv:1: expected a column 'sentence1'"),
            ("x,a,b,2.5\n", r"a\.csv:1: expected a column 'sentence1'"),
            ("", r"a\.csv:1: expected a header"),
            (b"a,b,1\n\xff,b,1\n", r"a\.csv:2: .* not UTF-8"),
        ],
    )
    def test_scored_refused(self, write, content, match):
        with pytest.raises(ValueError, match=match):
            evaluation.read_scored(write("a.csv", content))

    def test_labelled(self, write):
        path = write("a.csv", "text,category\nhello,x\nbye,y\nhey,x\n")
        data = evaluation.read_labelled(path, ("text", "category"))
        assert data == (["hello", "bye", "hey"], ["x", "y", "x"])
        path = write("a.jsonl", [{"text": "a", "label": 3}, {"text": "b", "label": 0}])
        assert evaluation.read_labelled(path) == (["a", "b"], [3, 0])

    def test_labelled_refused(self, write):
        path = write("a.csv", "text,category\nhello,x\nbye, \n")
        with pytest.raises(ValueError, match=r"a\.csv:1: expected a column 'label'"):
            evaluation.read_labelled(path)
        with pytest.raises(ValueError, match=r"a\.csv:3: .*expected a label"):
            evaluation.read_labelled(path, (0, 1))

    def test_public_files(self, shared):
        sts = evaluation.read_scored(shared / "eval/stsb-en-dev.csv")
        assert (len(sts.scores), sts.sentences1[0]) == (1500, "A man with a hard hat is dancing.")
        banking = shared / "eval/banking77-train.csv"
        assert len(set(evaluation.read_labelled(banking, ("text", "category")).labels)) == 77


class TestPairs:
    def test_lines(self, write):
        source = write("a.deu", "\ufeffeins\nzwei\u2028drei\r\n vier")
        assert evaluation.read_pairs(source, write("a.eng", "one\ntwo\nfour\n")) == (
            ["eins", "zwei\u2028drei", " vier"],
            ["one", "two", "four"],
        )

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ("one\n", r"equally many lines, got .*a\.deu 2, .*a\.eng 1"),
            ("one\n\n", r"a\.eng:2: line: expected a text, got a blank one"),
            (b"one\n\xff\n", r"a\.eng:2: not UTF-8"),
            ("", r"a\.eng: is empty"),
        ],
    )
    def test_refused(self, write, content, match):
        with pytest.raises(ValueError, match=match):
            evaluation.read_pairs(write("a.deu", "eins\nzwei\n"), write("a.eng", content))


CORPUS = [{"_id": "1", "title": "T", "text": "one"}, {"_id": "2", "text": "two", "metadata": {}}]
QUERIES = [{"_id": "q", "text": "which?"}, {"_id": "r", "text": "what?"}]
QRELS = "query-id\tcorpus-id\tscore\nq\t1\t1\nq\t2\t0\nr\t2\t2.0\n"


class TestBeir:
    @pytest.fixture
    def folder(self, write, tmp_path):
        def make(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
            write("set/corpus.jsonl", corpus)
            write("set/queries.jsonl", queries)
            write("set/qrels/test.tsv", qrels)
            return tmp_path / "set"

        return make

    def test_read(self, folder):
        assert evaluation.read_beir(folder()) == (
            {"1": {"title": "T", "text": "one"}, "2": {"title": "", "text": "two"}},
            {"q": "which?", "r": "what?"},
            {"q": {"1": 1, "2": 0}, "r": {"2": 2}},
        )

    def test_split(self, folder, write):
        directory = folder()
        write("set/qrels/dev.tsv", "query-id\tcorpus-id\tscore\nr\t1\t1\n")
        assert evaluation.read_beir(directory, "dev").qrels == {"r": {"1": 1}}
        with pytest.raises(ValueError, match=r"split='train': .*set has dev, test"):
            evaluation.read_beir(directory, "train")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"corpus": "{}\n"}, r"corpus\.jsonl:1: field '_id': expected a text, got none"),
            ({"corpus": "[]\n"}, r"corpus\.jsonl:1: expected a JSON object, got list"),
            ({"corpus": '{"_id": "1"\n'}, r"corpus\.jsonl:1: not valid JSON"),
            ({"corpus": [{"_id": 1, "text": "a"}]}, r"corpus\.jsonl:1: field '_id': .*got int"),
            ({"corpus": [{"_id": " ", "text": "a"}]}, r"corpus\.jsonl:1: field '_id': .*blank"),
            (
                {"corpus": [*CORPUS, CORPUS[0]]},
                r"corpus\.jsonl:3: _id '1' repeats an earlier line's",
            ),
            (
                {"corpus": [{"_id": "1"}]},
                r"corpus\.jsonl:1: field 'text': expected a text, got none",
            ),
            (
                {"corpus": [{"_id": "1", "text": "a", "title": 3}]},
                r"corpus\.jsonl:1: field 'title': expected a text, got int",
            ),
            (
                {"corpus": [{"_id": "1", "text": "\ud800"}]},
                r"jsonl:1: field 'text': .*lone surrogate",
            ),
            ({"corpus": ""}, r"corpus\.jsonl: is empty"),
            ({"queries": [{"_id": "q", "text": ""}]}, r"queries\.jsonl:1: field 'text': .*blank"),
            ({"qrels": QRELS + "s\t1\t1\n"}, r"test\.tsv:5: query 's' is not in queries"),
            ({"qrels": QRELS + "q\t1\t1\n"}, r"test\.tsv:5: query 'q' and document '1' repeat"),
            ({"qrels": QRELS + "r\t1\t0.5\n"}, r"test\.tsv:5: expected an integer score, got"),
            ({"qrels": QRELS + "r\t1\tinf\n"}, r"test\.tsv:5: expected an integer score, got"),
            ({"qrels": QRELS + "r\t1\tx\n"}, r"test\.tsv:5: expected an integer score, got"),
            ({"qrels": QRELS + "r\t1\n"}, r"test\.tsv:5: expected 3 fields"),
            ({"qrels": "q\t1\t1\n"}, r"test\.tsv:1: expected a column 'query-id'"),
            ({"qrels": QRELS.split("q\t")[0]}, r"test\.tsv: expected rows below the header"),
        ],
    )
    def test_refused(self, folder, changes, match):
        with pytest.raises(ValueError, match=match):
            evaluation.read_beir(folder(**changes))

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            evaluation.read_beir(tmp_path / "nowhere")


class TestEvaluation:
    def test_names_of_metrics(self, write):
        path = write("small-dev.csv", "a,b,1\nc,d,2\na,d,3\n")
        each = Evaluation(kind="sts", paths=(path,), dims=(4,))
        found = each.run(Stub(random_vectors("abcd")))
        prefix = "sts/small-dev/"
        names = ["spearman", "pearson", "spearman@4", "pearson@4"]
        assert list(found) == [prefix + name for name in names]
        assert each.primary == "sts/small-dev/spearman"

    def test_all_kinds(self, write, tmp_path):
        files = {
            "sts": [write("s.csv", "a,b,1\nc,d,2\na,d,3\n")],
            "bitext": [write("x.de", "a\nb\n"), write("x.en", "c\nd\n")],
            "classification": [write("c.csv", "t,l\na,x\nb,y\nc,x\nd,y\n")] * 2,
            "clustering": [write("c.csv", "t,l\na,x\nb,y\nc,x\nd,y\n")],
            "retrieval": [tmp_path / "set"],
        }
        write("set/corpus.jsonl", [{"_id": "1", "text": "a"}, {"_id": "2", "text": "b"}])
        write("set/queries.jsonl", [{"_id": "q", "text": "c"}])
        write("set/qrels/dev.tsv", "query-id\tcorpus-id\tscore\nq\t1\t1\n")
        vectors, (a, b, c, d) = random_vectors("abcd"), "abcd"
        labelled = [a, b, c, d], ["x", "y", "x", "y"]
        direct = {
            "sts": evaluation.sts(Stub(vectors), [a, c, a], [b, d, d], [1, 2, 3], task=None),
            "bitext": evaluation.bitext(Stub(vectors), [a, b], [c, d], task=None),
            "classification": evaluation.classification(
                Stub(vectors), *labelled, *labelled, task=None
            ),
            "clustering": evaluation.clustering(Stub(vectors), *labelled, task=None),
            "retrieval": evaluation.retrieval(
                Stub(vectors), {"1": a, "2": b}, {"q": c}, {"q": {"1": 1}}, task=None
            ),
        }
        primary = {
            "sts": "spearman",
            "bitext": "accuracy",
            "classification": "logistic_accuracy",
            "clustering": "v_measure",
            "retrieval": "ndcg_at_10",
        }
        assert set(evaluation.KINDS) == set(files)
        for kind, paths in files.items():
            has_columns = kind in ("classification", "clustering")
            fields = settings.EvaluationSection(
                kind=kind,
                paths=tuple(paths),
                name="n",
                task="none",
                columns=("t", "l") if has_columns else None,
                split="dev" if kind == "retrieval" else None,
                max_length=9,
            )
            each = Evaluation(**fields.arguments())
            stub = Stub(vectors)
            found = each.run(stub)
            assert found == {f"{kind}/n/{name}": value for name, value in direct[kind].items()}
            assert each.primary == f"{kind}/n/{primary[kind]}"
            assert each.primary in found
            assert {options["max_length"] for _, options in stub.calls} == {9}
            assert {options["task"] for _, options in stub.calls} == {None}

    def test_the_folder_is_the_name(self, write, tmp_path, monkeypatch):
        write("v1.5/corpus.jsonl", CORPUS)
        write("v1.5/queries.jsonl", QUERIES)
        write("v1.5/qrels/test.tsv", QRELS)
        monkeypatch.chdir(tmp_path / "v1.5")
        assert Evaluation(kind="retrieval", paths=(".",)).name == "v1.5"

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"kind": "summaries"}, "kind='summaries': expected one of sts, bitext"),
            ({"kind": "sts", "paths": ("a.csv", "b.csv")}, "expected 1 for sts"),
            ({"kind": "sts", "paths": "a"}, "expected 1 for sts"),
            ({"kind": "sts", "paths": Path("a.csv")}, "expected 1 for sts"),
            ({"kind": "bitext"}, "expected 2 for bitext"),
            ({"kind": "classification", "paths": ("a",) * 3}, "expected 1 or 2 for"),
            ({"kind": "retrieval", "columns": (0, 1)}, "retrieval has no columns"),
            ({"kind": "clustering", "columns": ("a", "b", "c")}, "columns="),
            ({"kind": "sts", "split": "dev"}, "split='dev': expected None, sts has no splits"),
            ({"kind": "clustering", "paths": ("a.xml",)}, "suffixes"),
        ],
    )
    def test_refused(self, fields, match):
        with pytest.raises(ValueError, match=match):
            Evaluation(**{"paths": ("a.csv",), **fields})

    @pytest.mark.parametrize(
        ("kind", "module"),
        [("sts", "scipy"), ("clustering", "sklearn"), ("retrieval", "pytrec_eval")],
    )
    def test_without_the_extra(self, kind, module, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'{module}.*pip install "jina-jax\[eval\]"'):
            Evaluation(kind=kind, paths=("a.csv",))
