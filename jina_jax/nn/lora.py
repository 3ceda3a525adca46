"""Linear and embedding layers that carry one low-rank adapter (LoRA) for every task.

All K adapters of a layer are applied as one product of width K · R, from which each row keeps the
R columns of its own task: mixed tasks need no gather of weights, and a row without a task keeps
none. The formulas, with scale = alpha / R: W' = W + scale · B A for linear layers (arXiv
2106.09685), and W' = W + scale · A B for embedding tables, as in the published model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.nn.initializers import Initializer

from jina_jax.config import Config
from jina_jax.nn.matmul import einsum


class Adapter(nnx.Variable):
    """A variable that belongs to a task adapter; base weights are ``nnx.Param``."""


def draw(rngs: nnx.Rngs | None, initializer: Initializer, shape: tuple[int, ...], dtype):
    """Draw initial values; without ``rngs`` only say what they would be.

    Modules made without ``rngs`` hold ``jax.ShapeDtypeStruct``. ``nnx.eval_shape`` gives the same,
    but traces every initializer of every layer: seconds for the full-size network.
    """
    if rngs is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    return initializer(rngs.params(), shape, dtype)


def task_mask(task_ids: jax.Array, num_tasks: int) -> jax.Array:
    """Mark each row's own adapter.

    Args:
      task_ids: int (B,) for a task a row, or (B, T) for a task a token; -1 for no adapter.
      num_tasks: K.

    Returns:
      bool (B, 1, K) or (B, T, K).
    """
    if task_ids.ndim == 1:
        task_ids = task_ids[:, None]
    return task_ids[..., None] == jnp.arange(num_tasks)


class Linear(nnx.Module):
    """``x @ kernel + bias``, plus the update of each row's task.

    Leaves: kernel (in, out), bias (out,), and with tasks lora_a (K, in, R), lora_b (K, R, out).
    """

    def __init__(
        self, in_features: int, out_features: int, config: Config, *, dtype, rngs: nnx.Rngs | None
    ):
        normal = initializers.normal(config.initializer_range)
        self.kernel = nnx.Param(draw(rngs, normal, (in_features, out_features), dtype))
        self.bias = nnx.Param(draw(rngs, initializers.zeros, (out_features,), dtype))
        self.lora_scale = config.lora_scale
        if config.lora_rank is None:
            self.lora_a = self.lora_b = None
            return
        # Uniform within 1 / sqrt(in), and zero: the initial values of the published code.
        uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
        tasks, rank = config.num_tasks, config.lora_rank
        self.lora_a = Adapter(draw(rngs, uniform, (tasks, in_features, rank), dtype))
        self.lora_b = Adapter(draw(rngs, initializers.zeros, (tasks, rank, out_features), dtype))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map x (B, T, in), with ``mask`` from ``task_mask`` or None, to float32 (B, T, out)."""
        y = einsum("bti,io->bto", x, self.kernel[...])
        if mask is not None and self.lora_a is not None and self.lora_b is not None:
            low = einsum("bti,kir->btkr", x, self.lora_a[...])
            y += _raise_rank(low, mask, self.lora_b[...], self.lora_scale)
        return y + self.bias[...].astype(jnp.float32)


class Embed(nnx.Module):
    """Rows of a table, plus the update of each row's task, made from gathered rows of A.

    Leaves: embedding (V, D), and with tasks lora_a (K, V, R), lora_b (K, R, D).
    """

    def __init__(
        self, num_embeddings: int, features: int, config: Config, *, dtype, rngs: nnx.Rngs | None
    ):
        normal = initializers.normal(config.initializer_range)
        self.embedding = nnx.Param(draw(rngs, normal, (num_embeddings, features), dtype))
        self.lora_scale = config.lora_scale
        if config.lora_rank is None:
            self.lora_a = self.lora_b = None
            return
        # Zero, and standard normal: the initial values of the published code.
        tasks, rank = config.num_tasks, config.lora_rank
        self.lora_a = Adapter(draw(rngs, initializers.zeros, (tasks, num_embeddings, rank), dtype))
        self.lora_b = Adapter(draw(rngs, initializers.normal(1.0), (tasks, rank, features), dtype))

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Look up ids (B, T) with ``mask`` from ``task_mask`` or None; float32 (B, T, D)."""
        y = self.embedding[...][ids].astype(jnp.float32)
        if mask is not None and self.lora_a is not None and self.lora_b is not None:
            low = jnp.moveaxis(self.lora_a[...][:, ids], 0, 2)
            y += _raise_rank(low, mask, self.lora_b[...], self.lora_scale)
        return y


def _raise_rank(low: jax.Array, mask: jax.Array, lora_b: jax.Array, scale: float) -> jax.Array:
    """Keep each row's own columns of low (B, T, K, R) and map them to float32 (B, T, out)."""
    kept = jnp.where(mask[..., None], low, 0).astype(lora_b.dtype)
    return scale * einsum("btkr,kro->bto", kept, lora_b)


def merged_weight(weight, lora_a, lora_b, scale: float):
    """Add one task's update to a weight, in float32.

    Args:
      weight: kernel (in, out) or embedding (V, D), NumPy or JAX.
      lora_a: (in, R) or (V, R).
      lora_b: (R, out) or (R, D).
      scale: ``Config.lora_scale``.

    Returns:
      float32 array of the weight's shape.
    """
    update = lora_a.astype(jnp.float32) @ lora_b.astype(jnp.float32)
    return weight.astype(jnp.float32) + update * scale


def merge_task(state: nnx.State, task: str, config: Config) -> nnx.State:
    """Fold one task's adapter into plain weights, ahead of time.

    Sums are made in float32 and then cast to the dtype of the weights.

    Args:
      state: of an ``Encoder`` made from ``config``; left as it is.
      task: one of ``config.lora_adaptations``.
      config: names the tasks and the scale.

    Returns:
      The state of an ``Encoder`` made from ``config.merged(task)``.

    Raises:
      ValueError: for an unknown task.
    """
    index = config.task_id(task)
    flat = dict(nnx.to_flat_state(state))
    merged = {}
    for path, variable in flat.items():
        if path[-1] in ("lora_a", "lora_b"):
            continue
        lora_a, lora_b = (flat.get((*path[:-1], name)) for name in ("lora_a", "lora_b"))
        is_weight = path[-1] in ("kernel", "embedding")
        if is_weight and lora_a is not None and lora_b is not None:
            weight = variable[...]
            with jax.default_matmul_precision("highest"):
                total = merged_weight(weight, lora_a[index], lora_b[index], config.lora_scale)
            variable = variable.replace(total.astype(weight.dtype))
        merged[path] = variable
    return nnx.from_flat_state(merged)
