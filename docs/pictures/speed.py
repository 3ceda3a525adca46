"""Speed as bars against peers: the tables of ``benchmarks/cpu.py`` in ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import re
from pathlib import Path

from svg import MARGIN, SMALL, WIDTH, Picture

RESULTS = Path(__file__).parents[2] / "benchmarks/RESULTS.md"
SECTION = "CPU against other routes"
_ROUTES = {  # as in the tables: its name here, and colour
    "jina_jax-bfloat16": ("jina_jax", "blue"),
    "transformers-bfloat16": ("transformers", "grey"),
    "openvino-bfloat16": ("OpenVINO", "grey"),
}
_PANELS = (  # column of the tables: its words here
    (("mixed lengths, texts/s", "mixed lengths"), ("8 x 128", "8 × 128 tokens")),
    (("sentences, texts/s", "sentences"), ("2 x 512", "2 × 512 tokens")),
    (("one sentence, 1/s", "one sentence"), ("32 x 32", "32 × 32 tokens")),
)
_KINDS = ("Texts to vectors, texts/s", "Network alone, GFLOP/s")
_TOP, _PANEL, _BAR = 104, 100, 20
_GAP, _LABEL = 20, 94
_SPAN = (WIDTH - 2 * MARGIN - _GAP) / 2  # of a column of panels


def draw() -> Picture:
    """Draw a panel per measurement, those in which peers are faster included."""
    page = RESULTS.read_text(encoding="utf-8")
    figures, date = read_figures(page), re.findall(r"\d{4}-\d\d-\d\d", page)[0]
    picture = Picture("Speed on two CPU cores", _describe(figures), height=462)
    for side, kind in enumerate(_KINDS):
        picture.text(_left(side), 70, kind, room=_SPAN, bold=True, size=SMALL)
    for row, panels in enumerate(_PANELS):
        for side, (column, words) in enumerate(panels):
            _panel(picture, _left(side), _TOP + row * _PANEL, words, figures[column])
    picture.note(
        _TOP + len(_PANELS) * _PANEL + 2,
        f"Longer is faster. bfloat16, 6 of 24 layers, 2 cores of an AMD EPYC, {date}. Texts were "
        "measured while the machine was busy: rough. Commands and other routes: "
        "benchmarks/RESULTS.md.",
    )
    return picture


def read_figures(page: str) -> dict[str, dict[str, float]]:
    """Return the values of the routes that are drawn, by column of the section's tables.

    Raises:
      ValueError: if the section, a column or a route is not there.
    """
    _, found, rest = page.partition(f"## {SECTION}\n")
    if not found:
        raise ValueError(f"RESULTS.md: expected the section {SECTION!r}, got none")
    figures: dict[str, dict[str, float]] = {}
    header: list[str] = []
    for line in rest.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif cells[0] in _ROUTES:
            for name, cell in zip(header[1:], cells[1:], strict=True):
                if not name.startswith("x "):  # ratios of a table
                    figures.setdefault(name, {})[cells[0]] = float(cell)
    for panel in _PANELS:
        for column, _ in panel:
            if missing := _ROUTES.keys() - figures.get(column, {}).keys():
                raise ValueError(f"RESULTS.md: {column!r}: expected {sorted(missing)}, got none")
    return figures


def _describe(figures: dict[str, dict[str, float]]) -> str:
    parts = []
    for side, kind in enumerate(_KINDS):
        for panels in _PANELS:
            column, words = panels[side]
            values = (f"{_ROUTES[route][0]} {figures[column][route]:g}" for route in _ROUTES)
            parts.append(f"{kind}, {words}: {', '.join(values)}.")
    return " ".join(parts)


def _left(side: int) -> float:
    return MARGIN + side * (_SPAN + _GAP)


def _panel(
    picture: Picture, left: float, top: float, words: str, figures: dict[str, float]
) -> None:
    """Draw the bars of one measurement; the longest one fills what the labels leave."""
    picture.text(left, top - 8, words, room=_SPAN)
    most = max(figures.values())
    room = _SPAN - _LABEL - 44  # for a value behind the bar
    for k, (route, (name, colour)) in enumerate(_ROUTES.items()):
        value, y = figures[route], top + k * _BAR
        width = room * value / most
        ink = "ink" if colour == "blue" else "dim"
        picture.text(left, y + 13, name, size=SMALL, room=_LABEL - 4, ink=ink)
        picture.rect(left + _LABEL, y + 1, width, _BAR - 5, colour, radius=2, style="solid")
        shown = f"{value:.3g}"
        picture.text(left + _LABEL + width + 6, y + 13, shown, size=SMALL, room=38)
