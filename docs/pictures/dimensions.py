"""Score against Matryoshka dimension: ``recipes/tiny/logs/scores.json``."""

from __future__ import annotations

import json
import math
from pathlib import Path

from svg import MARGIN, SMALL, WIDTH, Picture

RECIPE = Path(__file__).parents[2] / "recipes/tiny"
CONFIG = Path(__file__).parents[2] / "jina_jax/tiny/config.json"
_LINES = (  # of scores.json; what it is called here, its adapter, measure and colour
    ("banking classification", "Banking77", "classification", "accuracy", "orange"),
    ("sts text-matching", "STS-b", "text-matching", "Spearman", "blue"),
    ("tatoeba none", "Tatoeba", "no adapter", "accuracy", "green"),
    ("search auto", "help pages", "retrieval pair", "nDCG@10", "purple"),
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 396, 76, 316
_LEAST, _MOST = 0.2, 0.9
_TABLE, _ROW = 384, 22  # base line of the table's first row; height of a row
_NUMBERS, _NUMBER = WIDTH - MARGIN - 3 * 56, 56


def draw() -> Picture:
    """Draw a line per kind of task, and the table of its scores."""
    scores = json.loads((RECIPE / "logs/scores.json").read_text(encoding="utf-8"))
    dims = json.loads(CONFIG.read_text(encoding="utf-8"))["matryoshka_dimensions"]
    series = {name: _series(scores[name], dims) for name, *_ in _LINES}
    picture = Picture(
        "Score by dimension",
        "The model tiny on development data, by the first values of a vector that are kept. "
        + " ".join(
            f"{label}, {adapter}, {measure}: "
            + ", ".join(f"{value:.3f} at {dim}" for dim, value in series[name].items())
            + "."
            for name, label, adapter, measure, _ in _LINES
        ),
        height=512,
    )
    _axes(picture, dims)
    for k, (name, label, adapter, _, colour) in enumerate(_LINES):
        points = [(_x(dim, dims), _y(value)) for dim, value in series[name].items()]
        picture.line(points, colour, arrow=False, radius=0)
        for point in points:
            _dot(picture, *point, colour)
        picture.text(points[-1][0] + 12, points[-1][1] + 5, label)
        y = _TABLE + k * _ROW
        _dot(picture, MARGIN + 4, y - 5, colour)
        picture.text(MARGIN + 16, y, f"{label}, {adapter}", size=SMALL)
        for column, value in enumerate(series[name].values()):
            x = _NUMBERS + column * _NUMBER
            picture.text(x, y, f"{value:.3f}", size=SMALL, anchor="end")
    picture.note(
        _TABLE + len(_LINES) * _ROW + 8,
        "The model tiny on development data. Banking77 and Tatoeba: accuracy; STS-b: Spearman's "
        "correlation; help pages: nDCG@10.",
    )
    return picture


def _series(scores: dict[str, float], dims: list[int]) -> dict[int, float]:
    """Return the score of each dimension; "full" is the whole vector."""
    return {dim: scores["full" if dim == dims[-1] else str(dim)] for dim in dims}


def _axes(picture: Picture, dims: list[int]) -> None:
    for tenth in range(round(_LEAST * 10), round(_MOST * 10) + 1):
        y = _y(tenth / 10)
        picture.rect(_LEFT, y - 0.5, _RIGHT - _LEFT, 1, "grey", radius=0, style="soft")
        picture.text(_LEFT - 10, y + 5, f"{tenth / 10:.1f}", size=SMALL, anchor="end", ink="dim")
    for column, dim in enumerate(dims):
        x = _x(dim, dims)
        picture.text(x, _BOTTOM + 22, str(dim), size=SMALL, anchor="middle", ink="dim")
        x = _NUMBERS + column * _NUMBER
        picture.text(x, _TABLE - _ROW, str(dim), size=SMALL, anchor="end", ink="dim")
    picture.text(_RIGHT + 24, _BOTTOM + 22, "dimensions", size=SMALL, ink="dim")
    picture.text(MARGIN, _TOP - 16, "score", size=SMALL, ink="dim")


def _dot(picture: Picture, x: float, y: float, colour: str) -> None:
    picture.rect(x - 4.5, y - 4.5, 9, 9, colour, radius=4.5, style="solid")


def _x(dim: int, dims: list[int]) -> float:
    """Return the place of a dimension on a logarithmic axis."""
    share = math.log(dim / dims[0]) / math.log(dims[-1] / dims[0])
    return _LEFT + 16 + share * (_RIGHT - _LEFT - 32)


def _y(score: float) -> float:
    return _BOTTOM - (score - _LEAST) / (_MOST - _LEAST) * (_BOTTOM - _TOP)
