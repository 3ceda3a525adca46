"""jina-embeddings-v3 in pure JAX.

``import jina_jax`` is cheap: JAX is imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jina_jax.checkpoints.tensors import CheckpointError as CheckpointError
    from jina_jax.config import Config as Config
    from jina_jax.config import ConfigError as ConfigError
    from jina_jax.embedder import Chunks as Chunks
    from jina_jax.embedder import EncodeInfo as EncodeInfo
    from jina_jax.embedder import JinaEmbeddings as JinaEmbeddings
    from jina_jax.nn.encoder import Encoder as Encoder
    from jina_jax.nn.lora import Adapter as Adapter
    from jina_jax.nn.parameters import merge_task as merge_task
    from jina_jax.runtime.batching import Batching as Batching
    from jina_jax.runtime.compiling import JaxlibError as JaxlibError
    from jina_jax.runtime.compiling import JaxlibWarning as JaxlibWarning
    from jina_jax.runtime.compiling import compiler_options as compiler_options
    from jina_jax.runtime.sharding import make_mesh as make_mesh
    from jina_jax.text.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "jina_jax.nn.lora",
    "Batching": "jina_jax.runtime.batching",
    "CheckpointError": "jina_jax.checkpoints.tensors",
    "Chunks": "jina_jax.embedder",
    "Config": "jina_jax.config",
    "ConfigError": "jina_jax.config",
    "EncodeInfo": "jina_jax.embedder",
    "Encoder": "jina_jax.nn.encoder",
    "JaxlibError": "jina_jax.runtime.compiling",
    "JaxlibWarning": "jina_jax.runtime.compiling",
    "JinaEmbeddings": "jina_jax.embedder",
    "Tokenizer": "jina_jax.text.tokenizer",
    "compiler_options": "jina_jax.runtime.compiling",
    "make_mesh": "jina_jax.runtime.sharding",
    "merge_task": "jina_jax.nn.parameters",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jina_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
