"""One batch of texts to vectors: what is jitted for inference, training and export."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from jina_jax.nn.dropout import Dropout
from jina_jax.nn.pooling import pool
from jina_jax.nn.protocol import Kernels

A = TypeVar("A")


class Inputs(NamedTuple, Generic[A]):
    """A batch of B rows of T tokens, with up to S texts per row; arrays or their shapes.

    Attributes:
      input_ids: int32 (B, T), padded with the pad id.
      text_spans: int32 (B, S, 2), first token of each text in its row and the one after its last;
        equal where there is no text. S is 1 for rows of one text, padded on the right.
      task_ids: int32 (B, S), the task of each text, -1 for no adapter; None if no text has one.
      pool_spans: int32 (B, P, 2), the ranges of tokens to pool; None for the texts themselves.
    """

    input_ids: A
    text_spans: A
    task_ids: A | None = None
    pool_spans: A | None = None


class TokenTexts(NamedTuple):
    """What each token knows of its text.

    Attributes:
      attention_mask: bool (B, T), False for padding.
      segment_ids: int32 (B, T), the number of the token's text in its row from 1, 0 for padding;
        None for rows of one text.
      position_ids: int32 (B, T), from 0 in each text; None for 0 … T-1.
    """

    attention_mask: jax.Array
    segment_ids: jax.Array | None
    position_ids: jax.Array | None


def encode_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    inputs: Inputs[jax.Array],
    *,
    pooling: str | None,
    kernels: Kernels,
    dropout: Dropout | None = None,
    project: bool = True,
    output_sharding: NamedSharding | None = None,
) -> jax.Array:
    """Encode one batch.

    Args:
      graph, state: of an ``Encoder``.
      inputs: the batch.
      pooling: as for ``pool``; None for every token's vector.
      kernels: how the parts of the network are computed (``jina_jax.nn.kernels.choose``).
      dropout: for training.
      project: apply the maps of ``config.dense`` to pooled vectors; False where vectors are yet to
        be added up.
      output_sharding: where the result lies on a mesh; None leaves it to the compiler.

    Returns:
      float32 (B, P or S, D or ``config.output_size``); without pooling (B, T, D).
    """
    encoder = nnx.merge(graph, state)
    mask, segment_ids, position_ids = unpack(inputs.text_spans, inputs.input_ids.shape[1])
    task_ids = inputs.task_ids
    if task_ids is not None:
        task_ids = task_ids[:, 0] if segment_ids is None else _per_token(task_ids, segment_ids)
    hidden = encoder(
        inputs.input_ids,
        mask,
        task_ids,
        position_ids,
        segment_ids=segment_ids,
        kernels=kernels,
        dropout=dropout,
    ).last_hidden_state
    if pooling is None:
        output = hidden.astype(jnp.float32)
    else:
        spans = inputs.text_spans if inputs.pool_spans is None else inputs.pool_spans
        output = pool(hidden, spans, pooling)
        output = encoder.project(output) if project else output
    if output_sharding is None:
        return output
    return jax.lax.with_sharding_constraint(output, output_sharding)


def unpack(text_spans: jax.Array, tokens: int) -> TokenTexts:
    """Derive what each token knows of its text.

    Args:
      text_spans: int32 (B, S, 2), as in ``Inputs``.
      tokens: T.
    """
    start, stop = text_spans[..., :1], text_spans[..., 1:]
    position = jnp.arange(tokens)[None, None, :]
    inside = (start <= position) & (position < stop)
    if text_spans.shape[1] == 1:
        return TokenTexts(inside[:, 0], None, None)
    numbers = jnp.arange(1, text_spans.shape[1] + 1, dtype=jnp.int32)[None, :, None]
    segment_ids = jnp.where(inside, numbers, 0).sum(axis=1, dtype=jnp.int32)
    starts = jnp.where(inside, start, 0).sum(axis=1, dtype=jnp.int32)
    kept = segment_ids > 0
    return TokenTexts(kept, segment_ids, jnp.where(kept, position[0] - starts, 0))


def _per_token(task_ids: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Return the task of each token, int32 (B, T); -1 for padding."""
    with_none = jnp.pad(task_ids, ((0, 0), (1, 0)), constant_values=-1)
    return jnp.take_along_axis(with_none, segment_ids, axis=1)
