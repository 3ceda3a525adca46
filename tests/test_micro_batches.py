"""Packing: no text is lost or cut, micro-batches are small enough, and shapes are few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.training.micro_batches import Packing, pack

PAD = 1
ROW_LENGTHS = ((128, 256, 512), (32, 64), ())


def texts(lengths):
    """Token ids of which no two are equal, and none is the pad id."""
    ends = np.cumsum([2, *lengths]).tolist()
    return [list(range(end - length, end)) for length, end in zip(lengths, ends[1:], strict=True)]


@st.composite
def batches(draw):
    longest = draw(st.sampled_from([6, 60, 700]))
    lengths = draw(st.lists(st.integers(2, longest), min_size=1, max_size=40))
    return lengths, draw(
        st.builds(
            Packing,
            st.sampled_from([16, 128, 300, 1024]),
            st.sampled_from(ROW_LENGTHS),
            st.sampled_from([1, 3, 8]),
        )
    )


@given(batches())
def test_every_text_is_whole_at_its_place_with_its_task(batch):
    lengths, packing = batch
    ids = texts(lengths)
    tasks = [i % 3 - 1 for i in range(len(ids))]
    micro_batches = pack(ids, tasks, packing, PAD)
    count, height, _ = micro_batches.input_ids.shape
    slots = micro_batches.text_spans.shape[2]
    assert micro_batches.text_spans.shape == (count, height, slots, 2)
    assert micro_batches.task_ids.shape == (count, height, slots)
    assert micro_batches.used.shape == (count,)
    assert {array.dtype for array in micro_batches if array is not micro_batches.used} == {
        np.dtype(np.int32)
    }
    assert len(set(micro_batches.slots.tolist())) == len(ids)
    covered = np.zeros(micro_batches.input_ids.shape, int)
    taken = np.zeros((count, height, slots), bool)
    for text, task, slot in zip(ids, tasks, micro_batches.slots, strict=True):
        where = np.unravel_index(slot, (count, height, slots))
        start, stop = micro_batches.text_spans[where]
        assert micro_batches.input_ids[where[:2]][start:stop].tolist() == text
        assert micro_batches.task_ids[where] == task
        covered[where[:2]][start:stop] += 1
        taken[where] = True
    assert covered.max() == 1  # texts do not overlap
    assert (micro_batches.input_ids[covered == 0] == PAD).all()
    # Other slots are empty and have no task.
    assert (micro_batches.text_spans[~taken][:, 0] == micro_batches.text_spans[~taken][:, 1]).all()
    assert (micro_batches.task_ids[~taken] == -1).all()


@given(batches())
def test_micro_batches_with_texts_are_marked_and_come_first(batch):
    lengths, packing = batch
    micro_batches = pack(texts(lengths), [0] * len(lengths), packing, PAD)
    with_text = (micro_batches.input_ids != PAD).any(axis=(1, 2))
    np.testing.assert_array_equal(micro_batches.used, with_text)
    assert micro_batches.used.dtype == bool
    assert (np.diff(micro_batches.used.astype(int)) <= 0).all()


@given(batches())
def test_padding_is_the_share_of_used_micro_batches_without_tokens(batch):
    lengths, packing = batch
    micro_batches = pack(texts(lengths), [0] * len(lengths), packing, PAD)
    empty = (micro_batches.input_ids[micro_batches.used] == PAD).mean()
    assert micro_batches.padding == pytest.approx(empty)


@given(batches())
def test_shapes(batch):
    lengths, packing = batch
    count, height, length = pack(texts(lengths), [0] * len(lengths), packing, PAD).input_ids.shape
    assert count & (count - 1) == 0  # a power of two
    assert height % packing.row_multiple == 0
    # On a device: within the budget, but for one row that a text needs.
    rows = height // packing.row_multiple
    assert rows * length <= packing.micro_batch_tokens or rows == 1
    if length > packing.micro_batch_tokens:
        shorter = [size for size in packing.row_lengths if size < length]
        assert all(size < max(lengths) for size in shorter)
    fitting = [size for size in packing.row_lengths if size >= max(lengths)]
    if fitting:
        assert length in fitting
    else:
        assert max(lengths) <= length <= max(16, 3 / 2 * max(lengths))


@pytest.mark.parametrize("micro_batch_tokens", [1024, 8192, 100_000])
@pytest.mark.parametrize("row_multiple", [1, 8])
@pytest.mark.parametrize(("count", "most"), [(64, 10), (256, 7), (1024, 5)])
def test_batches_of_one_distribution_have_few_shapes(micro_batch_tokens, row_multiple, count, most):
    rng = np.random.default_rng(0)
    packing = Packing(micro_batch_tokens, row_multiple=row_multiple)
    shapes = set()
    for _ in range(40):
        lengths = np.clip(rng.lognormal(3.5, 0.7, count), 4, 512).astype(int).tolist()
        micro_batches = pack(texts(lengths), [0] * count, packing, PAD)
        shapes.add((*micro_batches.input_ids.shape, micro_batches.text_spans.shape[2]))
    assert len(shapes) <= most


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(5, 60, 400).tolist()
    micro_batches = pack(texts(lengths), [0] * 400, Packing(1024), PAD)
    assert 0 < micro_batches.padding < 0.1


def test_micro_batches_are_as_few_as_fit_and_of_even_height():
    def shape(rows, row_multiple=1):
        packing = Packing(100 * 32, (32,), row_multiple)
        micro_batches = pack(texts([30] * rows), [0] * rows, packing, PAD)
        return (*micro_batches.input_ids.shape[:2], micro_batches.used.sum())

    # Rounded up to an eighth of a power of two, though to no more than a full micro-batch.
    assert [shape(n)[1] for n in (1, 5, 15, 16, 17, 33, 99)] == [1, 5, 15, 16, 18, 36, 100]
    assert shape(100) == (1, 100, 1)
    assert shape(101) == (2, 52, 2)
    assert shape(201) == (4, 72, 3)
    assert shape(400) == (4, 100, 4)
    assert shape(401) == (8, 88, 5)
    assert shape(9, row_multiple=8) == (1, 16, 1)
    assert shape(801, row_multiple=8) == (2, 416, 2)


def test_row_length_is_chosen_by_what_it_leaves_empty():
    def length(lengths, **options):
        packing = Packing(**{"micro_batch_tokens": 128, "row_lengths": (32, 64), **options})
        return pack(texts(lengths), [0] * len(lengths), packing, PAD).input_ids.shape[2]

    assert length([20, 12] * 8) == 32  # both leave nothing
    assert length([20] * 9) == 64  # three in a row of 64, one in a row of 32
    assert length([20] * 9, micro_batch_tokens=32) == 32  # no room for rows of 64
    assert length([40] * 3, micro_batch_tokens=32) == 64  # unless a text needs it
    assert (
        length([40] * 3, micro_batch_tokens=32, row_lengths=(32, 64, 128)) == 64
    )  # and no longer one
    # 13 rows of 32 are 4 micro-batches of 4 rows, 5 of 64 are 3 of 2: the fourth is not computed.
    assert length([20] * 13) == 64
    assert length([65]) == 96


def test_a_row_has_a_place_for_every_eighth_token():
    micro_batches = pack(texts([2] * 9), [0] * 9, Packing(64, (32,)), PAD)
    assert micro_batches.text_spans.shape == (2, 2, 4, 2)
    assert micro_batches.text_spans[0, 0].tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert micro_batches.slots.tolist() == list(range(9))
    assert micro_batches.used.tolist() == [True, True]


def test_a_small_batch_in_full():
    micro_batches = pack(texts([3, 30, 20, 11]), [5, 6, 7, 8], Packing(32, (32,)), PAD)
    assert micro_batches.slots.tolist() == [8, 0, 4, 5]  # rows of 30, of 20 and 11, of 3
    assert micro_batches.text_spans[:, 0, :3].tolist() == [
        [[0, 30], [0, 0], [0, 0]],
        [[0, 20], [20, 31], [0, 0]],
        [[0, 3], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
    ]
    assert micro_batches.task_ids[:, 0, :2].tolist() == [[6, -1], [7, 8], [5, -1], [-1, -1]]
    assert micro_batches.used.tolist() == [True, True, True, False]
    assert micro_batches.padding == pytest.approx(1 - 64 / 96)


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="ids: expected at least one text"):
        pack([], [], Packing(), PAD)
