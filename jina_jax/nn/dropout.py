"""Dropout, for training: the same key gives the same zeros, whenever it is computed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
    """A rate and the key that decides where it strikes.

    Attributes:
      key: a JAX PRNG key.
      rate: share of the values that become zero, from 0 to below 1; the others are scaled up to
        make up for them.
    """

    key: jax.Array
    rate: float

    def fold(self, number: jax.Array | int) -> Dropout:
        """Return one for another place of the network."""
        return self._replace(key=jax.random.fold_in(self.key, number))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drop values of x, of any shape and dtype."""
        keep = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def drop(dropout: Dropout | None, number: int, x: jax.Array) -> jax.Array:
    """Apply dropout at a numbered place of the network; None leaves x as it is."""
    return x if dropout is None else dropout.fold(number)(x)
