"""Gradient caching: the two loops over micro-batches in ``jina_jax/training/step.py``."""

from __future__ import annotations

from svg import MARGIN, SMALL, WIDTH, Picture

_BOXES = ("1", "2", "…", "C")
_MIDDLES = (206, 290, 374, 458)
_BOX = 48
_STRIP = WIDTH - 2 * MARGIN
_LOOP = 78  # height of a loop


def draw() -> Picture:
    """Draw the loop that encodes, the loss, the loop of the gradient, and the update."""
    picture = Picture(
        "Gradient caching",
        "A first loop encodes the micro-batches of a batch one after another and keeps their "
        "embeddings only. The loss sees all embeddings and gives the gradient of each. A second "
        "loop encodes each micro-batch again, goes backward from the gradient of its embeddings, "
        "and adds up the gradient of the trained parameters.",
        height=544,
    )
    _loop(picture, 56, "green", "Loop 1", "encode, and keep", "embeddings only")
    _strip(picture, 158, "green", "embeddings of all texts")
    _down(picture, 188, 206)
    picture.box(160, 206, 200, 30, "orange", "loss of the batch")
    _down(picture, 236, 254)
    _strip(picture, 254, "orange", "gradient of each embedding")
    for label, x in zip(_BOXES, _MIDDLES, strict=True):
        if label != "…":
            picture.line([(x, 284), (x, 328)], "orange")
    _loop(picture, 308, "purple", "Loop 2", "encode again,", "then backward")
    _strip(picture, 410, "purple", "sum: gradient of the trained parameters")
    _down(picture, 440, 458)
    picture.box(160, 458, 200, 30, "blue", "update by optax")
    picture.note(
        514,
        "1 … C are the micro-batches: a batch of any size in the memory of one of them, whose "
        "activations are computed twice.",
    )
    return picture


def _strip(picture: Picture, y: float, colour: str, words: str) -> None:
    picture.box(MARGIN, y, _STRIP, 30, colour, words)


def _down(picture: Picture, start: float, stop: float) -> None:
    picture.line([(WIDTH / 2, start), (WIDTH / 2, stop)])


def _loop(picture: Picture, y: float, colour: str, name: str, *lines: str) -> None:
    """Draw a loop over micro-batches, with an arrow from each to what is below."""
    picture.rect(MARGIN, y, _STRIP, _LOOP, colour, style="open")
    picture.text(MARGIN + 14, y + 27, name, bold=True)
    for k, words in enumerate(lines):
        picture.text(MARGIN + 14, y + 46 + 17 * k, words, size=SMALL, room=140)
    for k, (label, x) in enumerate(zip(_BOXES, _MIDDLES, strict=True)):
        if label == "…":
            picture.text(x, y + 41, label, anchor="middle", bold=True)
        else:
            picture.box(x - _BOX / 2, y + 20, _BOX, 38, colour, label)
            picture.line([(x, y + 58), (x, y + _LOOP + 24)], colour)
        if k:
            start = _MIDDLES[k - 1] + _BOX / 2
            picture.line([(start, y + 39), (x - _BOX / 2, y + 39)], colour)
