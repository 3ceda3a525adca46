"""The examples of a page in docs/integrations."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from shell_blocks import commands

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
                _run_commands(code)
    return printed.getvalue()


def output_of(page: str, title: str) -> str:
    """Return the block of output in a section."""
    text = (PAGES / page).read_text(encoding="utf-8")
    pattern = rf"^## {re.escape(title)}\n(?:(?!^## ).)*?^```text\n(.*?)^```"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no output under {title!r}"
    return found[1]


def sections_with_examples(page: str) -> list[str]:
    """Return the titles of the sections that have a block in Python or shell."""
    text = (PAGES / page).read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", text, re.MULTILINE)
    return [title for title, body in sections if re.search(r"^```(python|sh)$", body, re.MULTILINE)]


def _run_commands(code: str) -> None:
    for name, *arguments in commands(code):
        if name == "pip":
            continue
        assert name == "jina-jax", f"{name}: expected a command jina-jax or pip"
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
