"""Batches: every row once an epoch, no text twice, one source each, and the same again."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.data import Source
from jina_jax.training.sampler import Sampler


def source_of(texts, kind="pairs", **fields):
    return Source("made", kind, [tuple(row) for row in texts], **fields)


def distinct(count, columns=2):
    return source_of([[f"{row}.{column}" for column in range(columns)] for row in range(count)])


def labelled(texts, labels, **fields):
    names = tuple(range(max(labels) + 1))
    targets = np.array(labels, np.int32)
    return source_of([[t] for t in texts], "labelled", targets=targets, label_names=names, **fields)


def classes(count, each=20):
    """Make a source with ``each`` texts of ``count`` classes; a text tells its class."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(count), each))
    return labelled([f"{label}:{row}" for row, label in enumerate(labels)], labels.tolist())


def sampler_of(*sources, sizes=4, weights=None, forms="rows", seed=0):
    count = len(sources)
    return Sampler(
        sources,
        batch_sizes=[sizes] * count if isinstance(sizes, int) else sizes,
        weights=weights or [1] * count,
        forms=[forms] * count if isinstance(forms, str) else forms,
        seed=seed,
    )


def take(sampler, count):
    return [next(sampler) for _ in range(count)]


def plain(batch):
    """Make a batch comparable."""
    return [part.tolist() if isinstance(part, np.ndarray) else part for part in batch]


def waiting(sampler, source=0):
    return [row for row, _ in sampler.state()["sources"][source]["waiting"]]


# Few words, so that rows share texts.
ROWS = st.lists(st.tuples(*2 * [st.sampled_from("abcdefghijklmnop")]), max_size=30)


def with_others(rows, count):
    """Add rows with texts of their own, which fill a batch of ``count`` where the others do not."""
    return [*rows, *((f"first {i}", f"second {i}") for i in range(count))]


