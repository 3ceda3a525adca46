"""Sources: tables of texts, read in pieces and in batches of bounded size, bad rows apart."""

from __future__ import annotations

from jina_jax.bulk.inputs import InputFile, format_of
from jina_jax.bulk.sources.arrow import ArrowSource
from jina_jax.bulk.sources.base import Piece, Source
from jina_jax.bulk.sources.batches import MOST_BYTES, MOST_ROWS, BadRow, Batch, smaller
from jina_jax.bulk.sources.delimited import DelimitedSource
from jina_jax.bulk.sources.jsonl import JsonlSource
from jina_jax.bulk.sources.parquet import ParquetSource

__all__ = [
    "MOST_BYTES",
    "MOST_ROWS",
    "BadRow",
    "Batch",
    "ParquetSource",
    "Piece",
    "Source",
    "open_source",
    "smaller",
]

_SOURCES: dict[str, type[Source]] = {
    ".parquet": ParquetSource,
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
    ".csv": DelimitedSource,
    ".tsv": DelimitedSource,
    ".arrow": ArrowSource,
    ".feather": ArrowSource,
}


def open_source(file: InputFile) -> Source:
    """Return the source of a file, by the suffix of its name.

    Raises:
      ValueError: for an unknown suffix.
      DataError: for a file that is not of its suffix's format.
      OSError: if it cannot be read.
    """
    return _SOURCES[format_of(file.url)](file)
