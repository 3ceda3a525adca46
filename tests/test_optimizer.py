"""The learning rate and AdamW against their formulas in float64."""

import jax
import numpy as np
import pytest

from jina_jax.training.optimizer import optimizer, schedule
from jina_jax.training.settings import Optimizer
from jina_jax.training.step import make_step

RATE = 0.1


def formula(step: int, steps: int, warmup: int) -> float:
    """Rise from 0 over the warm-up, then fall to 0 at the end."""
    if step < warmup:
        return RATE * step / warmup
    return RATE * (steps - step) / (steps - warmup)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 20), (100, 0), (7, 6), (1, 0), (10, 1)])
def test_schedule(steps, warmup):
    rate = schedule(Optimizer(learning_rate=RATE, steps=steps, warmup_steps=warmup))
    for step in range(steps + 1):
        assert float(rate(step)) == pytest.approx(formula(step, steps, warmup), abs=1e-8)
    assert float(rate(warmup)) == pytest.approx(RATE)
    assert float(rate(steps)) == 0.0
    assert float(rate(steps + 5)) == 0.0


def test_schedule_of_literal_steps():
    rate = schedule(Optimizer(learning_rate=2.0, steps=30, warmup_steps=10))
    found = [float(rate(step)) for step in (0, 5, 10, 15, 20, 30)]
    np.testing.assert_allclose(found, [0.0, 1.0, 2.0, 1.5, 1.0, 0.0], rtol=1e-6)


# ---------------------------------------------------------------- AdamW

DECAYED = ("layers.0.mlp.fc1.kernel", "word_embeddings.embedding", "layers.0.mlp.fc1.lora_b")
KEPT = ("layers.0.mlp.fc1.bias", "layers.0.norm1.scale", "mlm_head.decoder.bias")
STEPS = 12
# 1 - beta2 is off by 6e-5 of itself in float32, and a step by half of that.
TOLERANCE = 5e-5 * RATE


def adamw(parameters, gradients, settings):
    """AdamW (arXiv 1711.05101) on lists of float64 arrays by path; yields them after each step."""
    parameters = dict(parameters)
    first = dict.fromkeys(parameters, 0.0)
    second = dict.fromkeys(parameters, 0.0)
    for step, drawn in enumerate(gradients):
        norm = np.sqrt(sum(np.square(gradient).sum() for gradient in drawn.values()))
        limit = settings.max_grad_norm
        factor = 1.0 if limit is None or norm <= limit else limit / norm
        rate = formula(step, settings.steps, settings.warmup_steps)
        for path, value in parameters.items():
            gradient = factor * drawn[path]
            first[path] = settings.beta1 * first[path] + (1 - settings.beta1) * gradient
            second[path] = settings.beta2 * second[path] + (1 - settings.beta2) * gradient**2
            mean = first[path] / (1 - settings.beta1 ** (step + 1))
            square = second[path] / (1 - settings.beta2 ** (step + 1))
            decay = settings.weight_decay * value if path in DECAYED else 0.0
            parameters[path] = value - rate * (mean / (np.sqrt(square) + settings.epsilon) + decay)
        yield norm, dict(parameters)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3, "warmup_steps": 3},
        {"max_grad_norm": None, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.1},
    ],
)
def test_steps_are_those_of_adamw(options):
    settings = Optimizer(learning_rate=RATE, steps=STEPS, **options)
    rng = np.random.default_rng(0)
    paths = DECAYED + KEPT
    start = {path: rng.standard_normal((3, 4)) for path in paths}
    # Norms from 0.1 to 40, so that some are clipped.
    sizes = np.geomspace(0.01, 5, STEPS)
    gradients = [{path: size * rng.standard_normal((3, 4)) for path in paths} for size in sizes]

    def objective(trained, frozen, chunks, targets, key):
        return sum((trained[path] * targets[path]).sum() for path in paths)

    chain = optimizer(settings)
    step = make_step(objective, chain)
    trained = {path: jax.numpy.float32(array) for path, array in start.items()}
    state = chain.init(trained)
    key = jax.random.key(0)
    for drawn, (norm, expected) in zip(gradients, adamw(start, gradients, settings), strict=True):
        targets = {path: np.float32(gradient) for path, gradient in drawn.items()}
        before = {path: np.asarray(array) for path, array in trained.items()}
        trained, state, result = step(trained, state, {}, None, targets, key)
        loss = sum((before[path] * drawn[path]).sum() for path in paths)
        assert float(result.loss) == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert float(result.grad_norm) == pytest.approx(norm, rel=1e-5)  # before it is clipped
        for path in paths:
            assert trained[path].dtype == np.float32
            difference = np.abs(trained[path] - expected[path]).max()
            assert difference <= TOLERANCE, path


def test_nothing_moves_without_a_gradient_or_decay():
    """Parameters that no text uses: the pooler's, and adapters in a step without tasks."""
    settings = Optimizer(learning_rate=RATE, steps=STEPS)
    chain = optimizer(settings)
    parameters = {"pooler.kernel": jax.numpy.ones((2, 2))}
    step = make_step(lambda trained, *_: 0.0 * trained["pooler.kernel"].sum(), chain)
    trained, *_ = step(parameters, chain.init(parameters), {}, None, {}, jax.random.key(0))
    np.testing.assert_array_equal(trained["pooler.kernel"], np.ones((2, 2)))
