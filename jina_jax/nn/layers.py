"""Layers of the network: linear maps and tables with the tasks' adapters, LayerNorm, GELU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.nn import initializers
from jax.nn.initializers import Initializer

from jina_jax.config import Config
from jina_jax.nn.lora import Adapter, adapted_product, low_rank_update, product, with_update
from jina_jax.nn.quantized import abstract_quantized, quantize_kernel, quantized_product
from jina_jax.nn.tracing import by_platform

# Initial values of the adapters' factors, A (K, in, R) and B (K, R, out), as in the published code:
# a new adapter changes nothing, and has a gradient. Uniform is within 1 / sqrt(in).
_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
LINEAR_FACTORS = (_uniform, initializers.zeros)
EMBED_FACTORS = (initializers.zeros, initializers.normal(1.0))


def draw(rngs: nnx.Rngs | None, initializer: Initializer, shape: tuple[int, ...], dtype):
    """Draw initial values; without ``rngs`` return their ``jax.ShapeDtypeStruct``.

    ``nnx.eval_shape`` returns the same, but traces every initializer of every layer: seconds for
    the full-size network.
    """
    if rngs is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    return initializer(rngs.params(), shape, dtype)


class Linear(nnx.Module):
    """``x @ kernel + bias``, plus the update of each token's task.

    Leaves: kernel (in, out), bias (out,), and with tasks lora_a (K, in, R), lora_b (K, R, out).
    With ``parts``, several maps of one input in one product, "out" is (parts, out) everywhere. With
    ``quantization``, kernel_codes (out, in) and kernel_scale (out,) are in the place of kernel
    (``jina_jax.nn.quantized``).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: Config,
        *,
        dtype,
        rngs: nnx.Rngs | None,
        parts: int | None = None,
        quantization: str | None = None,
    ):
        normal = initializers.normal(config.initializer_range)
        out = (out_features,) if parts is None else (parts, out_features)
        kernel = draw(rngs, normal, (in_features, *out), dtype)
        self.kernel: Any = nnx.Param(kernel) if quantization is None else None
        codes: Any = None
        scale: Any = None
        if quantization is not None:
            quantize: Any = abstract_quantized if rngs is None else quantize_kernel
            codes, scale = map(nnx.Param, quantize(kernel, quantization))
        self.kernel_codes, self.kernel_scale = codes, scale
        self.bias = nnx.Param(draw(rngs, initializers.zeros, out, dtype))
        self.lora_scale = config.lora_scale
        if config.lora_rank is None:
            self.lora_a = self.lora_b = None
            return
        tasks, rank = config.num_tasks, config.lora_rank
        init_a, init_b = LINEAR_FACTORS
        self.lora_a = Adapter(draw(rngs, init_a, (tasks, in_features, rank), dtype))
        self.lora_b = Adapter(draw(rngs, init_b, (tasks, rank, *out), dtype))

    def __call__(self, x: jax.Array, task_mask: jax.Array | None = None) -> jax.Array:
        """Map x (B, T, in), with a mask from ``lora.task_mask`` or None, to float32 (B, T, out)."""
        factors = None
        if task_mask is not None and self.lora_a is not None and self.lora_b is not None:
            factors = (self.lora_a[...], self.lora_b[...], task_mask, self.lora_scale)
        if self.kernel is None:
            y = quantized_product(x, self.kernel_codes[...], self.kernel_scale[...])
            y = y if factors is None else with_update(y, x, *factors)
        elif factors is None:
            y = product(x, self.kernel[...])
        else:
            y = adapted_product(x, self.kernel[...], *factors)
        return y + as_wide(self.bias[...].astype(jnp.float32), y)


class Embed(nnx.Module):
    """Rows of a table, plus the update of each token's task, made from gathered rows of A.

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
        tasks, rank = config.num_tasks, config.lora_rank
        init_a, init_b = EMBED_FACTORS
        self.lora_a = Adapter(draw(rngs, init_a, (tasks, num_embeddings, rank), dtype))
        self.lora_b = Adapter(draw(rngs, init_b, (tasks, rank, features), dtype))

    def __call__(self, ids: jax.Array, task_mask: jax.Array | None = None) -> jax.Array:
        """Look up ids (B, T), with a mask from ``lora.task_mask`` or None: float32 (B, T, D)."""
        y = self.embedding[...][ids].astype(jnp.float32)
        if task_mask is not None and self.lora_a is not None and self.lora_b is not None:
            low = jnp.moveaxis(self.lora_a[...][:, ids], 0, 2)
            y += low_rank_update(low, task_mask, self.lora_b[...], self.lora_scale)
        return y


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with float32 statistics; returns the dtype of its weights."""

    lora_a: Adapter  # of joined weights only, see ``joined``

    def __init__(self, config: Config, *, dtype, rngs: nnx.Rngs | None):
        shape = (config.hidden_size,)
        self.epsilon = config.layer_norm_eps
        self.scale = nnx.Param(draw(rngs, initializers.ones, shape, dtype))
        self.bias = nnx.Param(draw(rngs, initializers.zeros, shape, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise x, (…, D), over its last axis, in float32; return the dtype of ``scale``, (D,)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt(variance + epsilon)
    wide_scale, wide_bias = (as_wide(leaf.astype(jnp.float32), x) for leaf in (scale, bias))
    return as_stored((x * wide_scale + wide_bias).astype(scale.dtype))


def gelu(x: jax.Array) -> jax.Array:
    """Compute the exact GELU, ``x / 2 · (1 + erf(x / √2))``, in float32.

    PyTorch's form. ``jax.nn.gelu(approximate=False)`` goes through erfc, which takes twice as long
    on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * np.float32(0.5**0.5)))


def as_stored(x: jax.Array) -> jax.Array:
    """Return x as it is in memory: rounded to its dtype, and with its last axis together.

    XLA for GPU would otherwise pass on what it had before rounding, and write both; and take the
    order of axes from where the last layer's output is pooled.
    """

    def stored(x: jax.Array) -> jax.Array:
        order = Layout(major_to_minor=tuple(range(x.ndim)))
        return jax.lax.optimization_barrier(with_layout_constraint(x, order))

    return by_platform(x, cuda=stored, default=lambda x: x)


def as_wide(values: jax.Array, other: jax.Array) -> jax.Array:
    """Add leading axes of size 1, as many as ``other`` has more.

    Broadcasting would do the same, and is an error where a user has set JAX's rank promotion to
    "raise".
    """
    return jnp.expand_dims(values, tuple(range(other.ndim - values.ndim)))
