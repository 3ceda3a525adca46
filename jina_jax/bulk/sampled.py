"""A sample of texts, encoded again and compared with their vectors in the output."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from jina_jax.bulk.settings import Settings
from jina_jax.bulk.tables import read_vectors
from jina_jax.nn.pooling import unit

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

# Bits are not asked for: another device, or other texts beside it, round a text otherwise.
_LEAST_COSINE = 0.999
_LEAST_EQUAL_BITS = 0.95  # those of values about 0 differ; of unrelated vectors half are equal


class Sampled(NamedTuple):
    """A text, and what the output has for it.

    Attributes:
      where: file and row, for problems.
      column: position of its column of texts.
      text: None for none.
      task: the row's own; None for the column's.
      vectors: float32 (m, d), of its rows that have one.
      spans: of its chunks; None without chunks.
    """

    where: str
    column: int
    text: str | None
    task: str | None
    vectors: np.ndarray
    spans: list[tuple[int, int]] | None


def vectors_at(
    parquet: pq.ParquetFile, name: str, ranges: Sequence[tuple[int, int]], settings: Settings
) -> list[np.ndarray]:
    """Return the vectors of ranges of rows, each float32 (m, d), without those that are null."""
    found: list[list[np.ndarray]] = [[] for _ in ranges]
    begin = 0
    for group in range(parquet.num_row_groups):
        end = begin + parquet.metadata.row_group(group).num_rows
        inside = [k for k, (start, stop) in enumerate(ranges) if start < end and stop > begin]
        if inside:
            column = parquet.read_row_group(group, [name]).column(0)
        for k in inside:
            start, stop = max(ranges[k][0], begin), min(ranges[k][1], end)
            part = column.slice(start - begin, stop - start)
            found[k].append(read_vectors(part, settings.kind, settings.dim)[0].copy())
        begin = end
    return [np.concatenate(own) for own in found]


def differences(model: JinaEmbeddings, settings: Settings, sampled: list[Sampled]) -> list[str]:
    """Encode texts again; return those whose vectors differ, in words."""
    problems = []
    for column in range(len(settings.text)):
        own = [text for text in sampled if text.column == column]
        texts = [text for text in own if text.text is not None]
        problems += [
            f"{text.where}: expected no vector, as there is no text"
            for text in own
            if text.text is None and len(text.vectors)
        ]
        again = _encode(model, settings, column, texts) if texts else []
        for text, (vectors, spans) in zip(texts, again, strict=True):
            problems += [f"{text.where}: {own}" for own in _compare(text, vectors, spans, settings)]
    return problems


def _encode(
    model: JinaEmbeddings, settings: Settings, column: int, texts: list[Sampled]
) -> list[tuple[np.ndarray, list[tuple[int, int]] | None]]:
    """Return the vectors, float32 (m, d), and with chunks the spans, of each text."""
    options: dict[str, Any] = {
        "task": [text.task or settings.tasks[column] for text in texts],
        "prompt": settings.prompt,
        "prompt_name": settings.prompt_name,
        "truncate_dim": settings.dim,
        "max_length": settings.max_length,
        "normalize_embeddings": settings.normalize,
        "show_progress_bar": False,
    }
    strings = [text.text for text in texts if text.text is not None]
    if settings.chunks is not None:
        chunked = model.encode_chunks(strings, settings.chunks, **options)
        return [(own.embeddings, list(own.spans)) for own in chunked]
    long_text = "windows" if settings.long_text == "windows" else "truncate"
    with warnings.catch_warnings():  # how many texts are cut is in the statistics
        warnings.filterwarnings("ignore", ".* longer than max_length", UserWarning)
        vectors = model.encode(strings, long_text=long_text, **options)
    return [(own[None], None) for own in vectors]


def _compare(
    text: Sampled, vectors: np.ndarray, spans: list[tuple[int, int]] | None, settings: Settings
) -> Iterator[str]:
    if spans is not None and spans != text.spans:
        yield f"its chunks are {spans} now, {text.spans} in the output"
    elif len(vectors) != len(text.vectors):
        yield f"expected {len(vectors)} vectors, got {len(text.vectors)}"
    elif settings.kind == "ubinary":
        equal = ((vectors > 0) == (text.vectors > 0)).mean(axis=-1).min(initial=1)
        if equal < _LEAST_EQUAL_BITS:
            yield f"encoded again: {equal:.1%} of the bits are equal, not {_LEAST_EQUAL_BITS:.0%}"
    else:
        cosine = (unit(vectors) * unit(text.vectors)).sum(axis=-1).min(initial=1)
        if not cosine >= _LEAST_COSINE:
            yield f"encoded again: cosine {cosine:.5f}, below {_LEAST_COSINE}"
