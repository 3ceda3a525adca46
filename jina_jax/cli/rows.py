"""Input of ``jina-jax encode`` and ``search``: texts, lines, JSONL rows."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jina_jax.cli.formats import SUFFIXES
from jina_jax.data.lines import decode_line, json_object
from jina_jax.tasks import from_word


class Rows(NamedTuple):
    """Texts to encode.

    Attributes:
      texts: n strings.
      tasks: one task for all (None for the base model), or one for each text.
      objects: JSON text of n objects, which JSONL output gives back with an embedding each.
    """

    texts: list[str]
    tasks: str | list[str | None] | None
    objects: list[str]


def read_rows(
    texts: Sequence[str],
    source: Path | None,
    field: str | None,
    task_field: str | None,
    task: str | None,
) -> Rows:
    """Read the texts from where the user put them.

    Args:
      texts: arguments, if any; "-" alone stands for stdin.
      source: file to read instead; None or "-" for stdin.
      field: of JSONL rows, with the text; None for lines.
      task_field: of JSONL rows, with the task.
      task: of all texts that name none themselves.

    Raises:
      ValueError: if these contradict each other, or a line cannot be used; names file and line.
      OSError: if the file cannot be read.
    """
    if list(texts) == ["-"] and source is None:
        texts, source = (), Path("-")
    if texts and (source is not None or field is not None):
        raise ValueError("texts are given as arguments: expected no --input and no --field")
    if task_field is not None and field is None:
        raise ValueError("--task-field needs JSONL input: name the text's field with --field")
    if source is not None and SUFFIXES.get(source.suffix) == "jsonl" and field is None:
        raise ValueError(f"{source}: looks like JSONL: name the text's field with --field")
    if texts:
        return _plain(list(texts), task)
    with opened(source) as (name, file):
        lines = list(named_lines(file, name))
    if field is None:
        return _plain([line for _, line in lines], task)
    return _from_json(lines, field, task_field, task)


@contextlib.contextmanager
def opened(source: Path | None) -> Iterator[tuple[str, BinaryIO]]:
    """Open a file, or stdin for "-" and, if texts are piped in, for None; with a name to show."""
    if source is not None and str(source) != "-":
        with source.open("rb") as file:
            yield str(source), file
    elif source is None and sys.stdin.isatty():
        raise ValueError("no texts: give some as arguments, a file with --input, or pipe lines")
    else:
        yield "stdin", sys.stdin.buffer


def named_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield ("file:number", line). Raises ``ValueError`` naming the line that is not UTF-8."""
    for number, raw in enumerate(file, start=1):
        where = f"{name}:{number}"
        try:
            line = decode_line(raw, number)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield where, line


def _plain(texts: list[str], task: str | None) -> Rows:
    rows = [{"index": index, "text": text} for index, text in enumerate(texts)]
    return Rows(texts, task, [json.dumps(row, ensure_ascii=False) for row in rows])


def _from_json(
    lines: list[tuple[str, str]], field: str, task_field: str | None, task: str | None
) -> Rows:
    texts: list[str] = []
    tasks: list[str | None] = []
    for where, line in lines:
        row = _json_object(where, line)
        own = None if task_field is None else row.get(task_field)
        texts.append(_string(where, field, row.get(field)))
        tasks.append(task if own is None else from_word(_string(where, str(task_field), own)))
    return Rows(texts, tasks if task_field else task, [line.strip() for _, line in lines])


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json_object(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if "embedding" in row:
        raise ValueError(f"{where}: has a field 'embedding' already, which the output would add")
    return row


def _string(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        got = "none" if value is None else type(value).__name__
        raise ValueError(f"{where}: field {field!r}: expected a string, got {got}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: field {field!r}: expected Unicode text, got a lone surrogate")
    return value
