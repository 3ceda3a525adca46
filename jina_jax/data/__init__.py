"""Data files: checked rows of texts, with scores, labels or a teacher's vectors; BEIR's layout."""

from jina_jax.data.beir import Judged, read_beir
from jina_jax.data.records import DataError
from jina_jax.data.source import KINDS, Problem, Source, read_source

__all__ = ["KINDS", "DataError", "Judged", "Problem", "Source", "read_beir", "read_source"]
