"""One step: a batch of any size in, a loss and new parameters out.

Gradient caching (arXiv 2101.06983): the loss gets all embeddings of a batch, while memory holds the
activations of one micro-batch. A loop over micro-batches has another loop as its gradient, which
computes each micro-batch again; both end with the last micro-batch that has a text, so that one
program takes batches of any size up to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.nn.dropout import Dropout
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.protocol import Kernels
from jina_jax.runtime.compiling import jit
from jina_jax.training.micro_batches import MicroBatches
from jina_jax.training.parameters import Arrays, Network

Targets = Mapping[str, jax.Array]
# (trained, frozen, micro_batches, targets, key) → float32 scalar
Objective = Callable[[Arrays, Arrays, MicroBatches, Targets, jax.Array], jax.Array]
MICRO_BATCH_ROWS = P(None, "data")


class Encoding(NamedTuple):
    """How micro-batches are encoded in training.

    Attributes:
      network: graph, dtype and config; its arrays are not used.
      kernels: how the parts of the network are computed.
      dropout: rate, 0 for none.
      mesh: devices that share the rows of micro-batches; None for one.
      caching: compute a micro-batch's activations again for its gradient, where there are several.
    """

    network: Network
    kernels: Kernels
    dropout: float = 0.0
    mesh: Mesh | None = None
    caching: bool = True


def text_objective(encoding: Encoding, loss: Callable[..., jax.Array], columns: int) -> Objective:
    """Make the objective of a loss between texts.

    Every loss sees the embeddings of the whole batch, those of all devices included.

    Args:
      encoding: how texts are encoded.
      loss: one of ``jina_jax.training.losses``: takes a float32 (B, D) for each column but the
        negatives, (B, M, D), and targets by name.
      columns: texts per row: 1, 2, or 2 + M.
    """

    def objective(trained, frozen, micro_batches, targets, key):
        embeddings = embed(encoding, trained, frozen, micro_batches, key)
        rows = embeddings.reshape(-1, columns, embeddings.shape[-1])
        parts = [rows[:, column] for column in range(min(columns, 2))]
        if columns > 2:
            parts.append(rows[:, 2:])
        return loss(*parts, **targets)

    return objective


def embed(
    encoding: Encoding, trained: Arrays, frozen: Arrays, micro_batches: MicroBatches, key: jax.Array
) -> jax.Array:
    """Encode the n texts of a batch: float32 (n, D), on every device."""
    network = encoding.network

    def one_micro_batch(trained, frozen, micro_batch, dropout) -> jax.Array:
        task_ids = micro_batch.task_ids if network.config.num_tasks else None
        # Parameters are cast here, for gradients of micro-batches to add up in float32.
        return encode_batch(
            network.graph,
            network.state(trained, frozen),
            Inputs(micro_batch.input_ids, micro_batch.text_spans, task_ids),
            pooling=network.config.emb_pooler,
            kernels=encoding.kernels,
            dropout=dropout,
        )

    pooled = over_micro_batches(encoding, one_micro_batch, trained, frozen, micro_batches, key)
    pooled = pooled.reshape(-1, pooled.shape[-1])[micro_batches.slots]
    if encoding.mesh is not None:
        pooled = jax.lax.with_sharding_constraint(pooled, NamedSharding(encoding.mesh, P()))
    return pooled


def over_micro_batches(
    encoding: Encoding,
    run: Callable[[Arrays, Arrays, Any, Dropout | None], jax.Array],
    trained: Arrays,
    frozen: Arrays,
    micro_batches: Any,
    key: jax.Array,
) -> jax.Array:
    """Run a function over each micro-batch of a batch, and stack what it returns.

    Args:
      encoding: has the dropout rate, and says whether activations are kept.
      run: (trained, frozen, micro-batch, dropout) → array, of the same shape for every micro-batch.
      trained: parameters to differentiate.
      frozen: the others.
      micro_batches: arrays with an axis of micro-batches in front; the first ones, ``used`` of
        them, have texts.
      key: of the step's dropout; a micro-batch that is computed again drops the same values.

    Returns:
      (C, …); zeros for micro-batches without a text.
    """

    def one(number, trained, frozen, micro_batches, key):
        micro_batch = jax.tree.map(lambda array: array[number], micro_batches)
        rate = encoding.dropout
        dropout = Dropout(jax.random.fold_in(key, number), rate) if rate else None
        return run(trained, frozen, micro_batch, dropout)

    operands = (trained, frozen, micro_batches._replace(slots=None, used=None), key)
    size = len(micro_batches.used)
    if size == 1 or not encoding.caching:
        return jnp.stack([one(number, *operands) for number in range(size)])
    return _cached(one, size)(micro_batches.used.sum(dtype=jnp.int32), *operands)


def _cached(one: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    """Make (count, trained, …) → ``one`` of each number below count, with a gradient by loop."""

    @jax.custom_vjp
    def stacked(count, trained, *others):
        shape = jax.eval_shape(one, 0, trained, *others)
        empty = jnp.zeros((size, *shape.shape), shape.dtype)
        return jax.lax.fori_loop(
            0, count, lambda i, out: out.at[i].set(one(i, trained, *others)), empty
        )

    def forward(*operands):
        return stacked(*operands), operands

    def backward(operands, gradients):
        count, trained, *others = operands

        def add(i, total):
            _, pull_back = jax.vjp(lambda trained: one(i, trained, *others), trained)
            return jax.tree.map(jnp.add, total, *pull_back(gradients[i]))

        zeros = jax.tree.map(jnp.zeros_like, trained)
        return None, jax.lax.fori_loop(0, count, add, zeros), *(None for _ in others)

    stacked.defvjp(forward, backward)
    return stacked


class StepResult(NamedTuple):
    """The loss of one step and its gradient's norms: float32 scalars.

    Attributes:
      loss: before the update.
      grad_norm: of the whole gradient.
      grad_norms: of each parameter's, by path.
    """

    loss: jax.Array
    grad_norm: jax.Array
    grad_norms: Mapping[str, jax.Array]


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, platform: str | None = None
) -> Callable:
    """Compile a step.

    Args:
      objective: to minimise.
      optimizer: its update.
      platform: of the devices, as for ``jina_jax.runtime.compiling.jit``.

    Returns:
      (trained, opt_state, frozen, micro_batches, targets, key) → new trained, new opt_state, and a
      ``StepResult``. The old parameters and optimizer state are donated: their buffers are deleted.
    """

    def step(trained, opt_state, frozen, micro_batches, targets, key):
        loss, gradients = jax.value_and_grad(objective)(
            trained, frozen, micro_batches, targets, key
        )
        norms = jax.tree.map(optax.tree.norm, gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, opt_state = optimizer.update(gradients, opt_state, trained)
        result = StepResult(loss, optax.tree.norm(norms), norms)
        return optax.apply_updates(trained, updates), opt_state, result

    return jit(step, platform, donate_argnums=(0, 1))
