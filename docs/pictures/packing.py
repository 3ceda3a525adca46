"""Packing against padding: the rows that ``jina_jax.runtime.packing`` makes of real texts."""

from __future__ import annotations

import json
from pathlib import Path

from svg import MARGIN, SMALL, WIDTH, Picture

from jina_jax.runtime.batching import Batching
from jina_jax.runtime.packing import Batch, make_batches

# Tokens of the first paragraphs of the licence, in tiny's vocabulary (tests/test_tiny.py).
TOKENS = Path(__file__).with_name("packing.json")
_HUES = ("blue", "orange", "green", "purple", "red", "teal")
_ROW, _GAP = 10, 2


def draw() -> Picture:
    """Draw the same texts twice, to the same scale."""
    ids = [[0] * tokens for tokens in json.loads(TOKENS.read_text(encoding="utf-8"))]
    tokens, longest = sum(map(len, ids)), max(map(len, ids))
    packed = make_batches(ids, Batching().on("cpu"), 0)
    rows = sum(batch.shape[0] for batch in packed)
    (length,) = {batch.shape[1] for batch in packed}
    shares = _share(tokens, len(ids) * longest), _share(tokens, rows * length)
    sorted_first = make_batches(ids, Batching(packing=False).on("cpu"), 0)
    buckets = _share(tokens, sum(batch.input_ids.size for batch in sorted_first))
    picture = Picture(
        "Packing against padding",
        f"{len(ids)} texts of {min(map(len, ids))} to {longest} tokens. Padded to the longest they "
        f"fill {len(ids)} rows of {longest} tokens, of which {shares[0]} are padding. Packed they "
        f"share {rows} rows of {length} tokens, of which {shares[1]} are padding.",
        height=496,
    )
    scale = (WIDTH - 2 * MARGIN) / length
    _legend(picture)
    _heading(picture, 68, f"One text per row: {len(ids)} rows", shares[0])
    for row, own in enumerate(ids):
        y = 78 + row * (_ROW + _GAP)
        _segment(picture, MARGIN, y, longest * scale, "grey")
        _segment(picture, MARGIN, y, len(own) * scale, _hue(row))
    _heading(picture, 352, f"Packed: {rows} rows", shares[1])
    _packed_rows(picture, packed, 362, length, scale)
    picture.note(
        456,
        f"The first {len(ids)} paragraphs of the Apache licence: {tokens:,} tokens.",
        f"Sorted by length, one per row in {len(sorted_first)} batches: {buckets} padding.",
    )
    return picture


def _share(tokens: int, positions: int) -> str:
    return f"{100 * (1 - tokens / positions):.1f} %"


def _hue(text: int) -> str:
    return _HUES[text % len(_HUES)]


def _segment(picture: Picture, x: float, y: float, width: float, colour: str) -> None:
    style = "soft" if colour == "grey" else "solid"
    picture.rect(x, y, width - 1, _ROW, colour, radius=2, style=style)


def _legend(picture: Picture) -> None:
    right = WIDTH - MARGIN
    picture.text(right, 33, "padding", size=SMALL, anchor="end", ink="dim")
    picture.rect(right - 72, 23, 12, 12, "grey", radius=2, style="soft")


def _heading(picture: Picture, y: float, words: str, share: str) -> None:
    picture.text(MARGIN, y, words)
    picture.text(WIDTH - MARGIN, y, f"{share} padding", anchor="end", bold=True)


def _packed_rows(
    picture: Picture, batches: list[Batch], y: float, length: int, scale: float
) -> None:
    """Draw the rows of batches, with each text where it is."""
    for batch in batches:
        for row in range(batch.shape[0]):
            _segment(picture, MARGIN, y + row * (_ROW + _GAP), length * scale, "grey")
        for text, row, slot in zip(batch.indices, batch.rows, batch.slots, strict=True):
            start, stop = (batch.text_spans[row, slot] * scale).tolist()
            place = y + row * (_ROW + _GAP)
            _segment(picture, MARGIN + start, place, stop - start, _hue(int(text)))
        y += batch.shape[0] * (_ROW + _GAP)
