"""A shard's life in bulk: ``jina_jax/bulk``, from the plan to the commit."""

from __future__ import annotations

from svg import MARGIN, SMALL, Picture

_SPAN = 388  # of all but the way back, which is on the right
_MIDDLE = MARGIN + _SPAN / 2
_WAY = 464  # middle of the way back
_CLAIMS = (("rank", "every n-th shard"), ("lease", "a renewed mark"), ("Ray", "a free actor"))
_THREADS = (
    ("read", "rows"),
    ("tokenise", "token ids"),
    ("device", "vectors"),
    ("write", "a table"),
)


def draw() -> Picture:
    """Draw the plan, the claim, the worker's threads, the commit, and the way back."""
    picture = Picture(
        "Stages of a shard in a bulk job",
        "A job is planned once. A shard is claimed by a worker's rank, by a lease, or by an actor "
        "of Ray. The worker reads its rows, tokenises their texts, encodes them, and writes a "
        "table beside its place. It puts the table there if there is none: that is the commit. A "
        "worker that is killed before leaves no table, and the shard is claimed again.",
        height=568,
    )
    picture.box(MARGIN, 54, _SPAN, 50, "grey", "plan", "_manifest.json: inputs, settings, shards")
    picture.line([(_MIDDLE, 104), (_MIDDLE, 148)])
    _row(picture, 148, 54, "blue", _CLAIMS)
    picture.text(MARGIN, 140, "claim by", size=SMALL, ink="dim")
    _down(picture, 202)
    picture.rect(MARGIN, 224, _SPAN, 104, "green", style="open", radius=8)
    picture.text(MARGIN + 12, 246, "worker: a thread for each", bold=True)
    _row(picture, 258, 54, "green", _THREADS, inset=12, arrows=True)
    _down(picture, 328)
    picture.box(
        *(MARGIN, 350, _SPAN, 54, "orange"),
        *("put if absent: the commit", "part-00012-1a2b3c4d.parquet, whole or not at all"),
    )
    _down(picture, 404)
    picture.box(
        MARGIN, 426, _SPAN, 50, "purple", "done", "every row once: in the table or in _errors/"
    )
    picture.line([(MARGIN + _SPAN, 276), (_WAY - 36, 276)], "red", dashed=True)
    picture.box(_WAY - 36, 254, 72, 44, "red", "killed")
    picture.line([(_WAY, 254), (_WAY, 175), (MARGIN + _SPAN, 175)], "red", dashed=True)
    picture.text(_WAY, 166, "again", size=SMALL, anchor="middle")
    picture.note(
        504,
        "A table is written beside its place, and put there whole. A worker that is killed before "
        "leaves none, and its shard is claimed again. Of two workers with one shard one puts it.",
    )
    return picture


def _row(
    picture: Picture,
    y: float,
    height: float,
    colour: str,
    boxes: tuple[tuple[str, str], ...],
    *,
    inset: float = 0,
    arrows: bool = False,
) -> None:
    """Draw boxes side by side, or one behind another with arrows."""
    gap = 12
    width = (_SPAN - 2 * inset - gap * (len(boxes) - 1)) / len(boxes)
    for k, lines in enumerate(boxes):
        x = MARGIN + inset + k * (width + gap)
        picture.box(x, y, width, height, colour, *lines, sizes=(14, SMALL))
        if arrows and k:
            picture.line([(x - gap, y + height / 2), (x, y + height / 2)], colour)


def _down(picture: Picture, y: float) -> None:
    picture.line([(_MIDDLE, y), (_MIDDLE, y + 22)])
