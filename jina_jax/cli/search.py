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

from jina_jax.cli.options import (
    PATH,
    Model,
    dtype_option,
    json_option,
    model_options,
    quantization_option,
    task_option,
)
from jina_jax.tasks import UNITS, Task

if TYPE_CHECKING:
    from jina_jax.search import Passage


@click.command()
@click.argument("file", type=PATH)
@click.argument("query")
@model_options
@click.option(
    "--by",
    type=click.Choice(UNITS),
    default=UNITS[0],
    show_default=True,
    help="Unit of search; blank lines separate paragraphs.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Number of results."
)
@task_option
@click.option(
    "--truncate-dim", type=click.IntRange(min=0), help="Compare this many dimensions (see info)."
)
@dtype_option
@quantization_option
@json_option
def search(
    file: Path,
    query: str,
    model: Model,
    by: str,
    top_k: int,
    task: Task,
    truncate_dim: int | None,
    dtype: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Search a text file by meaning.

    FILE is UTF-8 text, or - for stdin. QUERY may be in another language than the file.

    \b
    jina-jax search notes.txt "how do I renew my passport?"
    jina-jax search book.txt "the storm at sea" --by paragraph --top-k 3
    git log --format=%s | jina-jax search - "faster start"

    Prints rank, cosine similarity, file and line, and the text (shortened to the terminal's width);
    with --json one object per result. Blank lines are not searched.
    """
    from jina_jax.cli.rows import opened
    from jina_jax.data.lines import check_string, named_lines

    if not query.strip():
        raise ValueError(f"query={query!r}: expected a text that is not blank")
    check_string(query, "query")
    with opened(file) as (name, source):
        lines = [line for _, line in named_lines(source, name)]
    if not any(map(str.strip, lines)):
        raise ValueError(f"{name}: expected a text, got an empty file or only blank lines")
    from jina_jax.search import find, split

    found = find(
        model.load(dtype=dtype, quantization=quantization),
        query,
        list(split(lines, by)),
        top_k,
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
    from jina_jax.cli.formats import one_line

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    labels = [f"{name}:{p.first}" + (f"-{p.last}" if p.last > p.first else "") for _, p in found]
    wide, digits = max(map(len, labels)), len(str(len(found)))
    for rank, ((score, passage), label) in enumerate(zip(found, labels, strict=True), start=1):
        line = f"{rank:>{digits}}  {score:6.3f}  {label:<{wide}}  {one_line(passage.text)}"
        yield line if columns is None else cut(line, columns)


def cut(line: str, columns: int) -> str:
    """Cut a line to a terminal's columns, "…" for the rest; wide characters have two columns."""
    ends = list(itertools.accumulate(map(_columns, line)))
    if not ends or ends[-1] <= columns:
        return line
    return line[: sum(end < columns for end in ends)] + "…"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
