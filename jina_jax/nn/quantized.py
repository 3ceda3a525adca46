"""Products of linear layers in 8 bits: codes of weights and activations, with float32 scales.

Each output channel of a weight has a scale, fixed when the weight is loaded, and each token of an
activation one of its own, computed where it is used. With s = max |x| / most over the input axis
and codes q(x / s), which are integers or float8_e4m3fn, the product is

    y[t, o] = (Σ_i x_codes[t, i] · w_codes[o, i]) · x_scale[t] · w_scale[o]

(arXiv 2206.01861: weights per channel, activations per token; float8: arXiv 2209.05433). Sums of
int8 are exact in int32. Nothing is calibrated, and outliers cost only the tokens that have them.
Of normally distributed values int8 keeps three times as much as float8: rounding errors of 0.8 %
and 2.6 % of their size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jina_jax.nn.tracing import by_platform

# The dtype of codes, and the largest code.
_CODES: dict[str, tuple[Any, float]] = {
    "int8": (np.dtype(np.int8), 127.0),
    "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}
_LEAST = np.float32(1e-30)  # taken for the largest value of zeros, whose codes are zero


class Quantized(NamedTuple):
    """An array in 8 bits; arrays or their shapes.

    Attributes:
      codes: int8 or float8_e4m3fn, the input axis last.
      scale: float32, without the input axis.
    """

    codes: Any
    scale: Any


def quantization_of(paths: dict[str, Any]) -> str | None:
    """Return the quantization of the arrays of an encoder's state, by path; None without one."""
    codes = (leaf.dtype for path, leaf in paths.items() if path.endswith(".kernel_codes"))
    found = next(codes, None)
    names = {dtype: name for name, (dtype, _) in _CODES.items()}
    return None if found is None else names[np.dtype(found)]


def refuse_quantized(paths: dict[str, Any], name: str) -> None:
    """Refuse the arrays of a quantised state where weights are needed.

    Raises:
      ValueError: calling the state ``name``.
    """
    if quantization := quantization_of(paths):
        raise ValueError(
            f"{name}: expected floating-point weights, got those of quantization="
            f"{quantization!r}; load the model without quantization"
        )


def quantize_kernel(kernel: np.ndarray, quantization: str) -> Quantized:
    """Convert a weight to 8 bits, with a scale per output channel.

    Args:
      kernel: (in, …) of any float dtype.
      quantization: one of ``QUANTIZATIONS``.

    Returns:
      Codes (…, in) and scales (…): products contract both operands over their last axes, as the
      8-bit units of GPUs require.
    """
    dtype, most = _CODES[quantization]
    weight = np.moveaxis(np.asarray(kernel, np.float32), 0, -1)
    scale = np.maximum(np.abs(weight).max(axis=-1), _LEAST) / np.float32(most)
    scaled = weight / scale[..., None]
    codes = np.rint(scaled) if quantization == "int8" else scaled
    return Quantized(np.ascontiguousarray(codes.astype(dtype)), scale)


def abstract_quantized(kernel: jax.ShapeDtypeStruct, quantization: str) -> Quantized:
    """Return the shapes and dtypes of what ``quantize_kernel`` returns."""
    dtype, _ = _CODES[quantization]
    size, *out = kernel.shape
    return Quantized(
        jax.ShapeDtypeStruct((*out, size), dtype), jax.ShapeDtypeStruct(tuple(out), jnp.float32)
    )


def quantize_tokens(x: jax.Array, dtype: Any) -> Quantized:
    """Convert activations to 8 bits, with a scale per token.

    Args:
      x: (B, T, in) of any float dtype.
      dtype: of the codes, int8 or float8_e4m3fn.

    Returns:
      Codes (B, T, in) and scales (B, T); of a token of zeros the codes are zero.
    """
    (most,) = (most for own, most in _CODES.values() if own == dtype)
    x = x.astype(jnp.float32)
    largest = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), _LEAST)
    # One division per token, and none per value.
    scaled = x * (np.float32(most) / largest)
    codes = jnp.rint(scaled) if dtype == jnp.int8 else scaled
    return Quantized(codes.astype(dtype), largest[..., 0] / np.float32(most))


@jax.custom_jvp
def quantized_product(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiply activations by a weight in 8 bits.

    Args:
      x: (B, T, in) of any float dtype.
      codes: int8 or float8_e4m3fn (out, in) or (parts, out, in), of ``quantize_kernel``.
      scale: float32 (out,) or (parts, out).

    Returns:
      float32 (B, T, out) or (B, T, parts, out).

    Raises:
      ValueError: where it is differentiated; rounding has no useful gradient.
    """
    tokens = quantize_tokens(x, codes.dtype)
    sums = _sums(tokens.codes, codes)
    by_token = tokens.scale.reshape(*tokens.scale.shape, *(1 for _ in scale.shape))
    return sums * by_token * scale[None, None]


@quantized_product.defjvp
def _refuse_gradient(_primals, _tangents):
    raise ValueError(
        "quantization: expected None where gradients are computed, a product in 8 bits has none"
    )


def _sums(left: jax.Array, right: jax.Array) -> jax.Array:
    """Contract the last axes of two arrays of codes, to float32."""
    letters = "po" if right.ndim == 3 else "o"
    subscripts = f"bti,{letters}i->bt{letters}"
    if left.dtype == jnp.int8:
        sums = jnp.einsum(subscripts, left, right, preferred_element_type=jnp.int32)
        return sums.astype(jnp.float32)

    def product(dtype: Any):
        def contract(left: jax.Array, right: jax.Array) -> jax.Array:
            sums = jnp.einsum(subscripts, left, right, preferred_element_type=dtype)
            return sums.astype(jnp.float32)

        return contract

    # As ``matmul.einsum`` rounds sums there: half the bytes on their way through memory.
    return by_platform(left, right, cpu=product(jnp.float32), default=product(jnp.bfloat16))
