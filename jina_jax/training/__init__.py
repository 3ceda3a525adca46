"""Training: settings, losses, batches, steps, checkpoints. Needs the extra ``train``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jina_jax.training.run import load_run as load_run
    from jina_jax.training.settings import Settings as Settings
    from jina_jax.training.trainer import Trainer as Trainer

_HOMES = {"Settings": "settings", "Trainer": "trainer", "load_run": "run"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jina_jax.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jina_jax.training.{_HOMES[name]}"), name)
