"""The state of a run after a step: one value, from which training goes on."""

from __future__ import annotations

from typing import Any, NamedTuple

from jina_jax.training.parameters import Arrays


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: steps done.
      trained: float32 parameters by path.
      opt_state: of the optimizer.
      sampler: JSON values, the position in the data (``Sampler.state``).
    """

    step: int
    trained: Arrays
    opt_state: Any
    sampler: dict[str, Any]