class TestRows:
    def test_batch(self):
        source = source_of([("a", "b"), ("c", "d"), ("e", "f")], "scored")
        vectors = np.arange(8, dtype=np.float16).reshape(4, 2)
        fields = {"targets": np.array([0.5, 1.5, 2.5], np.float32), "teacher": vectors}
        source = source_of(source.texts, "scored", teacher_rows=np.array([0, 1, 3]), **fields)
        batch = next(sampler_of(source, sizes=2))
        first, second = batch.rows.tolist()
        assert (batch.source, batch.columns, batch.rows.dtype) == (0, 2, np.int64)
        assert batch.texts == [*source.texts[first], *source.texts[second]]
        assert batch.targets.tolist() == [first + 0.5, second + 0.5]
        assert batch.teacher.dtype == np.float32
        assert batch.teacher[:, 0].tolist() == [[0, 2, 6][first], [0, 2, 6][second]]

    def test_labelled_rows(self):
        source = classes(3)
        batch = next(sampler_of(source, sizes=30))
        assert (batch.columns, batch.teacher, batch.targets.dtype) == (1, None, np.int32)
        assert [int(text.split(":")[0]) for text in batch.texts] == batch.targets.tolist()
        assert len(set(batch.rows.tolist())) == 30

    def test_without_targets(self):
        assert next(sampler_of(distinct(5))).targets is None

    @settings(deadline=None)
    @given(ROWS, st.integers(1, 6), st.integers(0, 9))
    def test_no_text_twice_and_every_row_once_an_epoch(self, rows, size, seed):
        rows = with_others(rows, size)
        sampler = sampler_of(source_of(rows), sizes=size, seed=seed)
        used = Counter()
        for batch in itertools.islice(sampler, 20):
            assert len(batch.rows) == size
            assert batch.texts == [text for row in batch.rows for text in rows[row]]
            # Within a row a text may come twice.
            texts = [text for row in batch.rows for text in set(rows[row])]
            assert len(set(texts)) == len(texts)
            used.update(batch.rows.tolist())
            state = sampler.state()["sources"][0]
            expected = Counter(dict.fromkeys(range(len(rows)), state["epoch"]))
            order = np.random.default_rng([seed, 0, state["epoch"]]).permutation(len(rows))
            expected.update(order[: state["position"]].tolist())
            assert used + Counter(waiting(sampler)) == +expected

    @settings(deadline=None)
    @given(st.integers(1, 20), st.data())
    def test_orders_of_epochs_follow_one_another(self, count, data):
        size = data.draw(st.integers(1, count))
        # The first source is all but never drawn.
        options = {"sizes": [1, size], "weights": [1e-9, 1], "seed": 7}
        sampler = sampler_of(distinct(5), distinct(count), **options)
        rows = np.concatenate([batch.rows for batch in take(sampler, 12)])
        epochs = [np.random.default_rng([7, 1, epoch]).permutation(count) for epoch in range(13)]
        first = min(size * (count // size), len(rows))  # in batches that the first epoch fills
        np.testing.assert_array_equal(rows[:first], epochs[0][:first])
        if count % size == 0:
            np.testing.assert_array_equal(rows, np.concatenate(epochs)[: len(rows)])

    @settings(deadline=None)
    @given(ROWS, st.integers(1, 12))
    def test_rows_that_wait_come_first(self, rows, size):
        rows = with_others(rows, size)
        sampler = sampler_of(source_of(rows), sizes=size)
        for _ in range(10):
            waits = waiting(sampler)
            batch = next(sampler)
            texts = [text for row in waits for text in set(rows[row])]
            if len(set(texts)) == len(texts):  # nothing else keeps them from the batch
                assert batch.rows.tolist()[: len(waits)] == waits[:size]

    @pytest.mark.parametrize("count", [5, 10, 20])
    def test_rows_that_wait_for_the_same_keep_their_order(self, count):
        # Ten batches an epoch have room for ten rows with "same".
        rows = [("same" if i < count else f"a{i}", f"b{i}") for i in range(40)]
        batches = take(sampler_of(source_of(rows), sizes=4), 200)
        used = [row for batch in batches for row in batch.rows.tolist() if row < count]
        epochs = [np.random.default_rng([0, 0, epoch]).permutation(40) for epoch in range(30)]
        stream = [row for row in np.concatenate(epochs).tolist() if row < count]
        assert len(used) >= min(19 * count, 190)
        assert used == stream[: len(used)]

    @given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.integers(1, 7))
    def test_batch_is_full_or_refused(self, texts, size):
        sampler = sampler_of(source_of([[text] for text in texts], "texts"), sizes=size)
        found = len(set(texts))
        if size <= found:
            take(sampler, 20)
        else:
            message = (
                f"source 'made': expected {size} rows without a text in common .*found {found};"
            )
            with pytest.raises(ValueError, match=message):
                take(sampler, 20)

    def test_batch_of_all_rows(self):
        for batch in take(sampler_of(distinct(8), sizes=8), 5):
            assert sorted(batch.rows.tolist()) == list(range(8))

    def test_work_of_a_batch_does_not_grow_with_the_source(self):
        class Counted(list):
            reads = 0

            def __getitem__(self, place):
                self.reads += 1
                return super().__getitem__(place)

        # A text in 2 % of the rows: ever more rows wait for it.
        rows = Counted((f"a{i}", f"b{i}" if i % 50 else "same") for i in range(60_000))
        sampler = sampler_of(Source("made", "pairs", rows), sizes=500)
        take(sampler, 100)
        assert len(waiting(sampler)) > 800
        rows.reads = 0
        take(sampler, 10)
        assert rows.reads <= 10 * 4 * 500


class TestSources:
    def test_one_source_a_batch(self):
        sampler = sampler_of(distinct(9), distinct(7, 3), classes(2), sizes=[4, 2, 3])
        for batch in take(sampler, 30):
            assert len(batch.rows) == [4, 2, 3][batch.source]
            assert batch.columns == [2, 3, 1][batch.source]
            assert batch.rows.max() < [9, 7, 40][batch.source]
        assert {batch.source for batch in take(sampler, 30)} == {0, 1, 2}

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.floats(0.05, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
    def test_proportions(self, weights, seed):
        sources = [distinct(1)] * len(weights)
        batches = take(sampler_of(*sources, sizes=1, weights=weights, seed=seed), 800)
        counts = np.bincount([batch.source for batch in batches], minlength=len(weights))
        share = np.array(weights) / sum(weights)
        # Six standard deviations of a binomial distribution, and one batch.
        assert (abs(counts - 800 * share) <= 6 * np.sqrt(800 * share * (1 - share)) + 1).all()

    @settings(deadline=None)
    @given(st.integers(0, 99))
    def test_draw_depends_on_seed_and_step_alone(self, seed):
        first = sampler_of(distinct(9), distinct(9), weights=[1, 2], seed=seed)
        second = sampler_of(classes(2), distinct(50), sizes=7, weights=[10, 20], seed=seed)
        third = sampler_of(distinct(9), distinct(9), weights=[1, 2], seed=seed + 1)
        drawn = [[batch.source for batch in take(s, 40)] for s in (first, second, third)]
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]

    def test_seed_decides(self):
        batches = [
            [plain(batch) for batch in take(sampler_of(distinct(50), seed=seed), 9)]
            for seed in (1, 1, 2)
        ]
        assert batches[0] == batches[1]
        assert batches[0] != batches[2]
        # Sources of the same texts have orders of their own.
        two = take(sampler_of(distinct(50), distinct(50)), 40)
        first = [next(b.rows.tolist() for b in two if b.source == source) for source in (0, 1)]
        assert first[0] != first[1]


class TestTuples:
    @settings(deadline=None)
    @given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 99))
    def test_classes_and_marks(self, count, size, seed):
        sampler = sampler_of(classes(count), sizes=size, forms="tuples", seed=seed)
        for batch in take(sampler, 8):
            assert (batch.columns, len(batch.texts)) == (9, 9 * size)
            assert batch.targets is None
            assert batch.teacher is None
            bare, marks = zip(*(text.rsplit(" ", 1) for text in batch.texts), strict=True)
            assert len(set(bare)) == 9 * size
            for number, row in enumerate(batch.rows.tolist()):
                part = slice(9 * number, 9 * number + 9)
                query, positive, *negatives = (text.split(":")[0] for text in bare[part])
                assert bare[part][0].split(":")[1] == str(row)
                assert query == positive
                assert query not in negatives
                assert len(set(marks[part])) == 1
            assert len(set(marks)) == size
            assert all(len(mark) == 8 for mark in marks)

    def test_every_row_is_a_query_once_an_epoch(self):
        source = classes(4)
        sampler = sampler_of(source, sizes=4, forms="tuples")
        used = Counter(row for batch in take(sampler, 60) for row in batch.rows.tolist())
        state = sampler.state()["sources"][0]
        order = np.random.default_rng([0, 0, state["epoch"]]).permutation(80)
        expected = Counter(dict.fromkeys(range(80), state["epoch"]))
        expected.update(order[: state["position"]].tolist())
        assert used + Counter(waiting(sampler)) == +expected

    def test_texts_are_drawn_from_all_of_their_classes(self):
        sampler = sampler_of(classes(3, each=10), sizes=2, forms="tuples")
        texts = [text.rsplit(" ", 1)[0] for batch in take(sampler, 200) for text in batch.texts]
        drawn = {
            "positive": Counter(texts[1::9]),
            "negative": Counter(text for i, text in enumerate(texts) if i % 9 > 1),
        }
        # 400 and 2800 draws of 30 texts: 13 and 93 each.
        assert len(drawn["positive"]) == len(drawn["negative"]) == 30
        assert max(drawn["positive"].values()) < 35
        assert min(drawn["negative"].values()) > 50
        assert max(drawn["negative"].values()) < 140

    def test_marks_change_from_batch_to_batch(self):
        source = classes(2, each=9)
        marks = set()
        for seed in (3, 4):
            batches = take(sampler_of(source, sizes=1, forms="tuples", seed=seed), 90)
            marks |= {(batch.rows[0], batch.texts[0][-8:]) for batch in batches}
        assert len(marks) == 180
        again = take(sampler_of(source, sizes=1, forms="tuples", seed=4), 90)
        assert [plain(batch) for batch in again] == [plain(batch) for batch in batches]

    def test_all_texts_can_be_in_one_batch(self):
        # Two tuples take 18 texts of 18: the last ones cannot be found by luck alone.
        source = classes(9, each=2)
        for batch in take(sampler_of(source, sizes=1, forms="tuples"), 50):
            assert len(set(batch.texts)) == 9
        with pytest.raises(
            ValueError, match=r"expected 3 rows without a text in common for a batch, found \d"
        ):
            take(sampler_of(source, sizes=3, forms="tuples"), 1)

    def test_class_that_can_give_no_more_waits(self):
        # Two tuples of class 0 leave two texts of class 1: no third one, but one of class 1.
        labels = [0] * 30 + [1] * 16
        source = labelled([f"{label}:{row}" for row, label in enumerate(labels)], labels)
        sampler = sampler_of(source, sizes=3, forms="tuples")
        used, waited = Counter(), set()
        for batch in take(sampler, 300):
            used.update(batch.rows.tolist())
            state = sampler.state()["sources"][0]
            waited |= {column for _, column in state["waiting"]}
            assert len(batch.rows) == 3
            assert sum(row < 30 for row in batch.rows) <= 2
        assert waited == {0, 1}  # for its text, for its class
        used += Counter(waiting(sampler))
        assert set(used) == set(range(46))
        assert max(used.values()) - min(used.values()) <= 1
        with pytest.raises(
            ValueError, match=r"expected 4 rows without a text in common for a batch, found [23]"
        ):
            take(sampler_of(source, sizes=4, forms="tuples"), 100)

    def test_texts_of_a_tuple_differ(self):
        texts = [*"aaabcdefg", *"hhhijklmn"]
        source = labelled(texts, [0] * 9 + [1] * 9)
        for batch in take(sampler_of(source, sizes=1, forms="tuples"), 50):
            first, second, *others = [text.rsplit(" ", 1)[0] for text in batch.texts]
            assert first != second
            own, other = ("abcdefg", "hijklmn") if first in "abcdefg" else ("hijklmn", "abcdefg")
            assert second in own
            assert sorted(others) == list(other)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                source_of(distinct(9).texts, "scored", targets=np.zeros(9, np.float32)),
                "expected kind 'labelled', got 'scored'",
            ),
            (labelled("aabcdefghi", [0] * 2 + [1] * 8), "each class, 0 has one"),
            (labelled("abcdefghijklmno", [0] * 7 + [1] * 7 + [2]), "each class, 2 has one"),
            (labelled("abcdefghh", [0] * 2 + [1] * 7), "expected 7 .* classes than 0, got 6"),
            (labelled("abcdefghi", [0] * 9), "expected 7 .* classes than 0, got 0"),
            (
                labelled("abcdefghi", [0] * 2 + [1] * 7, teacher=np.zeros((9, 2))),
                "expected no teacher",
            ),
        ],
    )
    def test_refusals(self, source, message):
        with pytest.raises(ValueError, match=f"source 'made', form 'tuples': .*{message}"):
            sampler_of(source, forms="tuples")


