"""Gradient caching: the two loops over micro-batches in ``jina_jax/training/step.py``."""

from __future__ import annotations

from svg import MARGIN, SMALL, WIDTH, Picture

_BOXES = ("micro-batch 1", "micro-batch 2", "…", "micro-batch C")
_MIDDLES = (MARGIN + 68, MARGIN + 188, MARGIN + 274, WIDTH - MARGIN - 68)
_BOX = 104
_STRIP = WIDTH - 2 * MARGIN
_LOOP = 78  # height of a loop


def draw() -> Picture:
    """Draw the loop that encodes, the loss, the loop of the gradient, and the update."""
    picture = Picture(
        "Gradient caching",
        "A first loop encodes the micro-batches of a batch one after another and keeps their embeddings "
        "only. The loss sees all embeddings and gives the gradient of each. A second loop computes each "
        "micro-batch again, multiplies back, and adds up the gradient of the trained parameters.",
        height=546,
    )
    _loop(picture, 56, "green", "Loop 1: encode", "only embeddings are kept")
    _strip(picture, 158, "green", "embeddings of the whole batch")
    _down(picture, 188, 206)
    picture.box(160, 206, 200, 30, "orange", "loss of all texts")
    _down(picture, 236, 254)
    _strip(picture, 254, "orange", "gradient of each embedding")
    _loop(picture, 308, "purple", "Loop 2: encode again, and back", "adds up")
    for k, x in enumerate(_MIDDLES):
        if _BOXES[k] != "…":
            picture.line([(x, 284), (x, 342)], "orange")
    _strip(picture, 410, "purple", "gradient of the trained parameters")
    _down(picture, 440, 458)
    picture.box(160, 458, 200, 30, "blue", "update by optax")
    picture.note(
        512, "A batch of any size in the memory of one micro-batch: its activations are computed twice "
        "and never kept for another one.",
    )
    return picture


def _strip(picture: Picture, y: float, colour: str, words: str) -> None:
    picture.box(MARGIN, y, _STRIP, 30, colour, words)


def _down(picture: Picture, start: float, stop: float) -> None:
    picture.line([(WIDTH / 2, start), (WIDTH / 2, stop)])


def _loop(picture: Picture, y: float, colour: str, words: str, note: str) -> None:
    """Draw a loop over micro-batches, with an arrow from each to what is below."""
    picture.rect(MARGIN, y, _STRIP, _LOOP, colour, style="open")
    picture.text(MARGIN + 16, y + 22, words, bold=True)
    picture.text(WIDTH - MARGIN - 16, y + 22, note, size=SMALL, anchor="end", ink="dim")
    edges = [_BOX / 2 if label != "…" else 10 for label in _BOXES]
    for k, (label, x) in enumerate(zip(_BOXES, _MIDDLES, strict=True)):
        if label == "…":
            picture.text(x, y + 55, label, anchor="middle", bold=True)
        else:
            left = x - _BOX / 2
            picture.box(left, y + 34, _BOX, 32, colour, label, sizes=(SMALL, SMALL), bold=False)
            picture.line([(x, y + 66), (x, y + _LOOP + 24)], colour)
        if k + 1 < len(_BOXES):
            following = _MIDDLES[k + 1] - edges[k + 1]
            picture.line([(x + edges[k], y + 50), (following, y + 50)], colour)
