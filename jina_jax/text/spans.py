"""Late chunking without the model: spans of characters, ranges of tokens, windows of a long text.

A chunk is a half-open span of characters, (start, stop). The text is tokenised once, behind its
prompt; each chunk's vector is the mean of its tokens' vectors (arXiv 2409.04701). These functions
find its tokens, and the window of a long text in which each token is counted:

    content_tokens → token_spans → with_special_tokens → split_ranges(…, windows(…))
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import check_integer

Span = tuple[int, int]
Chunker = Callable[[str], Sequence[Span]]


class Window(NamedTuple):
    """A part of a long text's tokens that is encoded at once.

    Attributes:
      start, stop: the window's tokens, half-open.
      keep: first token whose vector is used; vectors of the tokens before it are those of the
        previous window.
    """

    start: int
    stop: int
    keep: int


def chunk_by_tokens(offsets: Sequence[Span], tokens: int) -> list[Span]:
    """Cut a text into chunks of a number of tokens.

    Tokens that share a character stay together, so a chunk can have a few more than requested, and
    ``token_spans`` returns every token exactly once.

    Args:
      offsets: characters of each content token, as ``content_tokens`` returns them.
      tokens: number of tokens per chunk; the last chunk may have fewer.

    Returns:
      Spans of characters in order.

    Raises:
      ValueError: if offsets are not pairs of integers that never decrease, or tokens is not an
        integer of at least 1.
    """
    tokens = check_integer("tokens", tokens, 1)
    starts, stops = _characters(offsets)
    chunks: list[Span] = []
    first, count = 0, len(starts)
    while first < count:
        last = min(first + tokens, count)
        while last < count and starts[last] < stops[last - 1]:
            last += 1
        chunks.append((int(starts[first]), int(stops[last - 1])))
        first = last
    return chunks


def content_tokens(offsets: Sequence[Span], prompt_length: int) -> tuple[int, int, list[Span]]:
    """Find the tokens of a text that was tokenised behind its prompt.

    A token that straddles prompt and text belongs to the text, from the text's first character on.

    Args:
      offsets: characters of each token of ``prompt + text``; the first and the last token are
        ``<s>`` and ``</s>``, at (0, 0).
      prompt_length: number of characters in the prompt.

    Returns:
      first and stop, the half-open range of the text's tokens, and the offsets of each of them in
      the text without the prompt.

    Raises:
      ValueError: if the first and last offsets are not (0, 0), the others are not pairs of integers
        that never decrease, or prompt_length is not an integer of at least 0.
    """
    prompt_length = check_integer("prompt_length", prompt_length, 0)
    if len(offsets) < 2 or tuple(offsets[0]) != (0, 0) or tuple(offsets[-1]) != (0, 0):
        ends = [tuple(offset) for offset in (*offsets[:1], *offsets[1:][-1:])]
        raise ValueError(f"offsets: expected <s> and </s> at (0, 0) around them, got {ends}")
    pairs = _offsets(offsets[1:-1], at=1)
    skipped = int(np.searchsorted(pairs[:, 1], prompt_length, side="right"))
    shifted = np.maximum(pairs[skipped:] - prompt_length, 0)
    return 1 + skipped, len(offsets) - 1, [(start, stop) for start, stop in shifted.tolist()]


def token_spans(offsets: Sequence[Span], spans: Sequence[Span], text: str) -> np.ndarray:
    """Find the tokens of each chunk: every token that shares a character with it.

    A token without characters is treated as the character before it or, at the start, the first.

    Args:
      offsets: characters of each content token, as ``content_tokens`` returns them.
      spans: n chunks; they may overlap, repeat and be in any order.
      text: the text without its prompt.

    Returns:
      int64 (n, 2), half-open ranges of indices into offsets, one per chunk, in the same order.

    Raises:
      ValueError: if spans is not a sequence, or a span is not a pair of integers, is reversed, is
        outside the text or has no token; or if offsets are not pairs of integers that never
        decrease, or exceed the text.
    """
    check_text(text)
    starts, stops = _characters(offsets)
    if len(stops) and stops[-1] > max(len(text), 1):
        raise ValueError(
            f"offsets[{len(stops) - 1}]: expected to stop within the text's {len(text)} "
            f"characters, got {int(stops[-1])}"
        )
    if isinstance(spans, str) or not isinstance(spans, Iterable):
        raise ValueError(f"spans: expected pairs of integers, got {_excerpt(spans)}")
    pairs = np.array([_span(i, span, text) for i, span in enumerate(spans)], np.int64)
    pairs = pairs.reshape(-1, 2)
    first = np.searchsorted(stops, pairs[:, 0], side="right")
    last = np.searchsorted(starts, pairs[:, 1], side="left")
    for i in np.flatnonzero((first >= last) | (pairs[:, 0] == pairs[:, 1])):
        start, stop = map(int, pairs[i])
        raise ValueError(
            f"spans[{i}]=({start}, {stop}), {_excerpt(text[start:stop])}: expected characters of "
            "at least one token, got none"
        )
    return np.stack([first, last], axis=1)


def with_special_tokens(ranges: np.ndarray, prefix: int, total: int) -> np.ndarray:
    """Add ``<s>``, the prompt and ``</s>`` to the chunks at either end, and count from ``<s>``.

    Every range that begins at the first content token is extended by all tokens before it, and
    every range that ends at the last one by ``</s>``; a single range can be extended at both ends,
    several ranges at the same end, and without such a range these tokens belong to no chunk. For
    chunks in order that cover the text, this is the published rule (arXiv 2409.04701,
    jina-ai/late-chunking).

    Args:
      ranges: int (n, 2), half-open, counted from the first content token, from ``token_spans``.
      prefix: number of tokens before the first content token, ``<s>`` included; the first result
        of ``content_tokens``.
      total: number of all tokens, ``<s>``, prompt and ``</s>`` included.

    Returns:
      int64 (n, 2), half-open ranges of indices into all tokens.

    Raises:
      ValueError: if prefix or total is out of range, or a range is empty or outside the
        ``total - prefix - 1`` content tokens.
    """
    prefix = check_integer("prefix", prefix, 1)
    total = check_integer("total", total, prefix + 1)
    content = total - prefix - 1
    ranges = _ranges(ranges, content)
    first, last = ranges[:, 0] == 0, ranges[:, 1] == content
    starts = np.where(first, 0, ranges[:, 0] + prefix)
    return np.stack([starts, np.where(last, total, ranges[:, 1] + prefix)], axis=1)


def windows(total: int, size: int, overlap: int) -> list[Window]:
    """Cover tokens 0 … total with windows whose kept parts follow one another without a gap.

    Each window but the first starts ``overlap`` tokens before the previous one stops, and drops
    these (arXiv 2409.04701, jina-ai/late-chunking). ``size`` tokens or fewer are one window.

    Args:
      total: number of tokens to cover.
      size: most tokens per window.
      overlap: number of tokens that a window shares with the previous one.

    Raises:
      ValueError: if an argument is not an integer, total or size is below 1, or overlap is not in
        0 … size - 1.
    """
    total, size = check_integer("total", total, 1), check_integer("size", size, 1)
    overlap = check_integer("overlap", overlap, 0)
    if overlap >= size:
        raise ValueError(f"overlap={overlap}: expected an integer from 0 to size - 1 = {size - 1}")
    found = [Window(0, min(size, total), 0)]
    while (done := found[-1].stop) < total:
        start = done - overlap
        found.append(Window(start, min(start + size, total), done))
    return found


def split_ranges(ranges: np.ndarray, windows: Sequence[Window]) -> list[list[tuple[int, int, int]]]:
    """Cut ranges of tokens at the borders of the windows' kept parts.

    The mean over a range is the mean over its pieces, each weighted by its number of tokens.

    Args:
      ranges: int (n, 2), half-open, indices into all tokens.
      windows: as ``windows`` returns them.

    Returns:
      The pieces of each window, in the order of ranges: the index of the range, and the piece's
      half-open token range counted from the window's start.

    Raises:
      ValueError: if a range is empty or outside the tokens that the windows cover.
    """
    ranges = _ranges(ranges, windows[-1].stop if windows else 0)
    return [_pieces(ranges, window) for window in windows]


def _pieces(ranges: np.ndarray, window: Window) -> list[tuple[int, int, int]]:
    starts = np.maximum(ranges[:, 0], window.keep)
    stops = np.minimum(ranges[:, 1], window.stop)
    inside = np.flatnonzero(starts < stops)
    starts, stops = starts[inside] - window.start, stops[inside] - window.start
    return list(zip(inside.tolist(), starts.tolist(), stops.tolist(), strict=True))


def _characters(offsets: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and stop characters of each token, at least one character each."""
    pairs = _offsets(offsets)
    starts, stops = pairs[:, 0], pairs[:, 1]
    starts = np.where(starts == stops, np.maximum(starts - 1, 0), starts)
    return starts, np.maximum(stops, starts + 1)


