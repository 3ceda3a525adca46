"""Dropout, for training: the same key drops the same values, whenever it is computed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
    """A dropout rate and the PRNG key that selects the dropped values.

    Attributes:
      key: a JAX PRNG key.
      rate: share of the values that become zero, from 0 to below 1; the others are divided by
        1 - rate.
    """

    key: jax.Array
    rate: float

    def fold(self, number: jax.Array | int) -> Dropout:
        """Return the dropout of a numbered point of the network, with a key of its own."""
        return self._replace(key=jax.random.fold_in(self.key, number))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drop values of x, of any shape and dtype."""
        keep = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def drop(dropout: Dropout | None, number: int, x: jax.Array) -> jax.Array:
    """Apply dropout at a numbered point of the network; None returns x unchanged."""
    return x if dropout is None else dropout.fold(number)(x)
