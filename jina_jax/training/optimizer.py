"""AdamW under a linear schedule; of the paper's optimizer only the schedule's shape is known."""

from __future__ import annotations

import optax

from jina_jax.training.settings import Optimizer


def schedule(settings: Optimizer) -> optax.Schedule:
    """Return the learning rate as a function of the steps done: it rises, then falls to 0."""
    rate, warmup = settings.learning_rate, settings.warmup_steps
    decay = optax.linear_schedule(rate, 0.0, settings.steps - warmup)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup])


def optimizer(settings: Optimizer) -> optax.GradientTransformation:
    """Return the optax chain, for a flat dict of parameters by path."""
    adamw = optax.adamw(
        schedule(settings),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=lambda parameters: {path: _decays(path) for path in parameters},
    )
    if settings.max_grad_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), adamw)


def _decays(path: str) -> bool:
    """Return whether a parameter decays: biases and norms do not."""
    return not path.endswith((".bias", ".scale"))