def _offsets(offsets: Sequence[Span], at: int = 0) -> np.ndarray:
    """Return offsets as int64 (n, 2), checked; ``at`` is the first one's index in a message."""
    pairs = _pairs("offsets", offsets)
    steps = np.diff(pairs, axis=0, prepend=np.zeros((1, 2), np.int64))
    wrong = (steps < 0).any(axis=1) | (pairs[:, 0] > pairs[:, 1])
    for i in np.flatnonzero(wrong):
        before = tuple(pairs[i - 1].tolist()) if i else (0, 0)
        raise ValueError(
            f"offsets[{at + i}]: expected (start, stop) with start ≤ stop and neither below "
            f"{before}, got {tuple(pairs[i].tolist())}"
        )
    return pairs


def _ranges(ranges: np.ndarray, total: int) -> np.ndarray:
    """Return token ranges as int64 (n, 2), checked against the number of tokens."""
    pairs = _pairs("ranges", ranges)
    wrong = (pairs[:, 0] < 0) | (pairs[:, 0] >= pairs[:, 1]) | (pairs[:, 1] > total)
    for i in np.flatnonzero(wrong):
        raise ValueError(
            f"ranges[{i}]: expected (start, stop) with 0 ≤ start < stop ≤ {total}, "
            f"got {tuple(pairs[i].tolist())}"
        )
    return pairs


def _pairs(name: str, values: Any) -> np.ndarray:
    if not len(values):
        return np.zeros((0, 2), np.int64)
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected pairs of integers, got {_excerpt(values)}")
    return array.astype(np.int64)


def _span(i: int, span: Any, text: str) -> Span:
    """Return a caller's span as two ints that lie within the text."""
    try:
        start, stop = (operator.index(end) for end in span)
        if any(isinstance(end, bool) for end in span):
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(f"spans[{i}]={span!r}: expected (start, stop), two integers") from None
    if not 0 <= start <= stop <= len(text):
        raise ValueError(
            f"spans[{i}]=({start}, {stop}): expected 0 ≤ start < stop ≤ {len(text)}, "
            "the characters of the text"
        )
    return start, stop


def _excerpt(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text: expected str, got {type(text).__name__}")
