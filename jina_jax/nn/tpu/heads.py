"""Two heads of 64 in the 128 lanes of a TPU's vectors: rotation, products, softmax.

Slices at a multiple of 128 lanes cost nothing; a head of 64 would be half a vector. So a kernel
works on pairs of heads. One head's scores are a product in which the other head's lanes of the
queries are zero: a matrix unit contracts 128 lanes at once anyway.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
HEAD_DIM = 64
# Finite, so that every query has a key: padding attends to padding.
MASKED = -1e30
_HALF = HEAD_DIM // 2
# The softmax is computed by powers of two: TPUs have them, and queries are scaled anyway.
SCALE = np.float32(HEAD_DIM**-0.5 * np.log2(np.e))


def angle_table(cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Join cosine and sine, float32 (B, T, 32), to rows of 128 lanes: cos, cos, -sin, sin."""
    return jnp.concatenate((cos, cos, -sin, sin), axis=-1)


def angles_of(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine, (B, T, 32), of a table."""
    return table[..., :_HALF], table[..., -_HALF:]


def spread(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the factors of a pair of heads, (T, 128) each: cosines, and sines with their signs."""
    swapped = pltpu.roll(table, HEAD_DIM, 1)
    first = is_first(table.shape)
    return jnp.where(first, table, swapped), jnp.where(first, swapped, table)


def rotate(pair: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate a pair of heads, (T, 128), to float32."""
    pair = pair.astype(jnp.float32)
    lane = jax.lax.broadcasted_iota(jnp.int32, pair.shape, 1)
    in_first_half = (lane & (HEAD_DIM - 1)) < _HALF
    # The other half of the same head.
    turned = jnp.where(
        in_first_half, pltpu.roll(pair, LANES - _HALF, 1), pltpu.roll(pair, _HALF, 1)
    )
    return pair * cos + turned * sin


def is_first(shape: tuple[int, ...]) -> jax.Array:
    """Mark the lanes of the first head of a pair."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) < HEAD_DIM


def apart(pair: jax.Array, other: float) -> tuple[jax.Array, jax.Array]:
    """Return each head of a pair, with a number in the lanes of the other one."""
    first, filler = is_first(pair.shape), jnp.full_like(pair, other)
    return jnp.where(first, pair, filler), jnp.where(first, filler, pair)


def joined(first: jax.Array, second: jax.Array) -> jax.Array:
    """Divide two heads' sums by their weights' sums, and return them as a pair.

    Values were taken ``apart`` with 1 in the other head's lanes, which are sums of weights now.
    """
    first, second = (sums / pltpu.roll(sums, HEAD_DIM, 1) for sums in (first, second))
    return jnp.where(is_first(first.shape), first, second)


def scores(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """Multiply queries (Q, 128) by keys (C, 128), and add what masks other texts: (Q, C)."""
    contracted = (((1,), (1,)), ((), ()))
    return _dot(query, key, contracted) + bias


def weighted(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Sum values (C, 128) by weights (Q, C), rounded to the values' dtype: float32 (Q, 128)."""
    return _dot(weights.astype(value.dtype), value, (((1,), (0,)), ((), ())))


def _dot(left: jax.Array, right: jax.Array, dimensions) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left, right, dimensions, precision=exact, preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """Turn (1, Q) into (Q, 1)."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def masking(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """Return what to add to scores, (Q, C): 0 within a text. Numbers are (Q, 1) and (1, C)."""
    same = query_segments == key_segments
    return jnp.where(same, jnp.float32(0.0), jnp.float32(MASKED))


def cost(qkv: jax.Array, *others: jax.Array) -> pl.CostEstimate:
    """Estimate attention over whole rows: every operand and the result are in memory once."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    result = batch * tokens * width * qkv.dtype.itemsize
    return pl.CostEstimate(
        flops=4 * batch * tokens**2 * width,
        transcendentals=batch * tokens**2 * width // HEAD_DIM,
        bytes_accessed=result + sum(a.size * a.dtype.itemsize for a in (qkv, *others)),
    )
