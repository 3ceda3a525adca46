"""Data files: rows of texts with scores, labels or a teacher's vectors, each of them checked."""

from jina_jax.data.records import DataError
from jina_jax.data.source import KINDS, Problem, Source, read_source

__all__ = ["KINDS", "DataError", "Problem", "Source", "read_source"]
