"""The notebooks run, and what they print is what the files keep."""

import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"
MOST_BYTES = 300_000
pytestmark = pytest.mark.notebooks

_NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def run():
    pytest.importorskip("nbclient", reason="needs the extra notebooks")
    return runpy.run_path(str(NOTEBOOKS / "run.py"))


def differences(kept: str, found: str) -> list[str]:
    """Compare two texts; a decimal may differ by one in its last digit, where rounding decides."""
    if _NUMBER.sub("#", kept) != _NUMBER.sub("#", found):
        return [f"{kept!r} and {found!r}"]
    pairs = zip(_NUMBER.findall(kept), _NUMBER.findall(found), strict=True)
    return [f"{a} and {b}" for a, b in pairs if not _is_near(a, b)]


def _is_near(kept: str, found: str) -> bool:
    digits = [number.partition(".")[2] for number in (kept, found)]
    integers = [int(number.replace(".", "")) for number in (kept, found)]
    return len(digits[0]) == len(digits[1]) and abs(integers[0] - integers[1]) <= 1


def unexpected(errors: str) -> str:
    """Return stderr without the warning about this jaxlib, which must be there, and its line."""
    return re.sub(r"^.*JaxlibWarning.*\n(  .*\n)?", "", errors, flags=re.MULTILINE).strip()


@pytest.mark.parametrize(
    ("kept", "found", "same"),
    [
        ("a 0.52, 12 of 12", "a 0.53, 12 of 12", True),
        ("a 0.52", "a 0.54", False),
        ("a 0.52", "a 0.521", False),
        ("12 of 12", "11 of 12", False),
        ("0.5 cat", "0.5 dog", False),
    ],
)
def test_comparison(kept, found, same):
    assert (differences(kept, found) == []) is same


def test_only_the_warning_about_this_jaxlib_is_expected():
    warning = "a.py:3: JaxlibWarning: wrong sums\n  warn(text)\n"
    assert unexpected(warning) == ""
    assert unexpected(warning + "  KeyError: 3\n") == "KeyError: 3"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_those_of_a_fresh_run(run, path):
    kept = run["read"](path)
    assert path.stat().st_size < MOST_BYTES
    assert not any(run["texts"](kept, "stderr"))
    fresh = run["execute"](path)
    assert unexpected("".join(run["texts"](fresh, "stderr"))) == ""
    before, after = run["texts"](kept), run["texts"](fresh)
    found = [differences(*pair) for pair in zip(before, after, strict=True)]
    assert not any(found), f"run python docs/notebooks/run.py {path.name}"
    pairs = zip(kept.cells, fresh.cells, strict=True)
    assert [_kinds(a) == _kinds(b) for a, b in pairs] == [True] * len(kept.cells)


def _kinds(cell) -> list[list[str]]:
    """Name what a cell has beside text: each output's media types."""
    shown = [output for output in cell.get("outputs", []) if "data" in output]
    return [sorted(output.data) for output in shown]
