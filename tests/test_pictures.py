"""The pictures of the documentation are those that their scripts draw, and can be read."""

import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
NAMES = sorted(path.name for path in PICTURES.glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def load(name):
    """Import a script of the folder, whose names would be too short for all tests together."""
    before = dict(sys.modules)
    sys.path.insert(0, str(PICTURES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PICTURES))
        for own in PICTURES.glob("*.py"):
            if own.stem not in before:
                sys.modules.pop(own.stem, None)


DRAW, HELPERS, SPEED, WINGS = map(load, ("draw", "svg", "speed", "wings"))


def test_every_picture_has_a_script():
    assert sorted(DRAW.PICTURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_as_drawn_from_the_code_of_today(name):
    drawn = DRAW.PICTURES[name]().svg().encode()
    assert drawn == (PICTURES / name).read_bytes(), "run python docs/pictures/draw.py"
    assert len(drawn) < 30_000


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_heard_and_has_text(name):
    root = ElementTree.parse(PICTURES / name).getroot()
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    texts = [own.text for own in root.iter(f"{SVG}text")]
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert texts[0] == title.text
    assert len(description.text) > 100
    assert "prefers-color-scheme:dark" in root.find(f"{SVG}style").text


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda picture: picture.text(20, 60, "m" * 40), "mmm"),
        (lambda picture: picture.text(20, 60, "too wide", room=50), "too wide"),
        (lambda picture: picture.text(200, 60, "m" * 20, anchor="end"), "mmm"),
        (lambda picture: picture.text(20, 95, "below"), "below"),
        (lambda picture: picture.box(20, 50, 60, 30, "blue", "too wide"), "too wide"),
        (lambda picture: picture.box(20, 50, 90, 30, "blue", "two", "lines"), "two"),
        (lambda picture: picture.note(60, "so many words " * 20), "so many"),
    ],
)
def test_text_without_room_is_refused(draw, words):
    with pytest.raises(HELPERS.OverflowingTextError, match=words):
        draw(HELPERS.Picture("A title", "What it shows.", height=100))


def test_text_is_measured_in_a_wide_font():
    # DejaVu Sans, in thousandths of the height: l 278, i 278, m 974, W 989.
    assert HELPERS.width_of("lim", 100) >= 27.8 + 27.8 + 97.4
    assert HELPERS.width_of("W", 10) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("mode", [0, 1])
def test_text_has_the_contrast_of_wcag(mode):
    inks = {name: modes[mode] for name, modes in HELPERS._INKS.items()}
    panel = HELPERS._PANEL[mode][0]
    assert all(contrast(ink, panel) >= 4.5 for ink in inks.values())
    for fill, edge in (modes[mode] for modes in HELPERS.COLOURS.values()):
        assert contrast(inks["ink"], fill) >= 4.5
        assert contrast(edge, panel) >= 3


def contrast(one, other):
    """Compute WCAG 2's contrast ratio of two colours."""
    least, most = sorted(luminance(colour) for colour in (one, other))
    return (most + 0.05) / (least + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_arrows_that_follow_from_others_are_left_out():
    arrows = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}, "e": {"a", "d"}}
    expected = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": {"d"}}
    assert WINGS.shortest(arrows) == expected


PAGE = """# Results

## CPU against other routes

| Dense, GF/s | 8 x 128 | x float32 | 2 x 512 | 32 x 32 |
|---|---:|---:|---:|---:|
| jina_jax-bfloat16 | 1 | 0.5 | 2 | 3 |
| transformers-bfloat16 | 4 | 0.5 | 5 | 6 |
| openvino-bfloat16 | 7 | 0.5 | 8 | 9 |

| Texts | mixed lengths, texts/s | x float32 | sentences, texts/s | one sentence, 1/s |
|---|---:|---:|---:|---:|
| jina_jax-bfloat16 | 10 |  | 11 | 12 |
| transformers-bfloat16 | 13 |  | 14 | 15 |
| openvino-bfloat16 | 16 |  | 17 | 18 |

## Another section

| x | 8 x 128 |
|---|---:|
| jina_jax-bfloat16 | 100 |
"""


def test_figures_are_those_of_the_section():
    figures = SPEED.read_figures(PAGE)
    assert {name: list(own.values()) for name, own in figures.items()} == {
        "8 x 128": [1, 4, 7],
        "2 x 512": [2, 5, 8],
        "32 x 32": [3, 6, 9],
        "mixed lengths, texts/s": [10, 13, 16],
        "sentences, texts/s": [11, 14, 17],
        "one sentence, 1/s": [12, 15, 18],
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CPU against", "CPU or", "expected the section 'CPU against other routes'"),
        ("32 x 32", "16 x 16", "'32 x 32': expected .*'jina_jax-bfloat16'"),
        ("transformers-bfloat16 | 4", "other | 4", "'8 x 128': expected .'transformers-bfloat16'."),
    ],
)
def test_figures_that_are_not_there_are_named(old, new, message):
    with pytest.raises(ValueError, match=message):
        SPEED.read_figures(PAGE.replace(old, new))
