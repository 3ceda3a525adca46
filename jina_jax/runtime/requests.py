"""From texts to token ids: prompted, tokenised, cut or windowed, with the weight of each part.

Nothing here knows of devices. A text is a ``Request``; ``Preparation`` makes a ``Prepared`` of it,
in whatever thread it runs; ``jina_jax.runtime.pipeline`` adds up the vectors of its items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.runtime.tokenizing import Block, TokenizerProcesses, Tokens, tokenize
from jina_jax.text.spans import (
    Span,
    content_tokens,
    split_ranges,
    token_spans,
    windows,
    with_special_tokens,
)
from jina_jax.text.tokenizer import Tokenizer

Chunking = Callable[[str, list[Span]], Sequence[Span]]


class Request(NamedTuple):
    """A text to be embedded.

    Attributes:
      text: any valid string.
      prompt: prepended to it.
      task_id: position of its adapter on the task axis, -1 for none.
      chunks: (text, characters of each of its tokens) → spans of characters, each of which gets a
        vector; None for one vector of the whole.
      position: its index among the caller's texts, for errors.
    """

    text: str
    prompt: str = ""
    task_id: int = -1
    chunks: Chunking | None = None
    position: int = 0


class Piece(NamedTuple):
    """A range of an item's tokens, start to stop, that is ``weight`` of one of the vectors."""

    vector: int
    start: int
    stop: int
    weight: float


class Item(NamedTuple):
    """Token ids that the encoder sees at once.

    Attributes:
      ids: at most ``max_length`` of them.
      pieces: parts of the text's vectors; empty for the one vector of all ids.
    """

    ids: Sequence[int]
    pieces: tuple[Piece, ...] = ()


class Prepared(NamedTuple):
    """A request, ready for the encoder.

    Attributes:
      task_id: as in the request.
      items: one, or one per window of a long text; none where no chunks are asked for.
      vectors: number of vectors, one or one per chunk.
      tokens: number of tokens used, prompt, ``<s>`` and ``</s>`` included.
      dropped: number of tokens cut off at the end.
      spans: characters of each chunk; empty without chunks.
    """

    task_id: int
    items: list[Item]
    vectors: int
    tokens: int
    dropped: int
    spans: list[Span]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How requests become items.

    Attributes:
      tokenizer: text to ids.
      split_special_tokens: see ``Tokenizer.encode``.
      max_length: most tokens that the encoder sees at once.
      overlap: tokens that a window of a longer text shares with the one before; None cuts a longer
        text at its end (chunks are never cut, and need a number).
      processes: tokenise large inputs; None for this thread alone.
      include_prompt: pool ``<s>`` and the prompt's tokens, too (``Config.include_prompt``).
    """

    tokenizer: Tokenizer
    split_special_tokens: bool
    max_length: int
    overlap: int | None
    processes: TokenizerProcesses | None = None
    include_prompt: bool = True
    _prompts: dict[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, requests: Sequence[Request]) -> list[Prepared]:
        """Tokenise and prepare requests.

        Raises:
          ValueError: for spans of chunks that do not fit their text.
          RuntimeError: if a process that tokenises has ended by itself.
        """
        return list(map(self.prepare, requests, self.tokenize(requests)))

    def tokenize(self, requests: Sequence[Request]) -> list[Tokens]:
        """Tokenise requests, those with chunks with the characters of each token."""
        texts = [request.prompt + request.text for request in requests]
        aligned = [request.chunks is not None for request in requests]
        block = Block(texts, aligned, self.split_special_tokens)
        if self.processes is None:
            return tokenize(self.tokenizer, block)
        return self.processes.tokenize(block)

    def prepare(self, request: Request, tokens: Tokens) -> Prepared:
        """Cut a text, or divide it into windows and the pieces of its vectors."""
        ids, dropped = tokens.ids, 0
        if self.overlap is None and len(ids) > self.max_length:
            dropped = len(ids) - self.max_length
            ids = [*ids[: self.max_length - 1], ids[-1]]
        first = self._first_pooled(request, len(ids))
        if tokens.offsets is None and len(ids) <= self.max_length and not first:
            return Prepared(request.task_id, [Item(ids)], 1, len(ids), dropped, [])
        spans: list[Span] = []
        ranges = np.array([[first, len(ids)]])
        if tokens.offsets is not None:
            spans, ranges = _chunks(request, tokens.ids, tokens.offsets, self.include_prompt)
        items = list(_windowed(ids, ranges, self.max_length, self.overlap or 0))
        return Prepared(request.task_id, items, len(ranges), len(ids), dropped, spans)

    def _first_pooled(self, request: Request, count: int) -> int:
        """Return the first of a text's ``count`` tokens that is pooled, as sentence-transformers.

        It is the number of tokens of the prompt alone, without ``</s>``; 0 without a prompt.
        """
        prompt = request.prompt
        if self.include_prompt or not prompt:
            return 0
        if prompt not in self._prompts:
            options = {"split_special_tokens": self.split_special_tokens}
            self._prompts[prompt] = len(self.tokenizer.encode([prompt], **options)[0]) - 1
        if self._prompts[prompt] >= count:
            raise ValueError(
                f"texts[{request.position}]: expected tokens after the prompt, which this model "
                f"does not pool (include_prompt=False), within max_length={self.max_length}"
            )
        return self._prompts[prompt]


def _chunks(
    request: Request, ids: list[int], offsets: list[Span], include_prompt: bool
) -> tuple[list[Span], np.ndarray]:
    """Return the spans of a text's chunks, and their ranges of tokens, int64 (n, 2)."""
    assert request.chunks is not None
    first, _, content = content_tokens(offsets, len(request.prompt))
    found = request.chunks(request.text, content)
    found = list(found) if isinstance(found, Iterator) else found
    try:
        ranges = token_spans(content, found, request.text)
    except ValueError as error:
        raise ValueError(f"texts[{request.position}]: {error}") from None
    spans = [(int(start), int(stop)) for start, stop in found]
    ranges = with_special_tokens(ranges, first, len(ids))
    if request.prompt and not include_prompt:
        ranges[:, 0] = np.maximum(ranges[:, 0], first)
    return spans, ranges


def _windowed(ids: list[int], ranges: np.ndarray, size: int, overlap: int) -> Iterator[Item]:
    """Yield an item per window that ranges of tokens touch."""
    counts = ranges[:, 1] - ranges[:, 0]
    parts = windows(len(ids), size, overlap)
    for window, found in zip(parts, split_ranges(ranges, parts), strict=True):
        pieces = tuple(Piece(k, a, b, float((b - a) / counts[k])) for k, a, b in found)
        if pieces:
            yield Item(ids[window.start : window.stop], pieces)
