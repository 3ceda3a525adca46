"""Search by meaning: nearest vectors, passages of a text, hard negatives for training."""

from jina_jax.search.negatives import mine_hard_negatives, write_triplets
from jina_jax.search.passages import Passage, find, split
from jina_jax.search.rules import Rules

__all__ = [
    "Passage",
    "Rules",
    "find",
    "mine_hard_negatives",
    "split",
    "write_triplets",
]
