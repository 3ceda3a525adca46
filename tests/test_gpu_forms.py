"""The forms that a GPU's programs take in the encoder, computed on CPU, equal the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published import SMALL, published_config

from jina_jax.config import Config
from jina_jax.nn.encoder import Encoder
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.matmul import einsum
from jina_jax.nn.parameters import from_dict, is_adapter, to_dict
from jina_jax.nn.protocol import REFERENCE

FIELDS = {"default_prompt": "", "add_pooling_layer": False, "emb_pooler": "mean"}
CONFIG = Config.from_dict({**published_config(SMALL), **FIELDS})
# Two rows of one text, and two rows of up to three.
PADDED = np.array([[[0, 16]], [[0, 9]]], np.int32)
PACKED = np.array([[[0, 5], [5, 6], [6, 14]], [[0, 16], [0, 0], [0, 0]]], np.int32)
TASKS = {"padded": np.array([[3], [-1]]), "packed": np.array([[4, -1, 0], [2, -1, -1]])}
SPANS = {"padded": PADDED, "packed": PACKED}


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a function to be called before a program is traced as for a GPU."""

    def select(*operands, default=None, **branches):
        return branches.get("cuda", default)(*operands)

    return lambda: monkeypatch.setattr(jax.lax, "platform_dependent", select)


def encoder(dtype):
    """Return graph and state of random weights, none of them zero."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(Encoder(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)))
    arrays = {
        path: array + jnp.asarray(0.1 * rng.standard_normal(array.shape), dtype)
        for path, array in to_dict(state).items()
    }
    return graph, state, arrays


def vectors_and_gradients(dtype, form, tasks):
    graph, abstract, arrays = encoder(dtype)
    ids = np.random.default_rng(1).integers(4, SMALL["vocab"], (2, 16)).astype(np.int32)
    task_ids = TASKS[form].astype(np.int32) if tasks else None
    inputs = Inputs(ids, SPANS[form], task_ids)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(64), jnp.float32)

    def total(arrays):
        state = from_dict(abstract, arrays)
        vectors = encode_batch(graph, state, inputs, pooling="mean", kernels=REFERENCE)
        return (vectors * weights[None, None]).sum(), vectors

    gradients, vectors = jax.jit(jax.grad(total, has_aux=True))(arrays)
    return np.asarray(vectors), {k: np.asarray(v, np.float32) for k, v in gradients.items()}


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_float32(on_gpu, form, tasks):
    expected, gradients = vectors_and_gradients(jnp.float32, form, tasks)
    on_gpu()
    vectors, found = vectors_and_gradients(jnp.float32, form, tasks)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    for path, gradient in gradients.items():
        largest = np.abs(gradient).max()
        assert (largest > 0) == (tasks or not is_adapter(path)), path
        np.testing.assert_allclose(found[path], gradient, atol=1e-4 * largest, err_msg=path)


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_bfloat16_is_as_near_to_float32_as_the_plain_form(on_gpu, form):
    exact, _ = vectors_and_gradients(jnp.float32, form, True)
    plain, _ = vectors_and_gradients(jnp.bfloat16, form, True)
    on_gpu()
    fused, _ = vectors_and_gradients(jnp.bfloat16, form, True)
    rounding, other = (np.linalg.norm(vectors - exact) for vectors in (plain, fused))
    assert other < 1.5 * rounding


def test_sums_are_rounded_once_and_only_where_asked(on_gpu):
    on_gpu()
    left, right = (jnp.full(shape, 1.0625, jnp.bfloat16) for shape in ((1, 3, 9), (9, 2)))
    exact = 9 * 1.0625**2
    subscripts = "bti,io->bto"
    np.testing.assert_array_equal(einsum(subscripts, left, right), np.float32(exact))
    rounded = einsum(subscripts, left, right, rounded=True)
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, jnp.bfloat16(exact).astype(jnp.float32))
    assert float(rounded[0, 0, 0]) != exact
