"""Semantic search: the passages of a text that are nearest to a query."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jina_jax.checks import check_integer
from jina_jax.search.nearest import nearest
from jina_jax.tasks import UNITS, Task, pick_tasks

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings


class Passage(NamedTuple):
    """A piece of a file.

    Attributes:
      first, last: numbers of its lines, from 1.
      text: its lines, joined by line feeds.
    """

    first: int
    last: int
    text: str


def split(lines: Sequence[str], by: str) -> Iterator[Passage]:
    """Split a file into passages; blank ones are skipped.

    Args:
      lines: all lines of the file.
      by: "line", or "paragraph" for runs of lines between blank ones.

    Raises:
      ValueError: if ``by`` is neither.
    """
    if by not in UNITS:
        raise ValueError(f"by={by!r}: expected one of {', '.join(map(repr, UNITS))}")
    numbered = enumerate(lines, start=1)
    for blank, run in itertools.groupby(numbered, key=lambda pair: not pair[1].strip()):
        if blank:
            continue
        if by == "line":
            yield from (Passage(number, number, line) for number, line in run)
        else:
            numbers, texts = zip(*run, strict=True)
            yield Passage(numbers[0], numbers[-1], "\n".join(texts))


def find(
    model: JinaEmbeddings,
    query: str,
    passages: Sequence[Passage],
    top_k: int,
    *,
    task: Task = "auto",
    truncate_dim: int | None = None,
    show_progress_bar: bool | None = None,
) -> list[tuple[float, Passage]]:
    """Return the passages nearest to a query with their cosine similarities, the nearest first.

    Args:
      model: encodes query and passages.
      query: the text to search for.
      passages: m texts to search; of equally near ones the earlier is taken.
      top_k: number of passages to return; all m, if there are fewer.
      task: adapter, None for the base model, or a pair (query, passages); "auto" for
        "retrieval.query" and "retrieval.passage" if the model has them.
      truncate_dim: Matryoshka dimension to compare in; None for the checkpoint's own.
      show_progress_bar: as for ``JinaEmbeddings.encode``.

    Raises:
      ValueError: for no passage, ``top_k`` below 1, or a task or dimension that the model lacks.
    """
    if not passages or not all(isinstance(passage, Passage) for passage in passages):
        raise ValueError("passages: expected at least one Passage, as split returns them")
    top_k = check_integer("top_k", top_k, 1)
    query_task, passage_task = pick_tasks(model, "retrieval", task)
    vectors = model.encode(
        [query, *(passage.text for passage in passages)],
        task=[query_task] + [passage_task] * len(passages),
        truncate_dim=truncate_dim,
        show_progress_bar=show_progress_bar,
    )
    ((scores, numbers),) = nearest(vectors[:1], vectors[1:], min(top_k, len(passages)))
    return [(float(score), passages[i]) for score, i in zip(scores, numbers, strict=True)]
