"""Spans of characters, ranges of tokens and windows, also with the real tokenizer."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sentences import TEXTS

from jina_jax.text.sentences import chunk_by_sentences
from jina_jax.text.spans import (
    Window,
    chunk_by_tokens,
    content_tokens,
    split_ranges,
    token_spans,
    windows,
    with_special_tokens,
)
from jina_jax.text.tokenizer import Tokenizer

# ---------------------------------------------------------------- tokens

TEXT = "ab cd  e"
OFFSETS = [(0, 1), (1, 2), (3, 5), (7, 8)]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 8), (0, 4)),
        ((0, 1), (0, 1)),
        ((1, 2), (1, 2)),
        ((2, 4), (2, 3)),
        ((4, 7), (2, 3)),
        ((1, 4), (1, 3)),
        ((5, 8), (3, 4)),
    ],
)
def test_token_spans(span, expected):
    np.testing.assert_array_equal(token_spans(OFFSETS, [span], TEXT), [expected])


def test_token_spans_in_any_order():
    spans = [(3, 8), (0, 5), (3, 8), (0, 1)]
    ranges = token_spans(OFFSETS, spans, TEXT)
    np.testing.assert_array_equal(ranges, [(2, 4), (0, 3), (2, 4), (0, 1)])
    assert ranges.dtype == np.int64
    np.testing.assert_array_equal(token_spans(OFFSETS, np.array(spans, np.int32), TEXT), ranges)
    assert token_spans(OFFSETS, [], TEXT).shape == (0, 2)


def test_tokens_that_share_characters():
    offsets = [(0, 1), (0, 2), (2, 3), (2, 3)]  # "▁" with the first, then one character as two
    spans = [(0, 1), (1, 2), (2, 3)]
    np.testing.assert_array_equal(token_spans(offsets, spans, "你好👍"), [(0, 2), (1, 2), (2, 4)])


def test_a_token_without_characters_belongs_to_the_one_before():
    offsets = [(0, 0), (0, 1), (1, 1), (2, 3), (3, 3)]
    spans = [(0, 1), (1, 3), (2, 3)]
    np.testing.assert_array_equal(token_spans(offsets, spans, "abc"), [(0, 3), (3, 5), (3, 5)])
    assert chunk_by_tokens(offsets, 1) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 1), (5, 7)], r"spans\[1\]=\(5, 7\), '  ': expected .* at least one token, got none"),
        ([(2, 3)], r"spans\[0\]=\(2, 3\), ' ': expected"),
        ([(4, 4)], r"spans\[0\]=\(4, 4\), '': expected"),
        ([(0, 9)], r"spans\[0\]=\(0, 9\): expected 0 ≤ start < stop ≤ 8"),
        ([(-1, 3)], r"spans\[0\]=\(-1, 3\): expected 0 ≤ start"),
        ([(0, 1), (3, 1)], r"spans\[1\]=\(3, 1\): expected 0 ≤ start < stop"),
        ([(0, 1.0)], r"spans\[0\]=\(0, 1.0\): expected \(start, stop\), two integers"),
        ([(False, 1)], r"spans\[0\]=\(False, 1\): expected"),
        ([(0, 1, 2)], r"spans\[0\]=\(0, 1, 2\): expected"),
        ([3], r"spans\[0\]=3: expected"),
        (["ab"], r"spans\[0\]='ab': expected"),
        ("ab", r"spans: expected pairs of integers, got 'ab'"),
        (None, r"spans: expected pairs of integers, got None"),
    ],
)
def test_token_spans_refuses_spans(spans, message):
    with pytest.raises(ValueError, match=message):
        token_spans(OFFSETS, spans, TEXT)


def test_token_spans_without_tokens():
    with pytest.raises(ValueError, match=r"spans\[0\]=\(0, 1\), '\\ufeff': expected"):
        token_spans([], [(0, 1)], "\ufeff")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([(0, 2), (1, 1)], r"offsets\[1\]: expected .* neither below \(0, 2\), got \(1, 1\)"),
        ([(1, 2), (0, 2)], r"offsets\[1\]: expected .*, got \(0, 2\)"),
        ([(-1, 2)], r"offsets\[0\]: expected .* neither below \(0, 0\), got \(-1, 2\)"),
        ([(2, 1)], r"offsets\[0\]: expected .* start ≤ stop .*, got \(2, 1\)"),
        ([(0, 1), (0, 1, 2)], "offsets: expected pairs of integers, got"),
        ([0, 1], "offsets: expected pairs of integers, got"),
        ([(0.0, 1.5)], "offsets: expected pairs of integers, got"),
        ([(0, 4)], r"offsets\[0\]: expected to stop within the text's 3 characters, got 4"),
    ],
)
def test_offsets_refused(offsets, message):
    with pytest.raises(ValueError, match=message):
        token_spans(offsets, [(0, 1)], "abc")


@pytest.mark.parametrize("text", [None, b"abc", 3])
def test_text_refused(text):
    with pytest.raises(ValueError, match="text: expected str, got"):
        token_spans(OFFSETS, [(0, 1)], text)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1", None])
def test_chunk_size_refused(count):
    with pytest.raises(ValueError, match=r"tokens=.*: expected an integer of at least 1"):
        chunk_by_tokens(OFFSETS, count)


def test_chunk_by_tokens():
    assert chunk_by_tokens(OFFSETS, 1) == OFFSETS
    assert chunk_by_tokens(OFFSETS, 2) == [(0, 2), (3, 8)]
    assert chunk_by_tokens(OFFSETS, 3) == [(0, 5), (7, 8)]
    assert chunk_by_tokens(OFFSETS, 9) == [(0, 8)]
    assert chunk_by_tokens([], 2) == []
    assert chunk_by_tokens([(0, 1), (0, 2), (2, 3), (2, 3), (3, 4)], 1) == [(0, 2), (2, 3), (3, 4)]
    with pytest.raises(ValueError, match=r"offsets\[1\]: expected"):
        chunk_by_tokens([(0, 2), (1, 1)], 1)


@st.composite
def token_offsets(draw):
    """Offsets that never decrease, with gaps, shared characters and tokens without any."""
    steps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
    offsets, last = [], (0, 0)
    for forward, length in steps:
        start = last[0] + forward
        last = (start, max(start + length, last[1]))
        offsets.append(last)
    return offsets


@given(offsets=token_offsets(), tokens=st.integers(1, 5))
def test_every_token_is_in_one_chunk(offsets, tokens):
    text = "x" * max(1, offsets[-1][1] if offsets else 1)
    ranges = token_spans(offsets, chunk_by_tokens(offsets, tokens), text)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(len(offsets)))
    assert (ranges[:-1, 1] - ranges[:-1, 0] >= tokens).all()


# ---------------------------------------------------------------- prompt and special tokens


def test_content_tokens():
    offsets = [(0, 0), (0, 2), (2, 4), (4, 6), (6, 8), (0, 0)]
    assert content_tokens(offsets, 0) == (1, 5, offsets[1:-1])
    assert content_tokens(offsets, 4) == (3, 5, [(0, 2), (2, 4)])
    assert content_tokens(offsets, 3) == (2, 5, [(0, 1), (1, 3), (3, 5)])  # one straddles
    assert content_tokens(offsets, 8) == content_tokens(offsets, 9) == (5, 5, [])
    assert content_tokens([(0, 0), (0, 0)], 0) == (1, 1, [])


@pytest.mark.parametrize("offsets", [[], [(0, 0)], [(0, 0), (0, 1)], [(0, 1), (1, 2), (0, 0)]])
def test_content_tokens_needs_both_ends(offsets):
    with pytest.raises(ValueError, match=r"offsets: expected <s> and </s> at \(0, 0\) .*, got \["):
        content_tokens(offsets, 0)


def test_content_tokens_refuses():
    with pytest.raises(ValueError, match=r"offsets\[2\]: expected .*, got \(0, 1\)"):
        content_tokens([(0, 0), (0, 2), (0, 1), (0, 0)], 0)
    for length in (-1, 1.0, True, None):
        with pytest.raises(
            ValueError, match=r"prompt_length=.*: expected an integer of at least 0"
        ):
            content_tokens([(0, 0), (0, 0)], length)


def test_with_special_tokens():
    # <s>, two tokens of the prompt, five of the text, </s>
    def extended(*ranges):
        return with_special_tokens(np.array(ranges), 3, 9).tolist()

    assert extended((0, 2), (2, 4), (4, 5)) == [[0, 5], [5, 7], [7, 9]]
    assert extended((0, 5)) == [[0, 9]]
    assert extended((4, 5), (0, 1), (0, 5), (0, 2)) == [[7, 9], [0, 4], [0, 9], [0, 5]]
    assert extended((1, 3), (3, 4)) == [[4, 6], [6, 7]]
    assert with_special_tokens(np.zeros((0, 2), int), 1, 2).shape == (0, 2)


@pytest.mark.parametrize("wrong", [(0, 6), (-1, 2), (2, 2), (3, 1)])
def test_with_special_tokens_refuses_ranges(wrong):
    with pytest.raises(ValueError, match=r"ranges\[1\]: expected .* 0 ≤ start < stop ≤ 5, got \("):
        with_special_tokens(np.array([(0, 5), wrong]), 3, 9)


def test_with_special_tokens_refuses():
    ranges = np.array([(0, 1)])
    for prefix in (0, True, 1.0):
        with pytest.raises(ValueError, match=r"prefix=.*: expected an integer of at least 1"):
            with_special_tokens(ranges, prefix, 5)
    with pytest.raises(ValueError, match="total=3: expected an integer of at least 4"):
        with_special_tokens(ranges, 3, 3)
    with pytest.raises(ValueError, match="ranges: expected pairs of integers"):
        with_special_tokens(np.array([0.0, 1.0]), 1, 3)


# ---------------------------------------------------------------- windows


def test_windows():
    assert windows(5, 5, 2) == windows(5, 9, 8) == [Window(0, 5, 0)]
    assert windows(10, 6, 2) == [Window(0, 6, 0), Window(4, 10, 6)]
    assert windows(11, 6, 2) == [Window(0, 6, 0), Window(4, 10, 6), Window(8, 11, 10)]
    assert windows(4, 2, 0) == [Window(0, 2, 0), Window(2, 4, 2)]
    assert windows(4, 2, 1) == [Window(0, 2, 0), Window(1, 3, 2), Window(2, 4, 3)]


SIZES = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 11)).filter(
    lambda sizes: sizes[2] < sizes[1]
)


@given(sizes=SIZES)
def test_windows_partition_the_tokens(sizes):
    total, size, overlap = sizes
    found = windows(total, size, overlap)
    assert [i for window in found for i in range(window.keep, window.stop)] == list(range(total))
    assert all(window.stop - window.start <= size for window in found)
    assert all(window.keep < window.stop for window in found)
    assert all(b.start == a.stop - overlap and b.keep == a.stop for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1), "total=0: expected an integer of at least 1"),
        ((9.0, 4, 1), "total=9.0: expected an integer of at least 1"),
        ((9, 0, 0), "size=0: expected an integer of at least 1"),
        ((9, 4, -1), "overlap=-1: expected an integer of at least 0"),
        ((9, 4, True), "overlap=True: expected an integer of at least 0"),
        ((9, 4, 4), "overlap=4: expected an integer from 0 to size - 1 = 3"),
        ((3, 4, 5), "overlap=5: expected an integer from 0 to size - 1 = 3"),
    ],
)
def test_windows_refuses(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        windows(*arguments)


def test_split_ranges():
    ranges = np.array([(0, 3), (5, 11), (0, 11), (3, 6)])
    assert split_ranges(ranges, windows(11, 6, 2)) == [
        [(0, 0, 3), (1, 5, 6), (2, 0, 6), (3, 3, 6)],
        [(1, 2, 6), (2, 2, 6)],
        [(1, 2, 3), (2, 2, 3)],
    ]
    assert split_ranges(np.zeros((0, 2), int), windows(3, 2, 0)) == [[], []]
    assert split_ranges(np.zeros((0, 2), int), []) == []


@pytest.mark.parametrize("wrong", [(0, 12), (-1, 2), (2, 2), (3, 1)])
def test_split_ranges_refuses(wrong):
    with pytest.raises(ValueError, match=r"ranges\[0\]: expected .* 0 ≤ start < stop ≤ 11, got"):
        split_ranges(np.array([wrong]), windows(11, 6, 2))


@given(sizes=SIZES, data=st.data())
def test_pieces_give_the_mean(sizes, data):
    total, size, overlap = sizes
    start = st.integers(0, total - 1)
    ranges = data.draw(
        st.lists(start.flatmap(lambda at: st.tuples(st.just(at), st.integers(at + 1, total))))
    )
    values = np.arange(total) ** 2
    found = windows(total, size, overlap)
    sums, counts = np.zeros(len(ranges)), np.zeros(len(ranges), int)
    for window, pieces in zip(found, split_ranges(np.array(ranges), found), strict=True):
        seen = values[window.start : window.stop]
        for i, first, last in pieces:
            assert window.keep <= window.start + first < window.start + last <= window.stop
            sums[i] += seen[first:last].mean() * (last - first)
            counts[i] += last - first
    assert counts.tolist() == [stop - at for at, stop in ranges]
    np.testing.assert_allclose(sums / counts, [values[at:stop].mean() for at, stop in ranges])


# ---------------------------------------------------------------- with the real tokenizer


@pytest.fixture(scope="module")
def tokenizer(shared):
    return Tokenizer.from_file(shared / "xlm-roberta" / "tokenizer.json")


@pytest.mark.parametrize("prompt", ["", "Represent the document for retrieval: ", "query:"])
def test_all_steps(tokenizer, prompt):
    text = "Berlin is a city. 它很大。It has 3.8 million people!"
    ids, offsets = tokenizer.encode_with_offsets(prompt + text)
    first, stop, offsets = content_tokens(offsets, len(prompt))
    spans = chunk_by_sentences(text)
    assert spans == [(0, 17), (18, 22), (22, len(text))]
    ranges = with_special_tokens(token_spans(offsets, spans, text), first, stop + 1)
    assert ranges.tolist() == [
        [0, first + 5],
        [first + 5, first + 9],
        [first + 9, len(ids)],
    ]


@given(
    text=TEXTS, prompt=st.sampled_from(["", "Represent: ", "query:"]), sentences=st.integers(1, 2)
)
@settings(deadline=None)
def test_every_chunk_has_tokens(tokenizer, text, prompt, sentences):
    text = text if prompt else text.lstrip()  # controls at the very start displace all offsets
    _, offsets = tokenizer.encode_with_offsets(prompt + text)
    first, stop, offsets = content_tokens(offsets, len(prompt))
    assert len(offsets) == stop - first
    ranges = token_spans(offsets, chunk_by_sentences(text, sentences), text)
    found = {i for start, last in ranges for i in range(start, last)}
    assert found == set(range(len(offsets))) or not chunk_by_sentences(text)
    ranges = token_spans(offsets, chunk_by_tokens(offsets, 2), text)
    assert [i for start, last in ranges for i in range(start, last)] == list(range(len(offsets)))
