"""Hard negatives against a search written down plainly, in float64."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from published import PROMPTS
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.data import read_source
from jina_jax.search import Rules, mine_hard_negatives, write_triplets
from jina_jax.search import nearest as search
from jina_jax.search.negatives import Mined, MinedRow

BOTH = ("retrieval.query", "retrieval.passage")


class Stub:
    """A model that looks its vectors up, and notes what it was asked."""

    def __init__(self, vectors, tasks=()):
        self.vectors = {text: np.asarray(v, np.float32) for text, v in vectors.items()}
        self.config = SimpleNamespace(lora_adaptations=tasks)
        self.calls = []

    def encode(self, texts, **options):
        self.calls.append((list(texts), options))
        return np.stack([self.vectors[text] for text in texts])


def random_case(seed, queries=11, texts=40):
    """Draw pairs, a corpus and a model; some queries have several positives, one is a text."""
    rng = np.random.default_rng(seed)
    names = [f"q{i}" for i in range(queries)]
    corpus = [f"t{i}" for i in range(texts)] + ["q3"]
    vectors = {name: rng.standard_normal(8) for name in dict.fromkeys([*names, *corpus])}
    vectors = {name: v / np.linalg.norm(v) for name, v in vectors.items()}
    pairs = [(name, f"t{rng.integers(texts)}") for name in names]
    pairs += [("q1", "t0"), ("q1", "t1"), ("q4", "t2"), pairs[0]]
    return Stub(vectors), pairs, corpus


def naive(model, pairs, corpus, **options):
    """Mine as the docstring says: everything at once, one text after the other."""
    default = {"num_negatives": 7, "range_min": 0, "range_max": 100}
    options = {**default, **options}
    texts = list(dict.fromkeys([*(corpus or []), *(p for _, p in pairs)]))
    removed = {name: 0 for name in options if "margin" in name or "score" in name}
    order = ("absolute_margin", "relative_margin", "max_score", "min_score")
    rows = {}
    for query in dict.fromkeys(q for q, _ in pairs):
        positives = [p for q, p in pairs if q == query]
        vector = model.vectors[query].astype(np.float64)
        score = {text: float(vector @ model.vectors[text].astype(np.float64)) for text in texts}
        least = min(score[p] for p in positives)
        bad = {
            "absolute_margin": lambda s, low=least: s > low - options["absolute_margin"],
            "relative_margin": lambda s, low=least: s > low - abs(low) * options["relative_margin"],
            "max_score": lambda s: s > options["max_score"],
            "min_score": lambda s: s < options["min_score"],
        }
        left = [text for text in texts if text not in positives and text != query]
        left = sorted(left, key=lambda text: -score[text])[: options["range_max"]]
        for name in order:
            if name in options:
                kept = [text for text in left if not bad[name](score[text])]
                removed[name] += len(left) - len(kept)
                left = kept
        left = left[options["range_min"] :][: options["num_negatives"]]
        rows[query] = (left, score)
    return rows, removed


def check(mined, expected, pairs, count):
    rows, removed = expected
    wanted = [(q, p) for q, p in dict.fromkeys(pairs) if len(rows[q][0]) == count]
    assert [(row.query, row.positive) for row in mined.rows] == wanted
    for row in mined.rows:
        left, score = rows[row.query]
        assert list(row.negatives) == left
        exact = [score[text] for text in (row.positive, *left)]
        np.testing.assert_allclose(row.scores, exact, rtol=0, atol=1e-6)
    assert mined.removed == removed
    seen = {pair: i for i, pair in reversed(list(enumerate(pairs)))}
    assert mined.repeated == [i for i, pair in enumerate(pairs) if seen[pair] != i]
    short = [i for i, (q, _) in enumerate(pairs) if len(rows[q][0]) < count]
    assert mined.left_out == [i for i in short if i not in mined.repeated]


@pytest.fixture(params=[(4096, 8192), (3, 5)], ids=["one block", "blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_QUERIES", request.param[0])
    monkeypatch.setattr(search, "BLOCK_TEXTS", request.param[1])


@pytest.mark.usefixtures("_blocks")
class TestNearest:
    @pytest.mark.parametrize("k", [1, 4, 7, 16])
    def test_it_is_a_full_sort(self, k):
        rng = np.random.default_rng(k)
        queries, texts = rng.standard_normal((7, 3)), rng.standard_normal((16, 3))
        scores = queries.astype("f4") @ texts.astype("f4").T
        found = list(search.nearest(queries.astype("f4"), texts.astype("f4"), k))
        assert len(found) == 7
        for row, (best, ids) in zip(scores, found, strict=True):
            order = np.argsort(-row, kind="stable")[:k]
            assert (best.dtype, ids.dtype) == (np.float32, np.int32)
            np.testing.assert_array_equal(ids, order)
            np.testing.assert_allclose(best, row[order], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("k", [3, 6, 12])
    def test_of_equal_scores_the_first_text_is_nearer(self, k):
        """Small integers are exact, and many products are equal; padding has score 0, too."""
        rng = np.random.default_rng(0)
        queries, texts = (rng.integers(-1, 2, (n, 2)).astype(np.float32) for n in (8, 12))
        texts[5:10] = -1
        for query, (_, ids) in zip(queries, search.nearest(queries, texts, k), strict=True):
            np.testing.assert_array_equal(ids, np.argsort(-(texts @ query), kind="stable")[:k])


OPTIONS = [
    {},
    {"num_negatives": 1},
    {"num_negatives": 5, "range_min": 3, "range_max": 9},
    {"num_negatives": 2, "range_max": 2},
    {"max_score": 0.3},
    {"min_score": 0.1, "num_negatives": 4},
    {"absolute_margin": 0.1, "num_negatives": 3},
    {"absolute_margin": 0.0, "num_negatives": 3, "range_max": 12},
    {"relative_margin": 0.2, "num_negatives": 3},
    {"relative_margin": 0.5, "absolute_margin": 0.1, "num_negatives": 3, "range_min": 2},
    {"relative_margin": 0.1, "max_score": 0.4, "min_score": -0.5, "num_negatives": 3},
    {"num_negatives": 41},
]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_plain_search(options, seed):
    model, pairs, corpus = random_case(seed)
    mined = mine_hard_negatives(model, pairs, corpus, rules=Rules(**options))
    count = options.get("num_negatives", 7)
    check(mined, naive(model, pairs, corpus, **options), pairs, count)
    assert (mined.queries, mined.texts) == (11, 41)


def test_the_cases_hold_every_outcome():
    """Rows, pairs left out and repeated, negative positive scores: none of them is missing."""
    model, pairs, corpus = random_case(0)
    mined = mine_hard_negatives(
        model, pairs, corpus, rules=Rules(relative_margin=0.2, num_negatives=3)
    )
    assert mined.rows
    assert mined.left_out
    assert mined.repeated == [len(pairs) - 1]
    assert mined.removed["relative_margin"] > 0
    assert min(row.scores[0] for row in mined.rows) < 0 < max(row.scores[0] for row in mined.rows)


def test_without_a_corpus_the_distinct_positives_are_searched():
    model, pairs, _ = random_case(2)
    mined = mine_hard_negatives(model, pairs, rules=Rules(num_negatives=3))
    check(mined, naive(model, pairs, None, num_negatives=3), pairs, 3)
    (queries, _), (texts, _) = model.calls
    assert queries == list(dict.fromkeys(q for q, _ in pairs))
    assert texts == list(dict.fromkeys(p for _, p in pairs))
    assert mined.texts == len(texts) < len(pairs)


def axes(*places):
    """Return unit vectors whose product with the first axis is each of some numbers."""
    return [np.array([x, (1 - x * x) ** 0.5]) for x in places]


def test_no_positive_of_a_query_and_no_text_equal_to_it_is_a_negative():
    near = axes(1.0, 0.99, 0.98, 0.9, 0.8)
    model = Stub(dict(zip(["a", "b", "c", "d", "e"], near, strict=True)))
    model.vectors["other"] = near[0]
    pairs = [("a", "b"), ("other", "d"), ("a", "c")]
    mined = mine_hard_negatives(
        model, pairs, ["a", "d", "e"], rules=Rules(num_negatives=2, range_max=2)
    )
    by_pair = {(row.query, row.positive): row.negatives for row in mined.rows}
    assert by_pair == {("a", "b"): ("d", "e"), ("a", "c"): ("d", "e"), ("other", "d"): ("a", "b")}


def test_the_margin_counts_from_the_lowest_positive_and_each_row_has_its_own_score():
    names = ["q", "high", "low", "n1", "n2", "n3"]
    model = Stub(dict(zip(names, axes(1.0, 0.9, 0.6, 0.75, 0.55, 0.45), strict=True)))
    pairs = [("q", "high"), ("q", "low")]
    mined = mine_hard_negatives(
        model, pairs, ["n1", "n2", "n3"], rules=Rules(num_negatives=1, absolute_margin=0.1)
    )
    assert [(row.positive, row.negatives) for row in mined.rows] == [
        ("high", ("n3",)),
        ("low", ("n3",)),
    ]
    np.testing.assert_allclose([row.scores for row in mined.rows], [[0.9, 0.45], [0.6, 0.45]])
    assert mined.removed == {"absolute_margin": 2}


def test_a_margin_of_a_negative_score_lowers_the_bound():
    """The bound is -0.55: a factor 1 - 0.1 would make it -0.45."""
    model = Stub(dict(zip(["q", "p", "n1", "n2"], axes(1.0, -0.5, -0.47, -0.6), strict=True)))
    rules = Rules(num_negatives=1, relative_margin=0.1)
    mined = mine_hard_negatives(model, [("q", "p")], ["n1", "n2"], rules=rules)
    assert mined.rows[0].negatives == ("n2",)


class TestRandom:
    def drawn(self, pairs=(("q", "p"),), **options):
        names = ["q", "p", "twin", *(f"n{i}" for i in range(10))]
        near = axes(1.0, 0.99, 1.0, *np.linspace(0.95, 0.5, 10))
        model = Stub(dict(zip(names, near, strict=True)))
        options = {"num_negatives": 3, "sampling_strategy": "random", **options}
        mined = mine_hard_negatives(model, list(pairs), names[3:], rules=Rules(**options))
        return {(row.query, row.positive): row for row in mined.rows}

    def test_every_candidate_comes_up_and_none_else_and_the_nearest_first(self):
        count = dict.fromkeys((f"n{i}" for i in range(10)), 0)
        for seed in range(200):
            row = self.drawn(seed=seed, range_min=2, range_max=8)["q", "p"]
            assert list(row.negatives) == sorted(set(row.negatives))
            assert list(row.scores[1:]) == sorted(row.scores[1:], reverse=True)
            for name in row.negatives:
                count[name] += 1
        assert [name for name, drawn in count.items() if drawn] == [f"n{i}" for i in range(2, 8)]
        # 100 of 200 each; the standard deviation is 7.
        assert all(70 <= count[f"n{i}"] <= 130 for i in range(2, 8))

    def test_a_query_draws_for_itself(self):
        both = [("q", "p"), ("twin", "p")]
        alone = [self.drawn(seed=seed)["q", "p"] for seed in range(10)]
        rows = [self.drawn(both, seed=seed) for seed in range(10)]
        assert [row["q", "p"] for row in rows] == alone
        assert len({row.negatives for row in alone}) > 5
        assert sum(row["q", "p"].negatives != row["twin", "p"].negatives for row in rows) > 5

    def test_too_few_are_left_out(self):
        assert self.drawn(num_negatives=11) == {}
        assert len(self.drawn(num_negatives=10)["q", "p"].negatives) == 10


class TestTasks:
    @pytest.mark.parametrize(
        ("tasks", "options", "expected"),
        [
            (BOTH, {}, BOTH),
            ((), {}, (None, None)),
            (("retrieval.query", "x"), {}, ("retrieval.query", None)),
            (BOTH, {"task": (None, "x")}, (None, "x")),
            (BOTH, {"task": "x"}, ("x", "x")),
            (BOTH, {"task": (None, "auto")}, (None, "retrieval.passage")),
        ],
    )
    def test_which_are_asked_for(self, tasks, options, expected):
        model = Stub({name: [1.0, 0.0] for name in "abc"}, tasks)
        options = {**options, "truncate_dim": 2, "show_progress_bar": False}
        mine_hard_negatives(model, [("a", "b")], ["c"], rules=Rules(num_negatives=1), **options)
        shared = {"truncate_dim": 2, "show_progress_bar": False}
        assert [call for _, call in model.calls] == [{"task": t, **shared} for t in expected]

    def test_scores_are_the_models_similarities(self, tmp_path):
        """With the prompts written out."""
        model = JinaEmbeddings.from_pretrained(write_tiny(tmp_path))
        pairs, corpus = [("cat", "a cat purrs"), ("dog", "a dog barks")], ["mice", "men", "trees"]
        mined = mine_hard_negatives(
            model, pairs, corpus, rules=Rules(num_negatives=4), truncate_dim=32
        )
        assert len(mined.rows) == 2
        for row in mined.rows:
            texts = [row.positive, *row.negatives]
            query = model.encode(
                PROMPTS[BOTH[0]] + row.query, task=BOTH[0], prompt=None, truncate_dim=32
            )
            vectors = model.encode(
                [PROMPTS[BOTH[1]] + text for text in texts],
                task=BOTH[1],
                prompt=None,
                truncate_dim=32,
            )
            np.testing.assert_allclose(row.scores, vectors @ query, rtol=0, atol=1e-6)
            assert list(row.scores[1:]) == sorted(row.scores[1:], reverse=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_negatives": 0}, "num_negatives=0: expected an integer of at least 1"),
            ({"num_negatives": 2.0}, "num_negatives=2.0: expected an integer"),
            ({"range_min": -1}, "range_min=-1: expected an integer of at least 0"),
            ({"range_max": None}, "range_max=None: expected an integer"),
            ({"range_max": 9, "range_min": 3}, r"range_max=9: .*range_min \+ num_negatives = 10"),
            ({"seed": -1}, "seed=-1: expected an integer of at least 0"),
            ({"max_score": float("nan")}, "max_score=nan: expected a finite number or None"),
            ({"min_score": "0.1"}, "min_score='0.1': expected a finite number"),
            ({"absolute_margin": True}, "absolute_margin=True: expected a finite number"),
            ({"relative_margin": float("inf")}, "relative_margin=inf: expected a finite number"),
            ({"sampling_strategy": "best"}, "sampling_strategy='best': expected 'top' or 'random'"),
        ],
        ids=str,
    )
    def test_rules(self, options, message):
        with pytest.raises(ValueError, match=message):
            Rules(**options)

    def test_integers_of_numpy_are_integers(self):
        assert repr(Rules(num_negatives=np.int64(3), seed=np.uint8(1))) == repr(
            Rules(num_negatives=3, seed=1)
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pairs": []}, "pairs=.*: expected at least one"),
            ({"pairs": "ab"}, "pairs='ab': expected at least one"),
            ({"pairs": [("a", "b"), "ab"]}, r"pairs\[1\]: expected \(query, positive\), got 'ab'"),
            ({"pairs": [("a", "b", "c")]}, r"pairs\[0\]: expected \(query, positive\)"),
            ({"pairs": [("a", 3)]}, r"pairs\[0\]: positive: expected a text, got int"),
            ({"pairs": [(" ", "a")]}, r"pairs\[0\]: query: .* a blank one"),
            ({"pairs": [("a", "\ud800")]}, r"pairs\[0\]: positive: .*lone surrogate"),
            ({"corpus": "abc"}, "corpus='abc': expected a sequence of texts"),
            ({"corpus": ["a", ""]}, r"corpus\[1\]: text: .* a blank one"),
        ],
        ids=str,
    )
    def test_texts(self, options, message):
        model = Stub({"a": [1.0, 0.0], "b": [0.0, 1.0]})
        with pytest.raises(ValueError, match=message):
            mine_hard_negatives(model, **{"pairs": [("a", "b")], **options})
        assert model.calls == []


class TestWrite:
    ROWS = (
        MinedRow('que"ry', "pösitive\n", ("n1", "n2"), (0.1, float(np.float32(0.7)), -1e-9)),
        MinedRow("other", "p", ("n3", "n1"), (1 / 3, 0.5, 0.25)),
    )

    def mined(self, rows=ROWS):
        return Mined(list(rows), [3, 4], [], {"max_score": 9}, 4, 10)

    def test_the_file_is_read_again_as_triplets(self, tmp_path):
        path = tmp_path / "out.jsonl"
        write_triplets(path, self.mined())
        source = read_source([path], "triplets")
        assert source.texts == [(row.query, row.positive, *row.negatives) for row in self.ROWS]
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        assert [list(line) for line in lines] == [["anchor", "positive", "negative", "scores"]] * 2
        for line, row in zip(lines, self.ROWS, strict=True):
            np.testing.assert_array_equal(np.float32(line["scores"]), np.float32(row.scores))
        assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
        assert "pösitive" in path.read_text(encoding="utf-8")

    def test_nothing_is_overwritten_unless_asked(self, tmp_path):
        path = tmp_path / "out.jsonl"
        path.write_text("mine")
        with pytest.raises(FileExistsError, match="exists already"):
            write_triplets(path, self.mined())
        assert path.read_text() == "mine"
        write_triplets(str(path), self.mined(), force=True)
        assert len(path.read_text().splitlines()) == 2

    @pytest.mark.parametrize("force", [False, True])
    def test_without_rows_there_is_no_file(self, tmp_path, force):
        message = "none of 2 pairs has enough negatives from 10 texts.*'max_score': 9"
        with pytest.raises(ValueError, match=message):
            write_triplets(tmp_path / "out.jsonl", self.mined(()), force=force)
        assert list(tmp_path.iterdir()) == []

    def test_half_a_file_never_appears(self, tmp_path):
        broken = MinedRow("q", "p", (object(),), (1.0, 1.0))
        with pytest.raises(TypeError):
            write_triplets(tmp_path / "out.jsonl", self.mined([*self.ROWS, broken]))
        assert list(tmp_path.iterdir()) == []
