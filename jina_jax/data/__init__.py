"""Data files: rows of texts with scores, labels or a teacher's vectors, each of them checked."""

from jina_jax.data.kinds import ROWS as KINDS
from jina_jax.data.records import DataError
from jina_jax.data.source import Problem, Source, read_source

__all__ = ["KINDS", "DataError", "Problem", "Source", "read_source"]
