import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.runtime.batching import (
    DEFAULTS,
    Batching,
    CompleteBatching,
    bucket,
    shapes,
)
from jina_jax.runtime.packing import best_fit, make_batches

PADDED = CompleteBatching(token_budget=128)
PACKED = CompleteBatching(token_budget=128, row_lengths=(32, 64), attention_tokens=200)
FEW = PACKED._replace(token_budget=1200, row_lengths=(256, 512, 1024), few_programs=True)


def texts(lengths):
    return [[100 * i + k for k in range(length)] for i, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 16),
        (16, 16),
        (17, 24),
        (24, 24),
        (25, 32),
        (33, 48),
        (49, 64),
        (5000, 6144),
        (8000, 8192),
    ],
)
def test_bucket(size, expected):
    assert bucket(size) == expected


@pytest.mark.parametrize(
    "batching",
    [PADDED, PACKED, FEW, *(some._replace(max_texts=2) for some in (PADDED, PACKED, FEW))],
)
@pytest.mark.parametrize("row_multiple", [1, 3])
@pytest.mark.parametrize("longest", [12, 150, 1100])
@given(data=st.data())
def test_every_text_comes_once_and_whole(batching, row_multiple, longest, data):
    lengths = data.draw(st.lists(st.integers(2, longest), max_size=40))
    ids = texts(lengths)
    known = shapes(batching, longest, row_multiple)
    seen = []
    for batch in make_batches(ids, batching, 1, row_multiple):
        assert batch.shape in known
        covered = np.zeros(batch.input_ids.shape, bool)
        for index, row, place in zip(batch.indices, batch.rows, batch.slots, strict=True):
            seen.append(index)
            start, stop = batch.text_spans[row, place]
            np.testing.assert_array_equal(batch.input_ids[row, start:stop], ids[index])
            assert not covered[row, start:stop].any()
            covered[row, start:stop] = True
        assert (batch.input_ids[~covered] == 1).all()
        sizes = batch.text_spans[..., 1] - batch.text_spans[..., 0]
        assert sizes.sum() == covered.sum()  # empty places are empty
    assert sorted(seen) == list(range(len(ids)))


def test_texts_share_a_row_and_their_places_follow_one_another():
    (batch,) = make_batches(texts([5, 9, 3]), PACKED, pad_id=1)
    assert batch.shape == (1, 24, 3)
    assert batch.indices.tolist() == [1, 0, 2]
    assert batch.text_spans[0].tolist() == [[0, 9], [9, 14], [14, 17]]


def test_row_is_as_long_as_it_must_be_for_the_number_of_texts():
    # 16 tokens fill a row of 16, which has places for two texts; 24 has three.
    (batch,) = make_batches(texts([9, 5, 2]), PACKED, pad_id=1)
    assert batch.shape == (1, 24, 3)


def test_padding_gives_a_row_to_each_text():
    (batch,) = make_batches(texts([5, 9, 3]), PADDED, pad_id=1)
    assert batch.shape == (4, 16, 1)
    assert batch.text_spans[:, 0].tolist() == [[0, 9], [0, 5], [0, 3], [0, 0]]


def test_best_fit_takes_the_fullest_row_with_room():
    assert best_fit([7, 6, 3, 3, 1], [10], lambda _: 8) == {10: [[0, 2], [1, 3, 4]]}


def test_best_fit_keeps_to_the_number_of_places():
    assert best_fit([1] * 5, [10], lambda _: 2) == {10: [[0, 1], [2, 3], [4]]}


def test_best_fit_fills_long_rows_with_short_texts():
    found = best_fit([60, 20, 20, 9, 9, 9, 4], [20, 64], lambda _: 2)
    assert found == {20: [[1], [2], [3, 4], [5]], 64: [[0, 6]]}


def test_row_length_is_chosen_by_the_work():
    # 33 tokens twice fill a row of 64 no better than none; 20 and 12 fill rows of 32 exactly.
    assert {b.shape[1] for b in make_batches(texts([33] * 8), PACKED, 1)} == {64}
    assert {b.shape[1] for b in make_batches(texts([20, 12] * 8), PACKED, 1)} == {32}


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    batches = make_batches(texts(lengths), DEFAULTS["cpu"], 1)
    assert lengths.sum() >= 0.95 * sum(batch.input_ids.size for batch in batches)


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([10], (1, 128)),
        ([200], (1, 256)),
        ([900], (1, 1024)),
        ([900, 90], (1, 1024)),
        ([2500], (1, 4096)),
        ([5000], (1, 8192)),
        ([60] * 12, (4, 256)),
    ],
)
def test_few_texts_have_a_row_that_fits(lengths, shape):
    (batch,) = make_batches(texts(lengths), DEFAULTS["tpu"], 1)
    assert batch.shape[:2] == shape


def test_a_mostly_empty_step_is_two():
    heights = [batch.shape[0] for batch in make_batches(texts([16] * 5), PADDED, 1)]
    assert heights == [4, 1]


