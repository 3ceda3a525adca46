"""Data files: checked rows of texts, with scores, labels or a teacher's vectors; BEIR's layout."""

from jina_jax.data.beir import Judged, read_beir
from jina_jax.data.kinds import ROWS as KINDS
from jina_jax.data.records import DataError
from jina_jax.data.source import Problem, Source, read_source

__all__ = ["KINDS", "DataError", "Judged", "Problem", "Source", "read_beir", "read_source"]
