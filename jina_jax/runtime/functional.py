"""The network as a pure function of its parameters, for ``jax.jit`` and ``jax.grad``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.kernels import BLOCKED
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.nn.pooling import pool_masked


def pure_function(config: Config, graph: nnx.GraphDef, **kind: Any) -> Callable[..., jax.Array]:
    """Return ``apply`` of ``Model.functional``, for an encoder's graph.

    ``kind`` are the options of ``abstract_encoder`` that it was made with.
    """
    _, abstract = abstract_encoder(config, **kind)

    def apply(parameters, input_ids, attention_mask=None, task_ids=None):
        shape = np.shape(input_ids)
        square = shape if len(shape) == 2 and shape[1] else "(B, T)"
        _check_array("input_ids", input_ids, np.integer, square, range(config.vocab_size))
        if attention_mask is None:
            attention_mask = jnp.ones(shape, bool)
        _check_array("attention_mask", attention_mask, np.bool_, shape)
        if task_ids is not None:
            tasks = range(-1, config.num_tasks)
            _check_array("task_ids", task_ids, np.integer, shape[:1], tasks)
        expected = to_dict(abstract).keys()
        if wrong := sorted(parameters.keys() ^ expected):
            raise ValueError(f"parameters: expected those of the model, got others: {wrong}")
        encoder = nnx.merge(graph, from_dict(abstract, parameters))
        output = encoder(input_ids, attention_mask, task_ids, kernels=BLOCKED)
        pooled = pool_masked(output.last_hidden_state, attention_mask, config.emb_pooler)
        return encoder.project(pooled)

    return apply


def _check_array(
    name: str, array: Any, kind: type, shape: Any, values: range | None = None
) -> None:
    """Check the dtype and shape of an array, and its values, unless they are traced."""
    found, dtype = np.shape(array), getattr(array, "dtype", None)
    if dtype is None or found != shape or not jnp.issubdtype(dtype, kind):
        wanted, got = kind.__name__.rstrip("_"), dtype or type(array).__name__
        raise ValueError(f"{name}: expected {wanted} {shape}, got {got} {found}")
    if values is None or isinstance(array, jax.core.Tracer):
        return
    wrong = [value for value in np.unique(array).tolist() if value not in values]
    if wrong:
        raise ValueError(f"{name}: expected {values[0]} to {values[-1]}, got {wrong[0]}")
