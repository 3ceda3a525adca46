"""The fused kernels of a layer, interpreted on CPU, against the layer that XLA composes."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from published import SMALL, published_config

from jina_jax.config import Config
from jina_jax.nn.encoder import Context
from jina_jax.nn.joined import JoinedLayer
from jina_jax.nn.protocol import REFERENCE, Rows
from jina_jax.nn.rope import rotary_angles
from jina_jax.nn.tpu import heads
from jina_jax.nn.tpu.fused import does_not_suit, fused_layer
from jina_jax.nn.tpu.norm import pallas_sum_norm

SIZE = {**SMALL, "width": 256, "heads": 4, "inner": 512}
FIELDS = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
CONFIG = Config.from_dict({**published_config(SIZE), **FIELDS})


def make_layer(dtype):
    """A layer of random weights, none of them zero."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(JoinedLayer(CONFIG, dtype=dtype, rngs=None, groups=1))

    def draw(leaf):
        values = rng.standard_normal(leaf.shape)
        values *= leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 1
        return jnp.asarray(values, dtype)

    layer = nnx.merge(graph, jax.tree.map(draw, state))
    used = CONFIG.num_tasks * CONFIG.lora_rank
    for norm in (layer.norm1, layer.norm2):
        norm.lora_a[...] = norm.lora_a[...].at[:, used:].set(0)
    return layer


def inputs(rows, tokens, tasks, dtype):
    """x, and two contexts: of the plain layer, and of the kernels."""
    rng = np.random.default_rng(1)
    segments = np.ones((rows, tokens), np.int32)
    segments[0, 37:] = 2
    segments[0, tokens - 11 :] = 0
    segments = jnp.asarray(segments)
    angles = rotary_angles(jnp.arange(tokens)[None], 64, 20000.0)
    ids, x = None, rng.standard_normal((rows, tokens, 256))
    if tasks == "mixed":
        ids = jnp.asarray(rng.integers(-1, CONFIG.num_tasks, (rows, tokens)), jnp.int32)
    elif tasks == "one":
        ids = jnp.full((rows, tokens), 3, jnp.int32)
    if ids is not None:
        own = np.repeat(np.arange(CONFIG.num_tasks), CONFIG.lora_rank) == np.asarray(ids)[..., None]
        low = np.where(own, rng.standard_normal((rows, tokens, own.shape[-1])), 0)
        x = np.concatenate((x, np.pad(low, ((0, 0), (0, 0), (0, 128 - own.shape[-1])))), -1)
    plain = Context(Rows(segments > 0, segments, angles), True, None, REFERENCE, ids)
    prepared = SimpleNamespace(segments=segments, table=heads.angle_table(*angles))
    kernels = REFERENCE._replace(layer=functools.partial(fused_layer, interpret=True))
    return jnp.asarray(x, dtype), plain, plain._replace(rows=prepared, kernels=kernels)


CASES = [(2, 128, "mixed"), (1, 384, "one"), (3, 256, None)]


@pytest.mark.parametrize(("rows", "tokens", "tasks"), CASES)
def test_float32_equals_the_composed_layer(rows, tokens, tasks):
    layer = make_layer(jnp.float32)
    x, plain, fused = inputs(rows, tokens, tasks, jnp.float32)
    np.testing.assert_allclose(run(layer, x, fused), run(layer, x, plain), atol=2e-4)


def test_bfloat16_is_as_near_to_float32_as_the_composed_layer():
    exact = run(make_layer(jnp.float32), *inputs(2, 128, "mixed", jnp.float32)[:2])
    layer, (x, plain, fused) = make_layer(jnp.bfloat16), inputs(2, 128, "mixed", jnp.bfloat16)
    rounding, other = (np.linalg.norm(run(layer, x, context) - exact) for context in (plain, fused))
    assert 0 < other < 1.1 * rounding


def test_mesh_of_data_changes_nothing():
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 1), ("data", "model"), axes, devices=jax.devices()[:2])
    layer, (x, _, fused) = make_layer(jnp.bfloat16), inputs(2, 128, "mixed", jnp.bfloat16)
    split = functools.partial(fused_layer, interpret=True, mesh=mesh)
    over = fused._replace(kernels=fused.kernels._replace(layer=split))
    np.testing.assert_array_equal(run(layer, x, over), run(layer, x, fused))


def run(layer, x, context):
    return np.asarray(jax.jit(layer)(x, context), np.float64)


def test_what_does_not_suit():
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((1, 2), ("data", "model"), axes, devices=jax.devices()[:2])
    assert does_not_suit(512, None) is None
    assert does_not_suit(1024, None) is None
    assert "these have 2048" in does_not_suit(2048, None)
    assert "these have 64" in does_not_suit(64, None)
    assert "these are on 2" in does_not_suit(512, mesh)


@pytest.mark.parametrize("tasks", ["mixed", None])
@pytest.mark.parametrize("form", ["fused", "composed"])
def test_declared_bytes_are_operands_and_results_once(form, tasks):
    layer, (x, plain, fused) = make_layer(jnp.bfloat16), inputs(2, 128, tasks, jnp.bfloat16)
    norm = functools.partial(pallas_sum_norm, interpret=True)
    context = plain._replace(kernels=REFERENCE._replace(sum_norm=norm))
    context = fused if form == "fused" else context
    calls = list(pallas_calls(jax.make_jaxpr(layer)(x, context).jaxpr))
    assert len(calls) == 2
    for call in calls:
        arrays = {*call.invars, *call.outvars}
        once = sum(array.aval.size * array.aval.dtype.itemsize for array in arrays)
        # Without tasks a kernel reads W of [W ; B] and of [W | A].
        unread = 0
        if form == "fused" and tasks is None:
            first, second = call.invars[-6], call.invars[-4]
            unread = 2 * 128 * (first.aval.shape[1] + second.aval.shape[0])
        assert call.params["cost_estimate"].bytes_accessed == once - unread


def pallas_calls(jaxpr):
    """Find the kernels of a program, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from pallas_calls(inner)
