"""Every code block of the README and of docs/ runs, and prints what the page shows."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from docs_pages import Page
from shell_blocks import Shell

from jina_jax import JinaEmbeddings, make_mesh
from jina_jax.checkpoints.hub import fetch

ROOT = Path(__file__).parents[1]
# Their blocks are run elsewhere: these pages are only checked here.
ELSEWHERE = {
    "README.md": "until it is rewritten for this: its blocks use names that they do not define",
    "docs/bulk.md": "tests/test_bulk_*.py",
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
