"""Maps of pooled vectors: the module Dense of sentence-transformers, on devices and on the host.

``activation(vector @ kernel + bias)``, in float32 whatever the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from jina_jax.config import Config, Dense
from jina_jax.nn.matmul import einsum

_HOST_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": np.asarray,
    "tanh": np.tanh,
}
_ACTIVATIONS = {"identity": jnp.asarray, "tanh": jnp.tanh}


class DenseLayer(nnx.Module):
    """One map. Leaves: kernel (in, out) and, if it has one, bias (out,)."""

    def __init__(self, in_features: int, spec: Dense, config: Config, *, dtype, draw):
        normal = initializers.normal(config.initializer_range)
        shape = (in_features, spec.out_features)
        self.kernel = nnx.Param(draw(normal, shape, dtype))
        self.bias = nnx.Param(draw(initializers.zeros, shape[1:], dtype)) if spec.bias else None
        self.activation = spec.activation

    def __call__(self, vectors: jax.Array) -> jax.Array:
        """Map float32 (..., in) to float32 (..., out)."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        y = einsum("bd,de->be", flat, self.kernel[...].astype(jnp.float32))
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)[None]
        return _ACTIVATIONS[self.activation](y).reshape(*vectors.shape[:-1], y.shape[-1])


def project_on_host(
    vectors: np.ndarray, config: Config, weights: Mapping[str, jax.Array]
) -> np.ndarray:
    """Apply the maps of ``config.dense`` to vectors that are complete.

    Those of a text in several windows, or in chunks, are sums of results of several batches.

    Args:
      vectors: float32 (n, D), pooled.
      config: names the maps.
      weights: "dense.{i}.kernel" (in, out) and "dense.{i}.bias" (out,), among others.

    Returns:
      float32 (n, ``config.output_size``).
    """
    for i, spec in enumerate(config.dense):
        vectors = vectors @ np.asarray(weights[f"dense.{i}.kernel"]).astype(np.float32)
        if spec.bias:
            vectors = vectors + np.asarray(weights[f"dense.{i}.bias"]).astype(np.float32)
        vectors = _HOST_ACTIVATIONS[spec.activation](vectors)
    return vectors
