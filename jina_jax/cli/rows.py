"""Input of ``jina-jax encode`` and ``search``: texts, lines, JSONL rows."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jina_jax.cli.formats import SUFFIXES
from jina_jax.data.lines import check_string, json_lines, labelled, named_lines
from jina_jax.tasks import NONE, from_word


class Rows(NamedTuple):
    """Texts to encode.

    Attributes:
      texts: n strings.
      tasks: one task for all (None for the base model), or one per text.
      objects: JSON text of n objects, to which JSONL output adds the embedding.
      own_tasks: ("file:line: field …", task) for rows with a task of their own.
    """

    texts: list[str]
    tasks: str | list[str | None] | None
    objects: list[str]
    own_tasks: Sequence[tuple[str, str | None]] = ()

    def check_own_tasks(self, known: Sequence[str]) -> None:
        """Refuse a row's own task that is none of the model's, naming file, line and field."""
        for place, task in self.own_tasks:
            if task is not None and task not in known:
                expected = ", ".join(map(repr, (*known, NONE)))
                raise ValueError(f"{place}: expected one of {expected}, got {task!r}")


def read_rows(
    texts: Sequence[str],
    source: Path | None,
    field: str | None,
    task_field: str | None,
    task: str | None,
) -> Rows:
    """Read texts from arguments, a file or stdin.

    Args:
      texts: arguments, if any; "-" alone means stdin.
      source: file to read instead; None or "-" for stdin.
      field: field of JSONL rows with the text; None for lines of text.
      task_field: field of JSONL rows with the task.
      task: task of all texts without one of their own.

    Raises:
      ValueError: if these contradict each other, or a line cannot be used; names file and line.
      OSError: if the file cannot be read.
    """
    if list(texts) == ["-"] and source is None:
        texts, source = (), Path("-")
    if texts and (source is not None or field is not None):
        raise ValueError("texts as arguments: expected no --input and no --field")
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
    """Open a file, or stdin for "-" and, if texts are piped in, for None; yield (name, file)."""
    if source is not None and str(source) != "-":
        with source.open("rb") as file:
            yield str(source), file
    elif sys.stdin is None:
        raise ValueError("stdin: expected texts, got none: it is closed")
    elif source is None and sys.stdin.isatty():
        raise ValueError("no texts: give some as arguments, a file with --input, or pipe lines")
    else:
        yield "stdin", sys.stdin.buffer


def _plain(texts: list[str], task: str | None) -> Rows:
    rows = [{"index": index, "text": text} for index, text in enumerate(texts)]
    return Rows(texts, task, [json.dumps(row, ensure_ascii=False) for row in rows])


def _from_json(
    lines: list[tuple[str, str]], field: str, task_field: str | None, task: str | None
) -> Rows:
    texts: list[str] = []
    tasks: list[str | None] = []
    own_tasks: list[tuple[str, str | None]] = []
    found = False
    objects: list[str] = []
    for label, line, row in json_lines(lines):
        objects.append(line.strip())
        with labelled(label):
            if "embedding" in row:
                raise ValueError("has a field 'embedding' already, which the output would add")
            if field not in row:
                fields = ", ".join(map(repr, row)) or "nothing"
                raise ValueError(f"expected a field {field!r}, found {fields}")
            texts.append(check_string(row[field], f"field {field!r}"))
            found |= task_field in row
            own = None if task_field is None else row.get(task_field)
            tasks.append(task if own is None else from_word(own))
            if own is not None:
                check_string(own, f"field {task_field!r}")
                own_tasks.append((f"{label}: field {task_field!r}", tasks[-1]))
    if task_field is not None and texts and not found:
        raise ValueError(f"--task-field {task_field!r}: no row has this field")
    return Rows(texts, tasks if task_field is not None else task, objects, own_tasks)
