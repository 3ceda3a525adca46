"""Late chunking without the model: text → chunks, chunks → tokens, tokens → windows.

A chunk is a half-open span of characters, (start, stop). The text is tokenised once, behind its
prompt; each chunk's vector is the mean of its tokens' vectors (arXiv 2409.04701). What is here says
which tokens these are, and in which window of a long text each of them counts:

    content_tokens → token_spans → with_special_tokens → split_ranges(…, windows(…))
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex

Span = tuple[int, int]
Chunker = Callable[[str], Sequence[Span]]

_SOFT = ".!?…․﹒．"  # marks that end a sentence only where white space follows
_MARK = rf"\p{{Sentence_Terminal}}{_SOFT}"
_CLOSE = r"\p{Pe}\p{Pf}\p{M}\p{Cf}\"'"  # goes with the mark before it (UAX #29, SB5 and SB9)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_END = regex.compile(
    rf"""(?P<always>
        (?<={_CJK}) [.!?]+ (?={_CJK})
      | [{_MARK}]* (?: [{_MARK}--[{_SOFT}]] | ．(?!\p{{Nd}}|\p{{Latin}}) ) [{_MARK}{_CLOSE}]*
    )
    | [{_SOFT}] (?:
        [{_SOFT}{_CLOSE}\p{{Pi}}]  # German and Danish close with “ and «
      | [\ \xa0\u202f]»(?!\w)  # French
    )*
    """,
    regex.VERBOSE | regex.VERSION1,
)
# A full stop that ends no sentence though a capital follows: initials, titles that stand before a
# name, and what may be an ordinal (German "3. Oktober") or the number of a list's item.
_ABBREVIATED = regex.compile(
    r"""(?<= (?<![\p{L}\p{M}\p{N}'’]) (?:\p{Lu}|Dr|Hr|Mr|Mrs|Ms|Nr|Prof|Sr|Sra|St) )\.
      | (?<= (?<![\p{L}\p{M}\p{N}'’]) \p{Ll} )\.(?=\s?\p{L}\.)
      | (?<= (?<![\p{L}\p{M}\p{N}\p{Sc}.,:]) (?:[1-9]|[12][0-9]|3[01]) )\.
    """,
    regex.VERBOSE,
)
_LOWER_CASE_NEXT = regex.compile(rf"[^\p{{L}}{_MARK}]*+\p{{Ll}}")
# No chunk of its own: white space, and what the tokenizer may drop or join to something else.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{M}▁\uFFFD]")


class Window(NamedTuple):
    """A part of a long text's tokens that the encoder sees at once.

    Attributes:
      start, stop: the window's tokens, half-open.
      keep: first token whose vector counts; those before it were in the window before.
    """

    start: int
    stop: int
    keep: int


def chunk_by_sentences(text: str, sentences: int = 1) -> list[Span]:
    """Cut a text into chunks of whole sentences.

    A sentence ends at a line break, and behind a mark of any script (Unicode's Sentence_Terminal
    and "…") with the quotes and brackets that it closes. Behind ``.``, ``!``, ``?`` and "…" white
    space must follow; a full stop or "…" ends nothing where the next word is in lower case or what
    stands before is an initial, a title ("Dr.") or a small number ("3. Oktober"); nor does any of
    them within quotes or brackets where the next word is in lower case. Other abbreviations before
    a capital do end a sentence. Scripts without marks (Thai) are cut at line breaks alone.

    Args:
      text: any text.
      sentences: sentences in a chunk; the last chunk may have fewer.

    Returns:
      Spans of characters in order, without white space around them. Only white space lies between
      them. None for a text of only white space and what the tokenizer may drop or join to something
      else (controls, formats, combining marks, U+2581, U+FFFD); elsewhere in a text, such
      characters belong to a neighbouring sentence.

    Raises:
      ValueError: if text is not a str, or sentences is not an integer of at least 1.
    """
    _check_text(text)
    _check_integer("sentences", sentences, 1)
    spans = _sentences(text)
    groups = (spans[i : i + sentences] for i in range(0, len(spans), sentences))
    return [(group[0][0], group[-1][1]) for group in groups]


def chunk_by_tokens(offsets: Sequence[Span], tokens: int) -> list[Span]:
    """Cut a text into chunks of a number of tokens.

    Tokens that share a character stay together, so a chunk can have a few more than asked for, and
    ``token_spans`` gives every token back exactly once.

    Args:
      offsets: characters of each content token, as ``content_tokens`` returns them.
      tokens: tokens in a chunk; the last chunk may have fewer.

    Returns:
      Spans of characters in order.

    Raises:
      ValueError: if offsets are no pairs of integers that never decrease, or tokens is not an
        integer of at least 1.
    """
    _check_integer("tokens", tokens, 1)
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

    A token that straddles prompt and text is the text's, from the text's first character on.

    Args:
      offsets: characters of each token of ``prompt + text``; the first and the last token are
        ``<s>`` and ``</s>``, at (0, 0).
      prompt_length: characters of the prompt.

    Returns:
      first and stop, the half-open range of the text's tokens, and for each of them its characters
      in the text without the prompt.

    Raises:
      ValueError: if there are no two tokens at (0, 0) around the offsets, these are no pairs of
        integers that never decrease, or prompt_length is not an integer of at least 0.
    """
    _check_integer("prompt_length", prompt_length, 0)
    if len(offsets) < 2 or tuple(offsets[0]) != (0, 0) or tuple(offsets[-1]) != (0, 0):
        ends = [tuple(offset) for offset in (*offsets[:1], *offsets[1:][-1:])]
        raise ValueError(f"offsets: expected <s> and </s> at (0, 0) around them, got {ends}")
    pairs = _offsets(offsets[1:-1], at=1)
    skipped = int(np.searchsorted(pairs[:, 1], prompt_length, side="right"))
    shifted = np.maximum(pairs[skipped:] - prompt_length, 0)
    return 1 + skipped, len(offsets) - 1, [(start, stop) for start, stop in shifted.tolist()]


def token_spans(offsets: Sequence[Span], spans: Sequence[Span], text: str) -> np.ndarray:
    """Find the tokens of each chunk: those with which it shares a character.

    A token without characters counts as the character before it, or, at the start, the first one.

    Args:
      offsets: characters of each content token, as ``content_tokens`` returns them.
      spans: n chunks; they may overlap, repeat and come in any order.
      text: the text without its prompt.

    Returns:
      int64 (n, 2), half-open ranges of indices into offsets, one for each chunk, in their order.

    Raises:
      ValueError: if spans is no sequence, or a span is no pair of integers, is reversed, lies
        outside the text or has no token; or if offsets are no pairs of integers that never
        decrease, or go beyond the text.
    """
    _check_text(text)
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
    """Give ``<s>``, the prompt and ``</s>`` to the chunks at either end, and count from ``<s>``.

    Every range that begins at the first content token also takes all tokens before it, and every
    range that ends at the last one also takes ``</s>``; a single range can do both, several ranges
    can do either, and where none does, these tokens belong to no chunk. For chunks in order that
    cover the text, this is the published rule (arXiv 2409.04701, jina-ai/late-chunking).

    Args:
      ranges: int (n, 2), half-open, counted from the first content token, from ``token_spans``.
      prefix: tokens before the first content token, ``<s>`` included: ``content_tokens``' first.
      total: all tokens of the text, ``<s>``, prompt and ``</s>`` included.

    Returns:
      int64 (n, 2), half-open ranges of indices into all tokens.

    Raises:
      ValueError: if prefix or total is out of range, or a range is empty or outside the
        ``total - prefix - 1`` content tokens.
    """
    _check_integer("prefix", prefix, 1)
    _check_integer("total", total, prefix + 1)
    content = total - prefix - 1
    ranges = _ranges(ranges, content)
    first, last = ranges[:, 0] == 0, ranges[:, 1] == content
    starts = np.where(first, 0, ranges[:, 0] + prefix)
    return np.stack([starts, np.where(last, total, ranges[:, 1] + prefix)], axis=1)


def windows(total: int, size: int, overlap: int) -> list[Window]:
    """Cover tokens 0 … total with windows whose kept parts follow one another without a gap.

    Each window but the first starts ``overlap`` tokens before the one before it stops, and drops
    these (arXiv 2409.04701, jina-ai/late-chunking). What fits into one window is one.

    Args:
      total: tokens to cover.
      size: most tokens in a window.
      overlap: tokens that a later window sees again.

    Raises:
      ValueError: if an argument is no integer, total or size is below 1, or overlap is not in
        0 … size - 1.
    """
    _check_integer("total", total, 1)
    _check_integer("size", size, 1)
    _check_integer("overlap", overlap, 0)
    if overlap >= size:
        raise ValueError(f"overlap={overlap}: expected an integer from 0 to size - 1 = {size - 1}")
    found = [Window(0, min(size, total), 0)]
    while (done := found[-1].stop) < total:
        start = done - overlap
        found.append(Window(start, min(start + size, total), done))
    return found


def split_ranges(ranges: np.ndarray, windows: Sequence[Window]) -> list[list[tuple[int, int, int]]]:
    """Cut ranges of tokens at the borders of the windows' kept parts.

    The mean over a range is that over its pieces, each weighted by its number of tokens.

    Args:
      ranges: int (n, 2), half-open, indices into all tokens.
      windows: as ``windows`` returns them.

    Returns:
      For each window, its pieces in the order of ranges: the index of the range, and the piece's
      half-open token range counted from the window's start.

    Raises:
      ValueError: if a range is empty or outside what the windows cover.
    """
    ranges = _ranges(ranges, windows[-1].stop if windows else 0)
    return [_pieces(ranges, window) for window in windows]


def _pieces(ranges: np.ndarray, window: Window) -> list[tuple[int, int, int]]:
    starts = np.maximum(ranges[:, 0], window.keep)
    stops = np.minimum(ranges[:, 1], window.stop)
    inside = np.flatnonzero(starts < stops)
    starts, stops = starts[inside] - window.start, stops[inside] - window.start
    return list(zip(inside.tolist(), starts.tolist(), stops.tolist(), strict=True))


def _sentences(text: str) -> list[Span]:
    """Return the sentences; what has no visible character joins the next one, or the last."""
    spans: list[Span] = []
    start = done = 0
    for cut in _cuts(text):
        if _VISIBLE.search(text, done, cut):
            spans.append(_stripped(text, start, cut))
            start = cut
        done = cut
    if spans and start < len(text):
        spans[-1] = _stripped(text, spans[-1][0], len(text))
    return spans


def _cuts(text: str) -> Iterator[int]:
    """Yield where sentences and lines end, in order; a place can come twice."""
    begin = 0
    for line in text.splitlines(keepends=True):
        for match in _END.finditer(line):
            if _ends_sentence(line, match):
                yield begin + match.end()
        begin += len(line)
        yield begin


def _ends_sentence(line: str, match: regex.Match[str]) -> bool:
    """Tell whether a sentence ends behind a mark, given the line that both are in."""
    marks, end = match[0], match.end()
    if match["always"] or end == len(line):
        return True
    if not line[end].isspace() or (marks == "." and _ABBREVIATED.match(line, match.start())):
        return False
    if not _LOWER_CASE_NEXT.match(line, end):
        return True
    return ("!" in marks or "?" in marks) and not marks.strip(_SOFT)


def _stripped(text: str, start: int, stop: int) -> Span:
    """Narrow a span by the white space at its ends."""
    piece = text[start:stop]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())


def _characters(offsets: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each token's characters start and stop, at least one character each."""
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


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text: expected str, got {type(text).__name__}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
