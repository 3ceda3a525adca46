"""Every code block of the README and of docs/ runs, and prints what the page shows."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import shell_blocks
from docs_pages import Page, compare
from shell_blocks import Shell

from jina_jax import JinaEmbeddings, make_mesh
from jina_jax.checkpoints.hub import fetch

ROOT = Path(__file__).parents[1]
# Their blocks are run elsewhere: these pages are only checked here.
ELSEWHERE = {
    "docs/serving.md": "tests/clients and tests/test_serving*.py",
    "docs/integrations": "tests/integrations",
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if path.name != "files.template.md"
)


@pytest.fixture(scope="module", autouse=True)
def one_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Load each model once for all pages, on one device, under JAX's usual promotion."""
    load = JinaEmbeddings.from_pretrained.__func__
    loaded: dict[str, JinaEmbeddings] = {}

    def once(cls: type, name: str | os.PathLike[str], **options: object) -> JinaEmbeddings:
        options = {"mesh": make_mesh(1, jax.devices()[:1]), **options}
        if fetch(name) != fetch("tiny"):
            return load(cls, name, **options)
        key = repr(sorted(options.items()))
        if key not in loaded:
            loaded[key] = load(cls, name, **options)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JinaEmbeddings, "from_pretrained", classmethod(once))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in ("here", "tools"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Shell(tmp_path / "here", tmp_path / "tools")


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, shell: Shell) -> None:
    checked_only = any(name.startswith(page) for page in ELSEWHERE)
    Page(ROOT / name, shell, checked_only=checked_only).run()


def fenced(language: str, source: str) -> str:
    return f"```{language}\n{source}\n```\n"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (fenced("python", "print(1)") + fenced("text", "2"), "the page shows\n2"),
        (fenced("python", "print(0.98)") + fenced("text", "0.96"), "shows 0.96 where 0.98"),
        (fenced("python", "print(1)"), "prints what the page does not show"),
        (fenced("python", "1 / 0"), "division by zero"),
        (fenced("text", "2"), "output of no block"),
        (fenced("pyhton", "1"), "a block of 'pyhton'"),
        (fenced("sh", "jina-jax info --devises"), "No such option"),
        (fenced("sh", "jina-jax infos"), "infos: no such command"),
        (fenced("sh", "false"), "status 1"),
        (fenced("sh", "pip install '.[trian]'"), "expected extras"),
        (fenced("sh", "python benchmarks/cpus.py"), "no such file"),
        (fenced("sh", "python benchmarks/cpu.py --round 3"), "no option --round"),
        (fenced("toml", "output = 'x'"), "model: is missing"),
        (fenced("sh", "jina-jax convert a b --to nativ"), "'nativ' is not one of"),
        (
            "<!-- checked only: a reason -->\n" + fenced("python", "from jina_jax import Nothing"),
            "cannot import name 'Nothing'",
        ),
    ],
)
def test_broken_pages_fail(page: str, message: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(Exception, match=re.escape(message)):
        Page(tmp_path / "page.md", shell).run()


def test_a_reason_is_needed_to_be_left_out(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- checked only: -->\n" + fenced("python", "1 / 0"))
    with pytest.raises(ZeroDivisionError):
        Page(tmp_path / "page.md", shell).run()


def test_a_block_may_print_more_than_a_pipe_takes_but_not_run_for_ever(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run("printf '%0100000d' 7")
    assert len(shell.output) == 100_000
    monkeypatch.setattr(shell_blocks, "_SECONDS", 0.1)
    with pytest.raises(AssertionError, match="over 0 s"):
        shell.run("sleep 60")


def test_outputs_with_any_text_between() -> None:
    compare("a … 0.98 …\nz", "a b 0.977 c\nd\nz")
