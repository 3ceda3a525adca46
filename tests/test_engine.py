"""Compiled steps: what they are made of, and how many are under way."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import write_tiny

from jina_jax import make_mesh
from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.runtime.batching import CompleteBatching
from jina_jax.runtime.compiling import platform_of
from jina_jax.runtime.engine import Engine, Program, Step
from jina_jax.runtime.packing import make_batches
from jina_jax.runtime.sharding import abstract_state

ROWS = CompleteBatching(token_budget=32)
IDS = [[0, *range(4, 4 + size), 2] for size in (30, 22, 25, 3, 12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def state(checkpoint):
    return to_state(checkpoint.config, checkpoint.tensors)


@pytest.fixture
def engine(checkpoint, state):
    return Engine(checkpoint.config, state)


# ---------------------------------------------------------------- programs


def test_inputs_of_a_program():
    def shapes(*program):
        inputs = Program(*program).inputs()
        assert {leaf.dtype for leaf in jax.tree.leaves(inputs)} == {np.dtype(np.int32)}
        return tuple(leaf if leaf is None else leaf.shape for leaf in inputs)

    assert shapes(4, 64, 8, 16, True, "mean") == ((4, 64), (4, 8, 2), (4, 8), (4, 16, 2))
    assert shapes(4, 64, 1, None, False, None) == ((4, 64), (4, 1, 2), None, None)


def test_a_program_is_compiled_once_and_depends_on_shape_tasks_spans_and_pooling(engine):
    (batch,) = make_batches(IDS[3:4], ROWS, 1)
    assert batch.shape == (1, 16, 1)
    tasks, spans = np.zeros((1, 1), np.int32), np.array([[[0, 1], [1, 3]]], np.int32)
    counts = []
    for step in [
        Step(batch, "mean"),
        Step(batch, "mean"),
        Step(batch, "mean", tasks),
        Step(batch, "mean", None, spans),
        Step(batch, "cls", None, spans),
        Step(batch, None),
        Step(batch, None),
    ]:
        ((done, output),) = engine.run([step])
        assert engine.is_compiled(step.program)
        assert done is step
        assert output.dtype == np.float32
        counts.append((engine.compiled, output.shape))
    assert counts == [
        (1, (1, 1, 64)),
        (1, (1, 1, 64)),
        (2, (1, 1, 64)),
        (3, (1, 2, 64)),
        (4, (1, 2, 64)),
        (5, (1, 16, 64)),
        (5, (1, 16, 64)),
    ]


def test_pooling_is_that_of_the_token_vectors(engine):
    (batch,) = make_batches(IDS[3:4], ROWS, 1)
    spans = np.array([[[0, 5], [2, 3]]], np.int32)
    ((_, tokens),) = engine.run([Step(batch, None)])
    for step, expected in [
        (Step(batch, "mean"), [tokens[0, :5].mean(0)]),
        (Step(batch, "cls"), [tokens[0, 0]]),
        (Step(batch, "mean", None, spans), [tokens[0, :5].mean(0), tokens[0, 2]]),
    ]:
        ((_, output),) = engine.run([step])
        np.testing.assert_allclose(output[0], expected, atol=1e-5)


def test_compile_ahead_in_threads(engine, monkeypatch):
    together = threading.Barrier(3)
    lower = Engine.lower

    def waiting(self, program):
        together.wait(30)
        return lower(self, program)

    monkeypatch.setattr(Engine, "lower", waiting)
    programs = [Program(1, tokens, 1, None, False, "mean") for tokens in (16, 24, 32)]
    engine.compile(programs, threads=3)
    assert engine.compiled == 3
    engine.compile(programs)
    assert engine.compiled == 3
    list(engine.run([Step(batch, "mean") for batch in make_batches(IDS[:1], ROWS, 1)]))
    assert engine.compiled == 3


@pytest.mark.parametrize("model", [1, 2])
def test_programs_can_be_lowered_without_weights(checkpoint, model):
    mesh = make_mesh(model)
    state = abstract_state(checkpoint.config, "bfloat16", mesh, scan_layers=False)
    engine = Engine(checkpoint.config, state, mesh=mesh)
    assert (engine.platform, engine.dtype) == ("cpu", "bfloat16")
    assert engine.row_multiple == 8 // model
    compiled = engine.lower(Program(8, 16, 2, None, True, "mean")).compile()
    assert engine.compiled == 0  # it cannot be run
    # A pair of matmuls costs one sum over devices, and splitting rows none.
    assert compiled.as_text().count(" all-reduce(") == (0 if model == 1 else 2)


# ---------------------------------------------------------------- steps


def test_steps_come_in_order_and_a_few_are_under_way(engine, monkeypatch):
    started, seen = [], []
    start = Engine._start

    def noted(self, step):
        started.append(step)
        return start(self, step)

    monkeypatch.setattr(Engine, "_start", noted)
    steps = [Step(batch, "mean") for batch in make_batches(IDS, ROWS, 1)]
    assert len(steps) == 4
    for step, _ in engine.run(iter(steps)):
        seen.append((step is steps[len(seen)], len(started)))
    assert seen == [(True, 3), (True, 4), (True, 4), (True, 4)]
    assert list(engine.run([])) == []
    started.clear()
    assert [len(started) for _ in engine.run(iter(steps), in_flight=0)] == [1, 2, 3, 4]


def test_an_error_in_the_steps_comes_through(engine):
    (batch,) = make_batches(IDS[3:4], ROWS, 1)

    def steps():
        yield Step(batch, "mean")
        raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        list(engine.run(steps()))


# ---------------------------------------------------------------- devices and kernels


@pytest.mark.parametrize(("asked", "name"), [(None, "blocked"), ("reference", "reference")])
def test_kernel_is_the_one_asked_for(checkpoint, state, asked, name, monkeypatch):
    engine = Engine(checkpoint.config, state, attn_implementation=asked)
    choice = engine.choose_kernels(Program(1, 16, 1, None, False, None))
    assert (choice.name, choice.refusals) == (name, {})
    used = []

    def attention(qkv, *others):
        used.append(qkv.shape)
        return choice.kernels.attention(qkv, *others)

    kernels = choice.kernels._replace(attention=attention)
    monkeypatch.setattr(Engine, "choose_kernels", lambda *_: choice._replace(kernels=kernels))
    engine.lower(Program(3, 16, 2, None, False, "mean"))
    assert used == [(3, 16, 3, 64)]


def test_a_kernel_that_can_never_run_is_refused_at_once(checkpoint, state):
    message = "attn_implementation='pallas': needs a TPU, the platform is 'cpu'"
    with pytest.raises(ValueError, match=message):
        Engine(checkpoint.config, state, attn_implementation="pallas")


def test_platform_of():
    array = jnp.zeros(1)
    assert platform_of(array) == "cpu"
    assert platform_of(jax.ShapeDtypeStruct((1,), jnp.float32, sharding=array.sharding)) == "cpu"
