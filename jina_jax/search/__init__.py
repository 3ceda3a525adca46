"""Nearest vectors, and what is made of them: passages found, hard negatives mined."""

from jina_jax.search.negatives import mine_hard_negatives

__all__ = ["mine_hard_negatives"]
