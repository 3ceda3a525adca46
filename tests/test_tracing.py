"""Programs for one platform: what they trace, and that they compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, write_tiny

from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.protocol import REFERENCE
from jina_jax.nn.tracing import by_platform, traced_for, traced_once
from jina_jax.runtime.compiling import jit
from jina_jax.runtime.engine import Engine, Program

LAYERS = 3
PROGRAM = Program(2, 16, 2, None, True, "mean")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    checkpoint = open_checkpoint(
        write_tiny(tmp_path_factory.mktemp("model"), {**TINY, "layers": LAYERS})
    )
    state = to_state(checkpoint.config, checkpoint.tensors)
    return Engine(checkpoint.config, state, attn_implementation="reference")


def test_a_program_has_one_layer_which_it_calls_for_each(engine):
    text = engine.lower(PROGRAM).as_text()
    assert text.count("func.func private @layer(") == 1
    assert text.count("call @layer(") == LAYERS
    assert "@layer_" not in text  # as JAX would name a second one
    assert "stablehlo.case" not in text  # a choice between platforms


def test_a_program_computes_the_same_as_one_of_whole_layers_and_all_platforms(engine):
    fast = {"xla_backend_optimization_level": 0}
    options = {"pooling": "mean", "kernels": REFERENCE, "project": False}
    whole = jit(encode_batch, "cpu", static_argnames=("graph", *options)).lower(
        engine.graph, engine.state, PROGRAM.inputs(), **options
    )
    assert "stablehlo.case" in whole.as_text()
    ids = np.random.default_rng(0).integers(4, 60, (2, 16)).astype(np.int32)
    spans = np.array([[[0, 5], [5, 16]], [[0, 9], [0, 0]]], np.int32)
    inputs = Inputs(ids, spans, np.array([[0, -1], [3, -1]], np.int32))
    found, expected = (
        np.asarray(lowered.compile(fast)(engine.state, inputs))
        for lowered in (engine.lower(PROGRAM), whole)
    )
    np.testing.assert_array_equal(found, expected)
    assert np.abs(expected[:, 0]).min() > 0


# ---------------------------------------------------------------- by platform


def platform_of_form(x):
    """Return x, named after the form."""
    return by_platform(
        x, cuda=lambda x: {"cuda": x}, tpu=lambda x: {"tpu": x}, default=lambda x: {"default": x}
    )


@pytest.mark.parametrize(("platform", "form"), [("cpu", "default"), ("tpu", "tpu")])
def test_a_known_platform_traces_its_own_form(platform, form):
    with traced_for(platform):
        traced = jax.make_jaxpr(platform_of_form)(1.0)
        assert not traced.eqns
        assert list(jax.eval_shape(platform_of_form, 1.0)) == [form]


@pytest.mark.parametrize("platform", [None, "gpu"])
def test_others_trace_every_form(platform):
    def run(x):
        return by_platform(x, cuda=jnp.sin, cpu=jnp.cos, default=jnp.tan)

    def traced():
        return str(jax.make_jaxpr(run)(1.0))

    if platform is None:
        text = traced()
    else:
        with traced_for(platform):
            text = traced()
    assert all(f" {name} " in text for name in ("sin", "cos", "tan"))
    np.testing.assert_array_equal(jax.jit(run)(1.0), jnp.cos(1.0))


def test_what_was_traced_for_one_platform_is_not_reused_for_another():
    @jax.jit
    def run(x):
        return by_platform(x, tpu=lambda x: x + 1, default=lambda x: x + 2)

    def inner(x):
        return jax.lax.map(run, x)

    x, found = jnp.zeros(2), []
    for platform in ("cpu", "tpu", "cpu"):
        with traced_for(platform):
            found.append(str(jax.make_jaxpr(inner)(x)))
    assert found[0] == found[2] != found[1]
    np.testing.assert_array_equal(run(x), x + 2)


# ---------------------------------------------------------------- once


def test_outside_a_program_a_function_stays_as_it_is():
    def run(module, x):
        return module(x)

    assert traced_once(run) is run
    with traced_for("tpu"):  # where calls cost copies, see test_tpu_compiled
        assert traced_once(run) is run


def test_equal_modules_are_traced_once_and_have_their_own_arrays():
    modules = [nnx.Linear(4, 4, rngs=nnx.Rngs(seed)) for seed in range(3)]
    wider = nnx.Linear(4, 8, rngs=nnx.Rngs(3))
    traced = []

    def run(module, x, number):
        traced.append(number)
        return module(x) * number

    def all_of(x):
        once = traced_once(run)
        for number, module in enumerate((*modules, wider), start=1):
            x = once(module, x, number)
        return x

    x = np.ones((2, 4), np.float32)
    with traced_for("cpu"):
        found = jax.jit(all_of)(x)
    assert len(traced) == 2
    np.testing.assert_allclose(found, all_of(x), rtol=1e-6)
    assert len(traced) == 2 + 4
