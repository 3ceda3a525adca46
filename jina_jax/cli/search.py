"""The command ``jina-jax search``."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jina_jax.cli.options import PATH, dtype_option, hub_options, task_option

if TYPE_CHECKING:
    from jina_jax.search import Passage

UNITS = ("line", "paragraph")


@click.command()
@click.argument("file", type=PATH)
@click.argument("query")
@click.option("--model", help="Directory or Hub id.  [default: tiny, in the package]")
@click.option(
    "--by",
    type=click.Choice(UNITS),
    default=UNITS[0],
    show_default=True,
    help="What to find; blank lines separate paragraphs.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many to show."
)
@task_option
@click.option(
    "--truncate-dim", type=click.IntRange(min=0), help="Compare this many dimensions (see info)."
)
@dtype_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@hub_options
def search(
    file: Path,
    query: str,
    model: str | None,
    by: str,
    top_k: int,
    task: str | tuple[str, ...],
    truncate_dim: int | None,
    dtype: str | None,
    as_json: bool,
    revision: str | None,
    local_files_only: bool,
) -> None:
    """Search a text file by meaning.

    FILE is UTF-8 text, or - for stdin. QUERY may be in another language than the file.

    \b
    jina-jax search notes.txt "how do I renew my passport?"
    jina-jax search book.txt "the storm at sea" --by paragraph --top-k 3
    git log --format=%s | jina-jax search - "faster start"

    Prints rank, cosine similarity, file and line, and the text, which a terminal gets cut to its
    width. Blank lines are not searched.
    """
    from jina_jax.cli.rows import named_lines, opened
    from jina_jax.search import find, split

    if not query.strip():
        raise ValueError(f"query={query!r}: expected a text that is not blank")
    with opened(file) as (name, source):
        passages = list(split([line for _, line in named_lines(source, name)], by))
    if not passages:
        raise ValueError(f"{name}: expected a text, got an empty file or blank lines alone")
    from jina_jax.embedder import JinaEmbeddings  # seconds, after what can be refused at once

    embedder = JinaEmbeddings.from_pretrained(
        model, dtype=dtype, revision=revision, local_files_only=local_files_only
    )
    found = find(
        *(embedder, query, passages, top_k),
        task=task,
        truncate_dim=truncate_dim,
        show_progress_bar=sys.stderr.isatty(),
    )
    show = _as_json if as_json else _as_text
    for line in show(name, found):
        click.echo(line)


def _as_json(name: str, found: Sequence[tuple[float, Passage]]) -> Iterator[str]:
    for rank, (score, passage) in enumerate(found, start=1):
        # Nine digits give a float32 back exactly.
        row: dict[str, Any] = {"rank": rank, "score": float(f"{score:.9g}"), "file": name}
        row |= {"first_line": passage.first, "last_line": passage.last, "text": passage.text}
        yield json.dumps(row, ensure_ascii=False)


def _as_text(name: str, found: Sequence[tuple[float, Passage]]) -> Iterator[str]:
    from jina_jax.cli.rows import one_line

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    places = [f"{name}:{p.first}" + (f"-{p.last}" if p.last > p.first else "") for _, p in found]
    wide, digits = max(map(len, places)), len(str(len(found)))
    for rank, ((score, passage), place) in enumerate(zip(found, places, strict=True), start=1):
        line = f"{rank:>{digits}}  {score:6.3f}  {place:<{wide}}  {one_line(passage.text)}"
        yield line if columns is None else cut(line, columns)


def cut(line: str, columns: int) -> str:
    """Cut a line to a terminal's columns, "…" for the rest; a wide character takes two of them."""
    ends = list(itertools.accumulate(map(_columns, line)))
    if not ends or ends[-1] <= columns:
        return line
    return line[: sum(end < columns for end in ends)] + "…"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
