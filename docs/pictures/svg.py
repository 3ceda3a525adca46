"""Drawing helpers: boxes, texts and arrows of one style, readable in light and in dark mode.

A picture is an SVG of a title, a description and shapes on a panel of its own, so that it can be
read on a page of the other mode, too. Its text is in the reader's font. Fonts differ in width, so
widths are measured as in DejaVu Sans, a wide one; a text without room is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 520  # units; a page of 390 px shows 15 units as 10 px
MARGIN = 20
SIZE, SMALL, TITLE = 15, 13, 18  # heights of text
_SHOWN = 1.3  # pixels per unit where there is room
_PADDING = 4  # between a box and its text
_BOLD = 1.14  # over the plain font
_LINE = 1.3  # heights of text from line to line

Point = tuple[float, float]

# Colour → (fill, edge) in light mode, (fill, edge) in dark mode.
COLOURS = {
    "blue": (("#dcebff", "#2f6fd0"), ("#14305c", "#6aa6f8")),
    "orange": (("#ffe6cc", "#b95c12"), ("#4b2d12", "#f0994f")),
    "green": (("#d6f2de", "#2a8748"), ("#143d25", "#50c878")),
    "purple": (("#eae0ff", "#7a4ccb"), ("#33255c", "#b095f4")),
    "red": (("#ffdee2", "#c63a54"), ("#521d2a", "#f47f92")),
    "teal": (("#cff0f0", "#17807f"), ("#103d40", "#48c2c2")),
    "grey": (("#e8ecf0", "#838c96"), ("#2a313a", "#7d8690")),
}
_INKS = {"ink": ("#1f2328", "#f0f6fc"), "dim": ("#59636e", "#a4acb6")}
_PANEL = (("#ffffff", "#d1d9e0"), ("#10151c", "#3d444d"))
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'

# Hundredths of the height of text → characters of that width in DejaVu Sans, rounded up.
_WIDTHS = {
    30: "'IJijl",
    35: " ,./:;\\|·",
    40: "()-[]ft",
    45: "!r",
    50: '"*_`–°',
    55: "?csz∂",
    60: "FLkvxy",
    65: "$0123456789EPSTYabdeghnopqu{}",
    70: "ABCKRVXZ",
    75: "NU",
    80: "&DGHOQ",
    85: "#+<=>^w~×→←≥",
    90: "M",
    100: "%@Wm…½¼",
}
_WIDTH_OF = {char: width / 100 for width, chars in _WIDTHS.items() for char in chars}


class OverflowingTextError(ValueError):
    """A text that is wider than its room."""


def width_of(words: str, size: float = SIZE, *, bold: bool = False) -> float:
    """Return the width of a text in units, in a wide font."""
    return sum(_WIDTH_OF[char] for char in words) * size * (_BOLD if bold else 1)


class Picture:
    """A picture, drawn from top to bottom.

    Args:
      title: for those who hear it, and in the picture.
      description: what it shows, for those who hear it.
      height: in units.
    """

    def __init__(self, title: str, description: str, height: float):
        self.title, self.description, self.height = title, description, height
        self._shapes: list[str] = []
        self._colours: set[str] = set()
        self.text(MARGIN, 34, title, size=TITLE, bold=True)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        *,
        radius: float = 6,
        style: str = "box",
    ) -> None:
        """Draw a rectangle: a "box" with an edge, "soft" without, "solid", or "open" and dashed."""
        self._colours.add(colour)
        self._shapes.append(
            f'<rect class="{colour} {style}" x="{_number(x)}" y="{_number(y)}" '
            f'width="{_number(width)}" height="{_number(height)}" rx="{_number(radius)}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = SIZE,
        anchor: str = "start",
        room: float | None = None,
        ink: str = "ink",
        bold: bool = False,
    ) -> None:
        """Write a line of text.

        Args:
          x, y: where it begins, is centred ("middle") or ends ("end"); y is its base line.
          words: the text.
          size: its height.
          anchor: "start", "middle" or "end".
          room: its greatest width; None for up to the margins.
          ink: "ink" or "dim".
          bold: in bold type.

        Raises:
          OverflowingTextError: if it is wider, or above or below the picture.
        """
        left, right = x - MARGIN / 2, WIDTH - MARGIN / 2 - x
        free = {"start": right, "middle": 2 * min(left, right), "end": left}[anchor]
        room = free if room is None else min(room, free)
        width = width_of(words, size, bold=bold)
        if width > room:
            raise OverflowingTextError(
                f"{words!r}: expected at most {room:.0f} units, got {width:.0f}"
            )
        if not size <= y <= self.height - MARGIN / 2:
            raise OverflowingTextError(
                f"{words!r}: expected y within the {self.height} units, got {y:.0f}"
            )
        kind = f"{ink} bold" if bold else ink
        self._shapes.append(
            f'<text class="{kind}" x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        *lines: str,
        sizes: tuple[float, float] = (SIZE, SMALL),
        style: str = "box",
        bold: bool = True,
    ) -> None:
        """Draw a box with centred lines; the first may be bold, and has the first of two sizes.

        Raises:
          OverflowingTextError: for a line that is wider than the box, or lines that are higher.
        """
        self.rect(x, y, width, height, colour, style=style)
        heights = [sizes[0] if k == 0 else sizes[1] for k in range(len(lines))]
        total = sum(heights) * _LINE
        if total > height:
            raise OverflowingTextError(
                f"{lines!r}: expected at most {height:.0f} units, got {total:.0f}"
            )
        base = y + (height - total) / 2
        for k, (words, size) in enumerate(zip(lines, heights, strict=True)):
            base += size * _LINE
            self.text(
                x + width / 2,
                base - size * 0.38,
                words,
                size=size,
                anchor="middle",
                room=width - 2 * _PADDING,
                bold=bold and k == 0,
            )

    def line(
        self,
        points: Sequence[Point],
        colour: str = "grey",
        *,
        arrow: bool = True,
        dashed: bool = False,
        radius: float = 8,
    ) -> None:
        """Draw a line through points, with round corners and an arrow's head at its end."""
        self._colours.add(colour)
        head, points = points[-1], list(points)
        if arrow:  # the line ends within the head
            points[-1] = _towards(points[-1], points[-2], 5)
        path = f"M{_at(points[0])}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            near = min(radius, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
            start, stop = _towards(corner, before, near), _towards(corner, after, near)
            path += f"L{_at(start)}Q{_at(corner)} {_at(stop)}"
        path += f"L{_at(points[-1])}"
        kind = f"{colour} line dashed" if dashed else f"{colour} line"
        self._shapes.append(f'<path class="{kind}" d="{path}"/>')
        if arrow:
            self._head(head, points[-1], colour)

    def _head(self, tip: Point, tail: Point, colour: str) -> None:
        length = math.dist(tip, tail)
        dx, dy = (tip[0] - tail[0]) / length, (tip[1] - tail[1]) / length
        back = (tip[0] - 8 * dx, tip[1] - 8 * dy)
        corners = [tip, *((back[0] - s * 4 * dy, back[1] + s * 4 * dx) for s in (1, -1))]
        path = "L".join(_at(corner) for corner in corners)
        self._shapes.append(f'<path class="{colour} solid" d="M{path}Z"/>')

    def note(self, y: float, *paragraphs: str) -> None:
        """Write small paragraphs between the margins; ``y`` is the first base line."""
        lines = [line for words in paragraphs for line in _wrapped(words, WIDTH - 2 * MARGIN)]
        for k, words in enumerate(lines):
            self.text(MARGIN, y + k * SMALL * _LINE, words, size=SMALL, ink="dim")

    def svg(self) -> str:
        """Return the picture as SVG."""
        width, height = round(WIDTH * _SHOWN), round(self.height * _SHOWN)
        panel = f'width="{WIDTH - 1}" height="{_number(self.height - 1)}" rx="10"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {_number(self.height)}" role="img" '
            'aria-labelledby="title desc">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="desc">{escape(self.description)}</desc>',
            "<style>",
            f"text{{font-family:{_FONT}}}",
            ".bold{font-weight:600}.line{fill:none;stroke-width:1.6}.dashed{stroke-dasharray:4 4}",
            ".box{stroke-width:1.2}.open{stroke-width:1.2;stroke-dasharray:4 4}",
            *self._rules(0),
            "@media(prefers-color-scheme:dark){",
            *self._rules(1),
            "}",
            "</style>",
            f'<rect class="panel" x="0.5" y="0.5" {panel}/>',
            *self._shapes,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _rules(self, mode: int) -> list[str]:
        """Return the rules of the colours that are used; mode 0 is light, 1 dark."""
        fill, edge = _PANEL[mode]
        rules = [f".panel{{fill:{fill};stroke:{edge}}}"]
        rules += [f".{name}{{fill:{own[mode]}}}" for name, own in _INKS.items()]
        for name in sorted(self._colours):
            fill, edge = COLOURS[name][mode]
            rules.append(
                f".{name}.box{{fill:{fill};stroke:{edge}}}.{name}.soft{{fill:{fill}}}"
                f".{name}.solid{{fill:{edge}}}.{name}.line{{stroke:{edge}}}"
                f".{name}.open{{fill:none;stroke:{edge}}}"
            )
        return rules


def _wrapped(words: str, room: float) -> list[str]:
    """Divide a small text into lines."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, SMALL) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _towards(start: Point, stop: Point, distance: float) -> Point:
    """Return the point so far from one point on the way to another."""
    share = distance / (math.dist(start, stop) or 1)
    return start[0] + (stop[0] - start[0]) * share, start[1] + (stop[1] - start[1]) * share


def _at(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"


def _number(value: float) -> str:
    """Write a number in tenths."""
    return f"{round(value, 1):g}"
