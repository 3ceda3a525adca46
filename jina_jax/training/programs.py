"""The compiled steps of a run, and their inputs on the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.nn.kernels import choose
from jina_jax.runtime.compiling import platform_of
from jina_jax.training import mlm
from jina_jax.training.collate import StepInputs
from jina_jax.training.losses import loss_function
from jina_jax.training.parameters import Arrays, Network
from jina_jax.training.settings import Loss
from jina_jax.training.step import (
    MICRO_BATCH_ROWS,
    Encoding,
    StepResult,
    make_step,
    text_objective,
)


class Programs:
    """Compiled steps, one per loss and shape of a micro-batch; sources of one loss share them.

    Args:
      network: in training.
      frozen: parameters that it is not trained on, by path.
      optimizer: the update.
      dropout: rate, 0 for none.
      seed: of dropout.
      mesh: devices that share the rows of micro-batches; None for one device.

    Attributes:
      network, frozen: as given.
    """

    def __init__(
        self,
        network: Network,
        frozen: Arrays,
        optimizer: optax.GradientTransformation,
        *,
        dropout: float,
        seed: int,
        mesh: Mesh | None,
    ):
        self.network, self.frozen, self._optimizer = network, frozen, optimizer
        self._dropout, self._seed, self._mesh = dropout, seed, mesh
        self._platform = platform_of(replicate(np.zeros((), np.float32), mesh))
        self._steps: dict[tuple, Callable] = {}

    def init(self, trained: Arrays) -> Any:
        """Return the optimizer's state on the devices where a step returns it.

        Moments are with their parameters, counters on every device.
        """
        return jax.tree.map(
            lambda array: array if array.ndim else replicate(array, self._mesh),
            self._optimizer.init(trained),
        )

    def run(
        self, loss: Loss, trained: Arrays, opt_state: Any, inputs: StepInputs, step: int
    ) -> tuple[Arrays, Any, StepResult]:
        """Start a step; the arrays of ``trained`` and ``opt_state`` are donated to it.

        Args:
          loss: of the source.
          trained: parameters by path.
          opt_state: of the optimizer.
          inputs: the batch.
          step: its number, which decides what dropout drops.

        Returns:
          New parameters, new optimizer state, and the result, which may still be computed.
        """
        _, _, tokens = inputs.micro_batches.input_ids.shape
        key = (loss, inputs.columns, tokens, inputs.micro_batches.text_spans.shape[2])
        if key not in self._steps:
            self._steps[key] = self._make_step(*key)
        return self._steps[key](
            trained,
            opt_state,
            self.frozen,
            self._place(inputs.micro_batches),
            replicate(inputs.targets, self._mesh),
            jax.random.fold_in(jax.random.key(self._seed), step),
        )

    def _make_step(self, loss: Loss, columns: int, tokens: int, slots: int) -> Callable:
        network = self.network
        config = network.config
        choice = choose(
            *(self._platform, network.dtype, tokens, slots, config.head_dim, self._mesh),
            heads=config.num_attention_heads,
        )
        encoding = Encoding(network, choice.kernels, self._dropout, self._mesh)
        if loss.name == "mlm":
            objective = mlm.mlm_objective(encoding)
        else:
            objective = text_objective(encoding, loss_function(loss), columns)
        return make_step(objective, self._optimizer, self._platform)

    def _place(self, micro_batches: Any) -> Any:
        """Put micro-batches on the devices: rows on the data axis, all else on every device."""
        if self._mesh is None:
            return jax.device_put(micro_batches)
        rows, everywhere = (NamedSharding(self._mesh, spec) for spec in (MICRO_BATCH_ROWS, P()))
        return jax.tree.map(
            lambda array: jax.device_put(array, rows if array.ndim > 2 else everywhere),
            micro_batches,
        )


def replicate(arrays: Any, mesh: Mesh | None) -> Any:
    """Put a tree of arrays on every device of a mesh; None for the default device."""
    return jax.device_put(arrays, None if mesh is None else NamedSharding(mesh, P()))