class TestResume:
    @settings(deadline=None)
    @given(ROWS, st.integers(0, 12), st.integers(0, 99))
    def test_same_batches_again(self, rows, steps, seed):
        def make():
            sources = source_of(with_others(rows, 2)), classes(3), classes(4)
            return sampler_of(
                *sources, sizes=[2, 5, 2], forms=["rows", "rows", "tuples"], seed=seed
            )

        sampler = make()
        take(sampler, steps)
        state = json.loads(json.dumps(sampler.state()))
        expected = [plain(batch) for batch in take(sampler, 15)]
        assert state["batches"] == steps
        resumed = make()
        take(resumed, 3 if steps % 2 else 0)  # whatever was drawn before is forgotten
        resumed.restore(state)
        assert resumed.state() == state
        assert [plain(batch) for batch in take(resumed, 15)] == expected
        assert resumed.state() == sampler.state()

    def test_from_wherever_rows_wait(self):
        # Rows wait for three texts, now for this one first and now for that one.
        rows = [(text, f"{text}{i}") for text in "xyz" for i in range(4)]
        source = source_of(with_others([*rows, ("x", "y"), ("y", "z")], 8))
        sampler = sampler_of(source, sizes=4)
        states, batches = [], []
        for _ in range(60):
            states.append(sampler.state())
            batches.append(plain(next(sampler)))
        assert sum(len(state["sources"][0]["waiting"]) > 1 for state in states) > 20
        for step, state in enumerate(states):
            resumed = sampler_of(source, sizes=4)
            resumed.restore(state)
            assert [plain(batch) for batch in take(resumed, 60 - step)] == batches[step:]

    def test_state_does_not_change_later(self):
        sampler = sampler_of(source_of([("same", f"{i}") for i in range(5)]), sizes=1)
        state = sampler.state()
        before = json.dumps(state)
        take(sampler, 3)
        assert json.dumps(state) == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: [], "expected a mapping, got list"),
            (lambda s: {**s, "seed": 1}, "expected seed 0, got 1"),
            (lambda s: {**s, "batches": -1}, "batches: expected an integer from 0, got -1"),
            (lambda s: {**s, "sources": s["sources"] * 2}, "expected 1 sources, got 2"),
            (lambda s: {**s, "sources": None}, "expected 1 sources, got None"),
            (lambda s: {**s, "sources": [3]}, "source 'made': expected 5 rows, got 3"),
            ({"rows": 6}, "source 'made': expected 5 rows, got 6"),
            ({"epoch": 0.5}, "epoch: expected an integer from 0, got 0.5"),
            ({"position": 6}, "position: expected an integer from 0 to 5, got 6"),
            ({"waiting": None}, r"waiting: expected \[row, column\], got None"),
            ({"waiting": [[1]]}, r"waiting: expected \[row, column\], got \[1\]"),
            ({"waiting": [[5, 0]]}, "waiting row: expected an integer from 0 to 4, got 5"),
            ({"waiting": [[4, 2]]}, "waiting column: expected an integer from 0 to 1, got 2"),
        ],
    )
    def test_refusals(self, change, message):
        sampler = sampler_of(distinct(5))
        state = sampler.state()
        if isinstance(change, dict):
            broken = {**state, "sources": [{**state["sources"][0], **change}]}
        else:
            broken = change(state)
        with pytest.raises(ValueError, match=f"^state.*{message}$"):
            sampler.restore(broken)
        assert sampler.state() == state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "sources: expected one or more, got none"),
        ({"batch_sizes": [1, 2]}, r"batch_sizes=\[1, 2\]: expected one for each of 1 sources"),
        ({"batch_sizes": [0]}, r"batch_sizes=\[0\]: expected integers of at least 1"),
        ({"batch_sizes": [2.0]}, r"batch_sizes=\[2.0\]: expected integers of at least 1"),
        ({"weights": []}, r"weights=\[\]: expected one for each of 1 sources"),
        ({"weights": [0]}, r"weights=\[0\]: expected finite numbers above 0"),
        ({"weights": [float("nan")]}, r"weights=\[nan\]: expected finite numbers above 0"),
        ({"weights": [float("inf")]}, r"weights=\[inf\]: expected finite numbers above 0"),
        ({"forms": ["pairs"]}, r"forms=\['pairs'\]: expected each to be 'rows' or 'tuples'"),
        ({"forms": []}, r"forms=\[\]: expected one for each of 1 sources"),
        ({"seed": -1}, r"seed=-1: expected an integer from 0 to 2\*\*32 - 1"),
        ({"seed": 2**32}, "seed=4294967296: expected an integer from 0"),
        ({"seed": 0.5}, "seed=0.5: expected an integer from 0"),
    ],
)
def test_refused_options(options, message):
    usual = {"sources": [distinct(3)], "batch_sizes": [1], "weights": [1], "forms": ["rows"]}
    with pytest.raises(ValueError, match=message):
        Sampler(**{**usual, "seed": 0, **options})


def test_integers_of_numpy_are_integers():
    def make(number):
        options = {"batch_sizes": [number(2)], "weights": [1], "forms": ["rows"]}
        return Sampler([distinct(5)], seed=number(7), **options)

    ours, theirs = make(int), make(np.int32)
    assert [next(ours).texts for _ in range(4)] == [next(theirs).texts for _ in range(4)]
    state = json.loads(json.dumps(theirs.state()))
    theirs.restore({**state, "batches": np.int64(state["batches"])})
    assert ours.state() == theirs.state()
