"""Checkpoints of other libraries, to and from ours."""

from jina_jax.checkpoints.names import LAYOUTS
from jina_jax.convert.adapters import add_task, with_adapters, with_weights
from jina_jax.convert.open import open_checkpoint
from jina_jax.convert.read import Checkpoint
from jina_jax.convert.write import merge_checkpoint, write_checkpoint

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "add_task",
    "merge_checkpoint",
    "open_checkpoint",
    "with_adapters",
    "with_weights",
    "write_checkpoint",
]
