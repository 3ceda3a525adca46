"""Gradient caching: the two loops over micro-batches in ``jina_jax/training/step.py``."""

from __future__ import annotations

from svg import MARGIN, SMALL, WIDTH, Picture

_BOXES = ("micro-batch 1", "micro-batch 2", "…", "micro-batch C")
_LEFT, _STEP, _BOX = MARGIN + 8, 118, 110
_STRIP = WIDTH - 2 * MARGIN
_FIRST, _SECOND = 56, 290  # tops of the loops
_LOOP = 96  # height of a loop


def draw() -> Picture:
    """Draw the loop that encodes, the loss, the loop of the gradient, and the update."""
    picture = Picture(
        "Gradient caching",
        "A first loop encodes the micro-batches of a batch one after another and keeps their embeddings "
        "only. The loss sees all embeddings and gives the gradient of each. A second loop computes each "
        "micro-batch again, multiplies back, and adds up the gradient of the trained parameters.",
        height=560,
    )
    _loop(picture, _FIRST, "green", "Loop 1: encode", "activations are dropped")
    _strip(picture, 176, "green", "embeddings of the whole batch: float32 (n, D)")
    picture.line([(WIDTH / 2, 206), (WIDTH / 2, 222)])
    picture.box(160, 222, 200, 28, "orange", "loss of all texts")
    picture.line([(WIDTH / 2, 250), (WIDTH / 2, 266)])
    _strip(picture, 266, "orange", "gradient of every embedding")
    _loop(picture, 320, "purple", "Loop 2: encode again, and back", "activations of one at a time")
    _strip(picture, 440, "purple", "sum: gradient of the trained parameters")
    picture.line([(WIDTH / 2, 470), (WIDTH / 2, 486)])
    picture.box(160, 486, 200, 28, "blue", "update by optax")
    picture.note(540, "A batch of any size, in the memory of one micro-batch's activations.")
    return picture


def _strip(picture: Picture, y: float, colour: str, words: str) -> None:
    picture.box(MARGIN, y, _STRIP, 30, colour, words)


def _loop(picture: Picture, y: float, colour: str, words: str, note: str) -> None:
    """Draw a loop over micro-batches, with an arrow from each to what is below."""
    picture.rect(MARGIN, y, _STRIP, _LOOP, colour, style="open")
    picture.text(MARGIN + 10, y + 21, words, bold=True)
    picture.text(WIDTH - MARGIN - 10, y + 21, note, size=SMALL, anchor="end", ink="dim")
    for k, label in enumerate(_BOXES):
        x = _LEFT + k * _STEP
        if label == "…":
            picture.text(x + _BOX / 2, y + 58, label, anchor="middle", bold=True)
            continue
        picture.box(x, y + 36, _BOX, 34, colour, label, sizes=(SMALL, SMALL), bold=False)
        picture.line([(x + _BOX / 2, y + 70), (x + _BOX / 2, y + _LOOP + 24)], colour)
        following = x + _STEP
        if k < len(_BOXES) - 1:
            picture.line([(x + _BOX, y + 53), (following, y + 53)], arrow=False, dashed=True)
