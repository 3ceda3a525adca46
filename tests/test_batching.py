import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.batching import bucket, make_batches


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
    assert bucket(size, 16, 8192) == expected


def test_bucket_never_exceeds_the_largest():
    assert bucket(500, 16, 512) == 512
    assert bucket(510, 16, 511) == 511


@given(
    lengths=st.lists(st.integers(2, 100), max_size=40),
    batch_size=st.integers(1, 9),
)
def test_every_text_comes_once_and_whole(lengths, batch_size):
    ids = [[100 * i + k for k in range(length)] for i, length in enumerate(lengths)]
    seen = []
    for batch in make_batches(ids, batch_size, 128, pad_id=1):
        assert len(batch.indices) <= len(batch.input_ids) <= batch_size
        for row, index in enumerate(batch.indices):
            seen.append(index)
            kept = batch.input_ids[row][batch.attention_mask[row]]
            np.testing.assert_array_equal(kept, ids[index])
        assert not batch.attention_mask[len(batch.indices) :].any()
        assert (batch.input_ids[~batch.attention_mask] == 1).all()
    assert sorted(seen) == list(range(len(ids)))


def test_number_of_shapes_is_bounded():
    ids = [[0] * length for length in range(2, 8193, 7)]
    shapes = {batch.input_ids.shape for batch in make_batches(ids, 32, 8192, 1)}
    assert len(shapes) <= 18 + 5
