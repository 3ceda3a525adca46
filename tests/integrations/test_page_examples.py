"""Blocks of shell in the pages of integrations: every command is run, with its quotes."""

import click
import page_examples
import pytest

pytestmark = pytest.mark.integrations


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs a block of a page, and returns the arguments of our command."""
    calls = []

    @click.command()
    @click.argument("words", nargs=-1)
    def main(words):
        calls.append(words)

    def run(code):
        (tmp_path / "page.md").write_text(f"## Install\n\n```sh\n{code}\n```\n", encoding="utf-8")
        page_examples.run_section("page.md", "Install", {})
        return calls

    monkeypatch.setattr(page_examples, "PAGES", tmp_path)
    monkeypatch.setattr(page_examples, "main", main)
    return run


def test_all_commands_of_a_block_are_run(run):
    assert run("pip install x\njina-jax a 'b c' \\\n  d\njina-jax e") == [("a", "b c", "d"), ("e",)]


def test_other_commands(run):
    with pytest.raises(AssertionError, match="rm: expected a command jina-jax or pip"):
        run("rm page.md")


def test_sections_with_examples(run, tmp_path):
    run("pip install x")
    with (tmp_path / "page.md").open("a", encoding="utf-8") as page:
        page.write("\n## Words\n\n```text\na\n```\n\n## Use\n\n```python\nprint()\n```\n")
    assert page_examples.sections_with_examples("page.md") == ["Install", "Use"]
