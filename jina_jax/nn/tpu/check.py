"""Start-up check: a kernel computes on this TPU what the reference computes.

Interpretation on CPU shows that a kernel's formulas are right, not what a TPU's compiler makes of
them. So before a kernel is used on a device for the first time in a process, it computes one row,
and is not used if it differs or fails.
"""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np

from jina_jax.nn.attention import blocked_attention
from jina_jax.nn.protocol import REFERENCE, Kernels, Rows, by_heads
from jina_jax.nn.rope import rotary_angles
from jina_jax.nn.tpu.attention import LONGEST_WHOLE, attention, prepare

# Relative to the reference's values. Kernels in bfloat16 differ by 0.004, in float32 by less; a
# rotation to the wrong side, or a text that sees another, by 0.1 and more.
_LARGEST = 0.02
_HEADS, _HEAD_DIM = 4, 64


@functools.cache
def refusal(tokens: int, dtype: str, device: jax.Device) -> str | None:
    """Return why attention is not to be used on a device, or None if it may be.

    Args:
      tokens: T of the row that is computed, which decides on the kernel; see ``row_of``.
      dtype: of the weights.
      device: of this process.
    """
    run = functools.partial(attention, interpret=device.platform != "tpu")
    try:
        found = _compute(Kernels(run, prepare), tokens, dtype, device)
        expected = _compute(Kernels(by_heads(blocked_attention)), tokens, dtype, device)
    except Exception as error:  # whatever a compiler or a device says is the reason
        return _failure(error, device)
    return _difference(found, expected, device)


def _failure(error: Exception, device: jax.Device) -> str:
    return f"fails on {device.device_kind}: {type(error).__name__}: {str(error)[:300]}"


def _difference(found: np.ndarray, expected: np.ndarray, device: jax.Device) -> str | None:
    difference = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    if difference <= _LARGEST:  # False for NaN
        return None
    return f"differs from the reference on {device.device_kind}, by {difference:.2g} of its values"


@functools.cache
def norm_refusal(device: jax.Device) -> str | None:
    """Return why sums and norms are not to be one kernel on a device, or None if they may be."""
    from jina_jax.nn.tpu.norm import pallas_sum_norm

    kernel = functools.partial(pallas_sum_norm, interpret=device.platform != "tpu")
    kernels = REFERENCE._replace(sum_norm=kernel)
    return _refusal_of_layer(kernels, device)


@functools.cache
def fused_refusal(device: jax.Device) -> str | None:
    """Return why a layer is not to be two kernels on a device, or None if it may be."""
    from jina_jax.nn.tpu.fused import fused_layer

    kernel = functools.partial(fused_layer, interpret=device.platform != "tpu")
    return _refusal_of_layer(Kernels(prepare=prepare, layer=kernel), device)


def _refusal_of_layer(kernels: Kernels, device: jax.Device) -> str | None:
    """Compare a layer of random weights, with tasks, computed by kernels and by the reference."""
    from jina_jax.nn.tpu.sample import layer_output

    try:
        found, expected = (layer_output(form, device) for form in (kernels, REFERENCE))
    except Exception as error:  # as in ``refusal``
        return _failure(error, device)
    return _difference(found, expected, device)


def row_of(tokens: int) -> int:
    """Return the length of the row to check the kernel by that takes rows of T tokens."""
    return 512 if tokens <= LONGEST_WHOLE else 2048


def _compute(kernels: Kernels, tokens: int, dtype: str, device: jax.Device) -> np.ndarray:
    """Compute a row of texts of odd lengths, and some padding, as float32 (T, N · H)."""
    random = np.random.default_rng(0)
    qkv = random.standard_normal((1, tokens, 3, _HEADS * _HEAD_DIM), np.float32)
    cuts = [0, 3, tokens // 3 + 1, tokens - 37, tokens]
    ids, positions = np.zeros((2, 1, tokens), np.int32)
    for number, (start, stop) in enumerate(itertools.pairwise(cuts), start=1):
        ids[0, start:stop] = number % 4  # the last one is padding
        positions[0, start:stop] = np.arange(stop - start)

    def run(qkv, ids, positions) -> jax.Array:
        rows = Rows(ids > 0, ids, rotary_angles(positions, _HEAD_DIM, 10000.0))
        return kernels.attention(qkv, _HEAD_DIM, dtype, kernels.prepare(rows)).astype("float32")

    operands = jax.device_put((qkv, ids, positions), device)
    # Compiled first, so that a caller that is being traced makes no difference.
    return np.asarray(jax.jit(run).lower(*operands).compile()(*operands))[0]
