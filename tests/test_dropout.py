"""Dropout by itself, and its places in the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, write_tiny

from jina_jax import compiler_options
from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.dropout import Dropout, drop
from jina_jax.nn.encoder import abstract_encoder

LAYERS = 2
# Unoptimised programs compile in half the time.
FAST = {"xla_backend_optimization_level": 0, **compiler_options()}
IDS = np.random.default_rng(0).integers(4, 100, (3, 12)).astype(np.int32)
MASK = np.arange(12) < np.array([12, 7, 10])[:, None]
ALMOST_ONE = 1 - 1e-7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    size = {**TINY, "layers": LAYERS}
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("model"), size))


def encoder(checkpoint, scan_layers=False):
    """Return a function from dropout to ``EncoderOutput``."""
    graph, _ = abstract_encoder(checkpoint.config, scan_layers=scan_layers)
    state = to_state(checkpoint.config, checkpoint.tensors, scan_layers=scan_layers)

    def run(dropout):
        return nnx.merge(graph, state)(IDS, MASK, output_hidden_states=True, dropout=dropout)

    return run


@pytest.fixture(scope="module")
def run(checkpoint):
    return encoder(checkpoint)


@pytest.fixture(scope="module")
def hidden_states(run):
    """A jitted function of key and rate: (L + 1, B, T, D)."""
    return jax.jit(
        lambda key, rate: jnp.stack(run(Dropout(key, rate)).hidden_states), compiler_options=FAST
    )


@pytest.fixture(scope="module")
def plain(run):
    """What it is without dropout."""
    return np.asarray(jax.jit(lambda: jnp.stack(run(None).hidden_states), compiler_options=FAST)())


# ---------------------------------------------------------------- by itself


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_share_becomes_zero_and_the_rest_makes_up_for_it(rate, dtype):
    x = np.full((200, 500), 3.0).astype(dtype)
    dropped = Dropout(jax.random.key(1), rate)(jnp.asarray(x))
    assert dropped.dtype == dtype
    assert dropped.shape == x.shape
    values, counts = np.unique(np.asarray(dropped, np.float64), return_counts=True)
    np.testing.assert_allclose(values, [0, 3 / (1 - rate)], rtol=2**-8)
    # Six standard deviations of 100,000 draws.
    assert abs(counts[0] / x.size - rate) < 6 * (rate * (1 - rate) / x.size) ** 0.5


def test_rate_zero_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (50,))
    np.testing.assert_array_equal(Dropout(jax.random.key(1), 0.0)(x), x)


def test_values_are_decided_by_the_key():
    x = jnp.ones((64, 64))
    dropout = Dropout(jax.random.key(3), 0.5)
    np.testing.assert_array_equal(dropout(x), jax.jit(lambda x: dropout(x))(x))
    others = [Dropout(jax.random.key(4), 0.5), dropout.fold(0), dropout.fold(1)]
    masks = [np.asarray(d(x)) > 0 for d in (dropout, *others)]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert 0.4 < (mask == other).mean() < 0.6  # as two fair coins


def test_drop_is_the_fold_of_its_place():
    x, dropout = jnp.ones((8, 8)), Dropout(jax.random.key(3), 0.5)
    np.testing.assert_array_equal(drop(dropout, 5, x), dropout.fold(5)(x))
    assert drop(None, 5, x) is x


def test_gradient_passes_where_values_were_kept():
    x, dropout = jnp.ones((8, 8)), Dropout(jax.random.key(3), 0.5)
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x).sum())(x), dropout(x))


# ---------------------------------------------------------------- in the encoder


def test_mean_over_many_keys_is_the_value_without_dropout(run, plain):
    rate, count = 0.1, 300
    keys = jax.random.split(jax.random.key(7), count)
    embedded = jax.jit(jax.vmap(lambda key: run(Dropout(key, rate)).hidden_states[0]))(keys)
    first = np.asarray(embedded)[:, MASK]
    # Each is x / 0.9 with probability 0.9: a standard deviation of |x| / 3. The mean has six.
    assert (
        np.abs(first.mean(axis=0) - plain[0, MASK]) <= 2 * np.abs(plain[0, MASK]) / count**0.5
    ).all()
    assert np.abs(first[0] - plain[0, MASK]).max() > 0.1


def test_almost_no_dropout_is_none(hidden_states, plain):
    found = np.asarray(hidden_states(jax.random.key(0), 1e-12))
    np.testing.assert_allclose(found[:, MASK], plain[:, MASK], atol=1e-5)


def test_only_embeddings_and_what_sub_layers_add_is_dropped(checkpoint, hidden_states):
    """With all of it dropped, layers normalise their input twice, and nothing else is left."""
    found = hidden_states(jax.random.key(0), ALMOST_ONE)
    x = np.zeros(TINY["width"])
    np.testing.assert_array_equal(found[0], np.broadcast_to(x, found[0].shape))
    for layer in range(LAYERS):
        for norm in ("norm1", "norm2"):
            scale, bias = (
                np.asarray(checkpoint.tensors[f"layers.{layer}.{norm}.{leaf}"].read(), np.float64)
                for leaf in ("scale", "bias")
            )
            x = (x - x.mean()) / np.sqrt(x.var() + checkpoint.config.layer_norm_eps) * scale + bias
        np.testing.assert_allclose(found[layer + 1], np.broadcast_to(x, found[0].shape), atol=1e-5)


def test_every_place_drops_other_values(run, monkeypatch):
    seen = []

    def spy(dropout, x):
        seen.append(jax.random.key_data(dropout.key))
        return x

    def keys(key):
        run(Dropout(key, 0.5))
        return jnp.stack(seen)

    monkeypatch.setattr(Dropout, "__call__", spy)
    found = jax.jit(keys)(jax.random.key(0))
    assert len(found) == 1 + 2 * LAYERS
    assert len(np.unique(found, axis=0)) == len(found)


def test_looped_and_scanned_layers_drop_the_same(checkpoint, hidden_states, plain):
    scanned = encoder(checkpoint, scan_layers=True)
    states = jax.jit(
        lambda key: jnp.stack(scanned(Dropout(key, 0.3)).hidden_states), compiler_options=FAST
    )
    key = jax.random.key(5)
    looped = np.asarray(hidden_states(key, 0.3))[:, MASK]
    np.testing.assert_allclose(np.asarray(states(key))[:, MASK], looped, atol=1e-5)
    assert np.abs(looped - plain[:, MASK]).max() > 0.1
