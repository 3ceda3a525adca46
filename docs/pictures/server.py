"""Path of a request through the server: the threads of ``jina_jax/serving``."""

from __future__ import annotations

from svg import MARGIN, SMALL, WIDTH, Picture

_SPAN = WIDTH - 2 * MARGIN
_REQUESTS = (("a query", "red"), ("three sentences", "teal"), ("512 documents", "orange"))
_TEXT = 42  # width of a text that waits, or is in a step
_SMALL, _LARGE = ("red", "teal", "teal", "teal"), ("orange",) * 8


def draw() -> Picture:
    """Draw three requests, the threads that they pass, what waits between these, and the reply."""
    picture = Picture(
        "Path of a request through the server",
        "The event loop checks key and readiness, reads the body within its bounds, and makes a "
        "job of it. Threads tokenise texts of many jobs together. These wait in two lanes, small "
        "requests and large ones. The thread that computes packs what waits into a step of the "
        "device. The event loop writes the vectors of a job that is complete.",
        height=726,
    )
    for k, (words, colour) in enumerate(_REQUESTS):
        x = MARGIN + k * (_SPAN + 14) / 3
        width = (_SPAN - 28) / 3
        picture.box(x, 54, width, 28, colour, words, sizes=(SMALL, SMALL), bold=False)
        picture.line([(x + width / 2, 82), (x + width / 2, 104)], colour)
    _zone(picture, 104, 98, "blue", "event loop")
    _chain(
        picture,
        136,
        "blue",
        (
            ("http.py", "key, readiness"),
            ("reading.py", "body in bounds"),
            ("service.py", "a job, or 429"),
        ),
    )
    _down(picture, 202)
    _zone(picture, 224, 98, "green", "two threads that tokenise, one for long texts")
    _chain(
        picture,
        256,
        "green",
        (("lanes.py", "small requests first"), ("scheduler.py", "texts of many at once")),
    )
    _down(picture, 322)
    _computing(picture, 344)
    _down(picture, 546)
    _zone(picture, 568, 98, "blue", "event loop")
    _chain(
        picture, 600, "blue", (("jobs.py", "all vectors there"), ("vectors.py", "JSON in pieces"))
    )
    picture.note(
        692,
        "Texts of clients that left, and of requests whose time is over, are dropped before they "
        "are computed.",
    )
    return picture


def _computing(picture: Picture, y: float) -> None:
    """Draw what waits in the lanes, and the steps that are made of it."""
    _zone(picture, y, 202, "purple", "thread that computes")
    _texts(picture, y + 32, "small", _SMALL)
    _texts(picture, y + 58, "large", _LARGE)
    picture.text(MARGIN + 12, y + 105, "device.py packs what waits into steps:", size=SMALL)
    _texts(picture, y + 116, "step", _SMALL)
    _texts(picture, y + 142, "next step", _LARGE)
    rule = "While both wait, every fourth step is a large one."
    picture.text(MARGIN + 12, y + 188, rule, size=SMALL, ink="dim")


def _zone(picture: Picture, y: float, height: float, colour: str, words: str) -> None:
    picture.rect(MARGIN, y, _SPAN, height, colour, style="open", radius=8)
    picture.text(MARGIN + 12, y + 21, words, bold=True)


def _chain(picture: Picture, y: float, colour: str, boxes: tuple[tuple[str, str], ...]) -> None:
    """Draw files with what they do, one behind another."""
    gap = 20
    width = (_SPAN - 24 - gap * (len(boxes) - 1)) / len(boxes)
    for k, (name, words) in enumerate(boxes):
        x = MARGIN + 12 + k * (width + gap)
        picture.box(x, y, width, 54, colour, name, words)
        if k:
            picture.line([(x - gap, y + 27), (x, y + 27)], colour)


def _texts(picture: Picture, y: float, name: str, colours: tuple[str, ...]) -> None:
    """Draw texts in a lane or a step."""
    left = MARGIN + 96
    picture.text(MARGIN + 12, y + 15, name, size=SMALL)
    picture.rect(left, y, len(_LARGE) * (_TEXT + 3) + 3, 22, "grey", radius=4, style="soft")
    for k, colour in enumerate(colours):
        picture.rect(left + 3 + k * (_TEXT + 3), y + 3, _TEXT, 16, colour, radius=3, style="solid")


def _down(picture: Picture, y: float) -> None:
    picture.line([(WIDTH / 2, y), (WIDTH / 2, y + 22)])
