"""Checkpoints of other libraries, to and from ours."""

from jina_jax.convert.read import Checkpoint, open_checkpoint
from jina_jax.convert.write import LAYOUTS, merge_checkpoint, write_checkpoint

__all__ = ["LAYOUTS", "Checkpoint", "merge_checkpoint", "open_checkpoint", "write_checkpoint"]
