"""The code blocks of a Markdown page: run, with the output under them compared.

A block of Python or shell is run, and a block ``text`` under it is what it must print. In an
invisible comment before a block a page says otherwise, with the reason:

- ``<!-- checked only: needs a GPU -->``: the block is not run. Its Python must compile and import
  only names that exist; its commands must exist, with all of their options and arguments.
- ``<!-- with tiny: its weights are on the Hub -->``: run with tiny in place of the Hub's model.

In an output "…" stands for any text. Numbers with a point may differ by one in their last digit,
and by 0.005: tiny computes in bfloat16, whose sums depend on processor and compiler. All else is
compared, but for the width of spaces.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shell_blocks import Shell, check_commands, is_for_here
from sybil import Document, Example
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

HUB = "jinaai/jina-embeddings-v3"
_BLOCKS = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)$\n", re.MULTILINE))
_MARK = re.compile(r"<!-- (checked only|with tiny): (\S[^\n]*) -->\n\Z")
_COMMANDS = ("<!-- main-job -->\n", "<!-- test-command -->\n")  # run by tests of their own
_BFLOAT16 = 0.005  # of a cosine
_NUMBER = re.compile(r"-?\d+\.\d*")


class Page:
    """The blocks of a page, run one after the other in one namespace and one directory."""

    def __init__(self, path: Path, shell: Shell, *, checked_only: bool = False):
        self.shell, self.checked_only = shell, checked_only
        self.printed: str | None = None  # by the block before, if it was run
        self.was_left_out = False  # the block before: its output cannot be compared
        self.may_be_left = False  # a page need not show what commands print
        self.settings: dict[str, Any] = {}  # of the last complete block of TOML
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.document = Document.parse(str(path), self._regions)

    def run(self) -> None:
        for example in self.document.examples():
            example.evaluate()
        self._nothing_is_left()

    def _regions(self, document: Document) -> Any:
        for region in _BLOCKS(document):
            language = region.lexemes["language"]
            if not language:
                continue  # a drawing
            run: dict[str, Callable[[Example], None]] = {
                "python": self._python,
                "sh": self._shell,
                "text": self._text,
                "toml": self._toml,
                "json": lambda example: json.loads(example.parsed) and None,
                "ini": lambda example: None,
            }
            assert language in run, f"{document.path}: a block of {language!r}: expected {[*run]}"
            region.parsed = region.lexemes["source"]
            region.evaluator = run[language]
            yield region

    def _python(self, example: Example) -> None:
        self._nothing_is_left()
        source = self._source(example)
        lines = "\n" * (example.line + example.parsed.line_offset)
        code = compile(lines + source, example.path, "exec")
        if self.was_left_out:
            check_imports(source)
            return
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, self.namespace)
        self.printed, self.may_be_left = output.getvalue(), False

    def _shell(self, example: Example) -> None:
        self._nothing_is_left()
        source = self._source(example)
        check_commands(source)
        self.printed = None
        if not self.was_left_out and is_for_here(source):
            self.shell.run(source)
            self.printed, self.may_be_left = self.shell.output, True

    def _text(self, example: Example) -> None:
        if self.was_left_out:
            return
        assert self.printed is not None, f"{example.path}:{example.line}: output of no block"
        printed, self.printed = self.printed, None
        compare(example.parsed, printed)

    def _toml(self, example: Example) -> None:
        from jina_jax.training import Settings

        values = tomllib.loads(example.parsed)
        if "output" in values:
            self.settings = values
            (self.shell.directory / _name(example.parsed)).write_text(example.parsed)
        Settings.from_dict(_merged(self.settings, values), source=example.path)

    def _source(self, example: Example) -> str:
        """Return the code of a block as its mark says, and note whether it is left out."""
        before = example.document.text[: example.region.start]
        found = _MARK.search(before)
        mark = found[1] if found else None
        if self.checked_only or before.endswith(_COMMANDS):
            mark = "checked only"
        self.was_left_out = mark == "checked only"
        source: str = example.parsed
        return source.replace(HUB, "tiny") if mark == "with tiny" else source

    def _nothing_is_left(self) -> None:
        left = None if self.may_be_left else self.printed
        assert not left, f"the block before prints what the page does not show:\n{left}"
        self.printed = None


def compare(shown: str, printed: str) -> None:
    """Compare what a page shows with what was printed."""
    parts = [_pattern(part) for part in shown.strip().split("…")]
    match = re.fullmatch(".*".join(parts), printed.strip(), re.DOTALL)
    assert match, f"the page shows\n{shown}\nbut this was printed:\n{printed}"
    wanted = [n for part in shown.split("…") for n in _NUMBER.findall(part)]
    for want, got in zip(wanted, match.groups(), strict=True):
        unit = max(10.0 ** -len(want.partition(".")[2]), _BFLOAT16)
        same = abs(float(want) - float(got)) <= 1.01 * unit
        assert same, f"the page shows {want} where {got} was printed:\n{printed}"


def _pattern(shown: str) -> str:
    """Return a pattern with a group for each number with a point."""
    texts = [r"\s*".join(map(re.escape, re.split(r"\s+", text))) for text in _NUMBER.split(shown)]
    return r"(-?\d+\.\d*)".join(texts)


def check_imports(source: str) -> None:
    """Import all that a block imports from this library, unless an extra is not installed here."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        statement = ast.unparse(node)
        if not statement.split()[1].startswith("jina_jax"):
            continue
        try:
            exec(statement, {})
        except ModuleNotFoundError as error:
            if str(error.name).startswith("jina_jax"):
                raise AssertionError(f"{statement}: {error}") from error


def _name(source: str) -> str:
    """Return the name of a file, which its first line has as a comment."""
    match = re.match(r"# (\S+\.toml)\b", source)
    return match[1] if match else "settings.toml"


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of a partial block in their place."""
    if "output" in more:
        return more
    joined = dict(base)
    for name, value in more.items():
        nested = isinstance(value, dict) and isinstance(base.get(name), dict)
        joined[name] = _merged(base[name], value) if nested else value
    return joined