@pytest.mark.parametrize(
    ("batching", "most"),
    [
        (PADDED, 40),
        (PACKED, 30),
        (DEFAULTS["cpu"], 40),
        (DEFAULTS["gpu"], 90),
        (Batching(packing=True).on("gpu"), 16),
        (DEFAULTS["tpu"], 16),
        (DEFAULTS["tpu"]._replace(max_texts=1), 8),
    ],
)
def test_number_of_shapes_is_bounded(batching, most):
    assert len(shapes(batching, 8192)) <= most
    assert len(set(shapes(batching, 8192))) == len(shapes(batching, 8192))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget=0"),
        ({"token_budget": 64, "row_lengths": (128,)}, r"row_lengths=\(128,\)"),
        ({"token_budget": 64, "row_lengths": (32, 16)}, "ascending"),
        ({"max_texts": 0}, "max_texts=0"),
        ({"max_texts": True}, "max_texts=True: expected an integer of at least 1, got bool"),
        ({"row_lengths": 5}, "row_lengths=5: expected an ascending tuple"),
        ({"row_lengths": (7,)}, "row_lengths=7: expected an integer of at least 8"),
        ({"row_lengths": "512"}, "row_lengths='5': expected an integer of at least 8, got str"),
        ({"packing": 1}, "packing=1: expected None, True or False"),
        ({"packing": False, "row_lengths": (8,)}, r"row_lengths=\(8,\): expected None with pack"),
        ({"token_budget": 64, "attention_tokens": 1.5}, "attention_tokens=1.5"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Batching(**options)


def test_flags_of_numpy_are_flags():
    assert Batching(packing=np.bool_(False)) == Batching(packing=False)
    with pytest.raises(ValueError, match=r"row_lengths=.*expected None with packing=False"):
        Batching(packing=np.bool_(False), row_lengths=(16,))


def test_integers_of_numpy_are_integers():
    given = Batching(np.int64(64), row_lengths=np.array([16, 32]), max_texts=np.int32(3))
    assert repr(given) == repr(Batching(64, row_lengths=(16, 32), max_texts=3))


# ---------------------------------------------------------------- settings and defaults


@pytest.mark.parametrize(
    ("batching", "platform", "expected"),
    [
        (Batching(), "cpu", DEFAULTS["cpu"]),
        (Batching(), "gpu", DEFAULTS["gpu"]),
        (Batching(2048), "cpu", DEFAULTS["cpu"]._replace(token_budget=2048)),
        (Batching(packing=False), "cpu", DEFAULTS["cpu"]._replace(row_lengths=())),
        (Batching(row_lengths=()), "cpu", DEFAULTS["cpu"]._replace(row_lengths=())),
        (Batching(packing=True), "gpu", DEFAULTS["gpu"]._replace(row_lengths=(512, 2048, 8192))),
        (Batching(row_lengths=(64,)), "gpu", DEFAULTS["gpu"]._replace(row_lengths=(64,))),
        (Batching(max_texts=4), "tpu", DEFAULTS["tpu"]._replace(max_texts=4)),
        (Batching(300), "cpu", DEFAULTS["cpu"]._replace(token_budget=300, row_lengths=(128, 256))),
        (Batching(64), "cpu", DEFAULTS["cpu"]._replace(token_budget=64, row_lengths=(64,))),
        (Batching(4), "cpu", DEFAULTS["cpu"]._replace(token_budget=4, row_lengths=())),
        (
            Batching(row_lengths=(2048,)),
            "cpu",
            DEFAULTS["cpu"]._replace(token_budget=2048, row_lengths=(2048,)),
        ),
        (Batching(attention_tokens=9), "cpu", DEFAULTS["cpu"]._replace(attention_tokens=9)),
    ],
)
def test_what_is_not_given_is_the_platforms_default(batching, platform, expected):
    assert batching.on(platform) == expected


def test_a_token_budget_or_a_number_of_texts_leaves_packing_on():
    lengths = np.random.default_rng(0).lognormal(3, 0.8, 300).astype(int).clip(3, 200)

    def padding(batching):
        batches = make_batches(texts(lengths), batching, 1)
        return 1 - lengths.sum() / sum(batch.input_ids.size for batch in batches)

    default = padding(DEFAULTS["cpu"])
    assert padding(Batching(2048).on("cpu")) < default + 0.05
    assert padding(Batching(max_texts=32).on("cpu")) < default + 0.15
    assert padding(Batching(packing=False).on("cpu")) > default + 0.1


@pytest.mark.parametrize("batching", [PADDED, PACKED])
@pytest.mark.parametrize("row_multiple", [1, 2])
def test_no_step_has_more_texts_than_asked_for(batching, row_multiple):
    few = batching._replace(max_texts=3)
    batches = make_batches(texts([5, 40, 9, 3, 17, 21, 8, 8, 64, 150]), few, 1, row_multiple)
    most = max(len(batch.indices) for batch in batches)
    assert 3 < most <= 6 if row_multiple == 2 else most == 3
