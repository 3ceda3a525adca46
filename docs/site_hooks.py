"""Hooks of mkdocs.yml: pages that lie elsewhere in the repository, and notebooks as pages.

A link to such a file, relative as the repository has it, becomes a link to its page.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files of the repository, and their places in the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/growth.png": "growth.png",
    "jina_jax/tiny/README.md": "tiny.md",
    "recipes/tiny/README.md": "recipe.md",
    **{
        f"recipes/tiny/logs/{path.name}": f"logs/{path.name}"
        for path in sorted((ROOT / "recipes/tiny/logs").glob("*.png"))
    },
}
_SEARCH = 'data-md-component="search" role="dialog"'  # the theme gives this dialog no name
_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
_IMAGES = {"image/png": "png", "image/svg+xml": "svg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and each notebook as Markdown."""
    for source, target in ELSEWHERE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = file.src_uri.removesuffix(".ipynb")
        notebook = json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
        parts = [f"[This notebook as a file]({posixpath.basename(file.src_uri)})\n"]
        for number, cell in enumerate(notebook["cells"]):
            parts += _cell(cell, files, config, f"{name}-{number}")
        files.append(File.generated(config, f"{name}.md", content="\n".join(parts)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to files elsewhere in the repository at their pages."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(folder, match[2]))
        if source not in ELSEWHERE:
            return match[0]
        here = posixpath.dirname(page.file.src_uri) or "."
        return match[1] + posixpath.relpath(ELSEWHERE[source], here)

    return _LINK.sub(link, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog of the search, for screen readers."""
    return output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')


def _cell(cell: dict[str, Any], files: Files, config: MkDocsConfig, name: str) -> Iterator[str]:
    """Return a cell of a notebook as parts of Markdown; its images become files."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield f"{source}\n"
    elif source.strip():
        yield _fenced(source, "python")
    for number, output in enumerate(cell.get("outputs", ())):
        yield from _output(output, files, config, f"{name}-{number}")


def _output(output: dict[str, Any], files: Files, config: MkDocsConfig, name: str) -> Iterator[str]:
    data = output.get("data", {})
    for kind, suffix in _IMAGES.items():
        if kind in data:
            uri, content = f"{name}.{suffix}", "".join(data[kind])
            binary = base64.b64decode(content) if suffix == "png" else content
            files.append(File.generated(config, uri, content=binary))
            alt = "".join(data.get("text/plain", "")).strip("<>") or "output"
            yield f"![{alt}]({posixpath.basename(uri)})\n"
            return
    text = "".join(output.get("text", data.get("text/plain", "")))
    if text.strip():
        yield _fenced(text, "text")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"
