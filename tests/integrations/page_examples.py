"""The examples of a page in docs/integrations."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from jina_jax.cli.main import main

PAGES = Path(__file__).parents[2] / "docs" / "integrations"


def run_section(page: str, title: str, names: dict[str, Any]) -> str:
    """Run the blocks of one section, in order, in the directory where we are.

    Args:
      page: its file's name.
      title: of a section of the second level.
      names: those that blocks use and make.

    Returns:
      What the blocks in Python print.
    """
    text = (PAGES / page).read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    )
    assert section, f"{page} has no section {title!r}"
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert blocks, f"{page} has no example under {title!r}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for language, code in blocks:
            if language == "python":
                exec(compile(code, f"{page}: {title}", "exec"), names)
            else:
                _run_command(code)
    return printed.getvalue()


def output_of(page: str, title: str) -> str:
    """Return the block of output in a section."""
    text = (PAGES / page).read_text(encoding="utf-8")
    pattern = rf"^## {re.escape(title)}\n(?:(?!^## ).)*?^```text\n(.*?)^```"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no output under {title!r}"
    return found[1]


def _run_command(code: str) -> None:
    words = code.replace("\\\n", " ").split()
    if words[0] == "pip":
        return
    assert words[0] == "jina-jax"
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.output
