"""The wings of the package with their arrows: those that ``tests/test_structure.py`` holds."""

from __future__ import annotations

import runpy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from svg import MARGIN, SMALL, WIDTH, Picture, width_of

TESTS = Path(__file__).parents[2] / "tests/test_structure.py"
_HEIGHT, _ROW, _TOP = 30, 56, 60
_SIDE = MARGIN + 48  # from an edge to the middle of the first column
_COLUMNS = 5
# Column → its wings, from the top; others have the first free column of their row.
_NAMES: dict[float, tuple[str, ...]] = {
    0: ("verify", "convert", "checkpoints", "files"),
    1: ("serving", "nn", "config"),
    1.5: ("embedder",),
    2: ("cli", "bulk", "runtime", "text", "cache"),
    3: ("ray", "checks"),
    4: ("training", "evaluation", "search", "data", "tasks"),
}
_COLUMN = {name: column for column, names in _NAMES.items() for name in names}
_HUES = {
    **dict.fromkeys(("config", "cache", "checks", "tasks", "files"), "grey"),
    **dict.fromkeys(("nn", "text", "checkpoints", "convert"), "blue"),
    **dict.fromkeys(("runtime", "embedder"), "green"),
    **dict.fromkeys(("data", "search", "evaluation", "training"), "purple"),
    "cli": "orange",
}
_OTHERS = "teal"

Arrows = Mapping[str, set[str]]


def draw() -> Picture:
    """Draw each wing above those that it imports."""
    arrows: Arrows = runpy.run_path(str(TESTS))["ARROWS"]
    places = _places(arrows)
    shown = shortest(arrows)
    imports = sum(map(len, arrows.values()))
    top = max(row for row, _ in places.values())
    height = _TOP + top * _ROW + _HEIGHT
    picture = Picture(
        "The wings of the package",
        f"{len(arrows)} wings and what they import: "
        + "; ".join(f"{name}: {', '.join(sorted(own))}" for name, own in arrows.items() if own),
        height=height + 66,
    )
    at = {
        name: (_x(column), height - _HEIGHT - row * _ROW) for name, (row, column) in places.items()
    }
    for name, own in shown.items():
        for other in sorted(own):
            _arrow(picture, at[name], at[other])
    for name, (x, y) in at.items():
        width = max(64, width_of(name, SMALL) + 12)
        picture.box(
            x - width / 2,
            y,
            width,
            _HEIGHT,
            _HUES.get(name, _OTHERS),
            name,
            sizes=(SMALL, SMALL),
            bold=False,
        )
    picture.note(
        height + 30,
        f"Each wing imports only wings below it. Of {imports} imports "
        f"{sum(map(len, shown.values()))} are drawn; the others run along these.",
    )
    return picture


def shortest(arrows: Arrows) -> dict[str, set[str]]:
    """Leave out the arrows to what is also reached by a longer way."""
    reached: dict[str, set[str]] = {}
    for name, own in arrows.items():  # in an order in which all that is imported is before
        reached[name] = own.union(*(reached[other] for other in own))
    return {
        name: own - set().union(*(reached[other] for other in own)) for name, own in arrows.items()
    }


def _places(arrows: Arrows) -> dict[str, tuple[int, float]]:
    """Return row and column of each wing: a row above the highest of those that it imports."""
    rows: dict[str, int] = {}
    for name, own in arrows.items():
        rows[name] = 1 + max((rows[other] for other in own), default=-1)
    taken: dict[int, set[float]] = defaultdict(set)
    found = {}
    for name, row in sorted(rows.items(), key=lambda item: item[0] not in _COLUMN):
        free = [column for column in range(_COLUMNS) if column not in taken[row]]
        column = _COLUMN.get(name, free[0])
        taken[row].add(column)
        found[name] = row, column
    return found


def _x(column: float) -> float:
    """Return the middle of a column."""
    return _SIDE + column * (WIDTH - 2 * _SIDE) / (_COLUMNS - 1)


def _arrow(picture: Picture, start: tuple[float, float], stop: tuple[float, float]) -> None:
    """Draw an arrow from the bottom of a box to the top of another."""
    (x, y), (to_x, to_y) = start, stop
    drift = max(-24, min(24, (to_x - x) / 5))
    picture.line([(x + drift, y + _HEIGHT), (to_x - drift, to_y)])
