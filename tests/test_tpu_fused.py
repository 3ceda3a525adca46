"""The fused kernels of a layer, interpreted on CPU, against the layer that XLA composes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jina_jax.nn.encoder import Context
from jina_jax.nn.kernels import choose
from jina_jax.nn.protocol import REFERENCE
from jina_jax.nn.tpu import check, heads
from jina_jax.nn.tpu.attention import prepare
from jina_jax.nn.tpu.fused import fused_layer
from jina_jax.nn.tpu.norm import pallas_sum_norm
from jina_jax.nn.tpu.sample import layer_of, rows_of, x_of

TASK_IDS = {
    "mixed": lambda shape: np.random.default_rng(1).integers(-1, 3, shape),
    "one": lambda shape: np.full(shape, 2),
    None: lambda shape: None,
}


def inputs(rows, tokens, tasks, dtype):
    """x, and two contexts: of the layer that XLA composes, and of the kernels."""
    ids = TASK_IDS[tasks]((rows, tokens))
    given, x = rows_of(rows, tokens), x_of(rows, tokens, ids, dtype)
    ids = None if ids is None else jnp.asarray(ids, jnp.int32)
    plain = Context(given, True, None, REFERENCE, ids)
    kernels = REFERENCE._replace(layer=functools.partial(fused_layer, interpret=True))
    return x, plain, plain._replace(rows=prepare(given), kernels=kernels)


CASES = [(2, 128, "mixed"), (1, 384, "one"), (3, 256, None)]


@pytest.mark.parametrize(("rows", "tokens", "tasks"), CASES)
def test_float32_equals_the_composed_layer(rows, tokens, tasks):
    layer = layer_of(jnp.float32)
    x, plain, fused = inputs(rows, tokens, tasks, jnp.float32)
    np.testing.assert_allclose(run(layer, x, fused), run(layer, x, plain), atol=2e-4)


def test_bfloat16_is_as_near_to_float32_as_the_composed_layer():
    exact = run(layer_of(jnp.float32), *inputs(2, 128, "mixed", jnp.float32)[:2])
    layer, (x, plain, fused) = layer_of(jnp.bfloat16), inputs(2, 128, "mixed", jnp.bfloat16)
    rounding, other = (np.linalg.norm(run(layer, x, context) - exact) for context in (plain, fused))
    assert 0 < other < 1.1 * rounding


def test_mesh_of_data_changes_nothing():
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 1), ("data", "model"), axes, devices=jax.devices()[:2])
    layer, (x, _, fused) = layer_of(jnp.bfloat16), inputs(2, 128, "mixed", jnp.bfloat16)
    split = functools.partial(fused_layer, interpret=True, mesh=mesh)
    over = fused._replace(kernels=fused.kernels._replace(layer=split))
    np.testing.assert_array_equal(run(layer, x, over), run(layer, x, fused))


def run(layer, x, context):
    compute = jax.jit(lambda layer, x: layer(x, context))
    return np.asarray(compute(layer, x), np.float64)


def test_choice():
    fused = choose("tpu", "bfloat16", 512, 8, 64, None, "pallas_fused")
    assert fused.name == "pallas_fused"
    assert fused.kernels.layer is not None
    long = choose("tpu", "bfloat16", 2048, 8, 64, None, "pallas_fused")
    assert long.name == "pallas"
    assert long.kernels.layer is None
    assert "up to 1024 tokens, these have 2048" in long.refusals["pallas_fused"]
    mesh = jax.make_mesh((1, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[:2])
    for dtype, over, rule in (
        ("float32", None, "takes weights in bfloat16"),
        ("bfloat16", mesh, "takes all heads on one device, these are on 2"),
    ):
        with pytest.raises(ValueError, match=rule):
            choose("tpu", dtype, 512, 8, 64, over, "pallas_fused")
    with pytest.raises(ValueError, match="needs a TPU"):
        choose("cpu", "bfloat16", 512, 8, 64, None, "pallas_fused")


def test_start_up_checks(monkeypatch):
    device = jax.devices()[0]
    assert check.fused_refusal.__wrapped__(device) is None
    assert check.norm_refusal.__wrapped__(device) is None
    rotate = heads.rotate
    monkeypatch.setattr(heads, "rotate", lambda pair, cos, sin: rotate(pair, cos, -sin))
    assert "differs from the reference" in check.fused_refusal.__wrapped__(device)


@pytest.mark.parametrize("tasks", ["mixed", None])
@pytest.mark.parametrize("form", ["fused", "composed"])
def test_declared_bytes_are_operands_and_results_once(form, tasks):
    layer, (x, plain, fused) = layer_of(jnp.bfloat16), inputs(2, 128, tasks, jnp.bfloat16)
    norm = functools.partial(pallas_sum_norm, interpret=True)
    context = plain._replace(kernels=REFERENCE._replace(sum_norm=norm))
    context = fused if form == "fused" else context
    calls = list(pallas_calls(jax.make_jaxpr(lambda x: layer(x, context))(x).jaxpr))
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
