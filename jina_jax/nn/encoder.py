"""The network: XLM-RoBERTa with rotary or absolute positions and task adapters.

Post-norm layers, ``x = norm1(x + attention(x)); x = norm2(x + mlp(x))``, as published with
jinaai/jina-embeddings-v3. Dimension letters: B rows, T tokens, N heads, H head dim, D width, F
feed-forward width, L layers, K tasks, R adapter rank, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn.dense import DenseLayer
from jina_jax.nn.dropout import Dropout, drop
from jina_jax.nn.layers import Embed, LayerNorm, Linear, as_stored, draw, gelu
from jina_jax.nn.lora import task_mask
from jina_jax.nn.protocol import REFERENCE, Kernels, Rows
from jina_jax.nn.rope import rotary_angles
from jina_jax.nn.sum_norm import Terms
from jina_jax.nn.tracing import by_platform, traced_once


class EncoderOutput(NamedTuple):
    """What the encoder computed; under ``jax.jit`` unused outputs are not computed.

    Attributes:
      last_hidden_state: (B, T, D) in the dtype of the weights.
      pooler_output: float32 (B, D), ``tanh(dense(last_hidden_state[:, 0]))``; None without pooler.
      hidden_states: the embeddings' output and every layer's, L + 1 arrays (B, T, D); None unless
        asked for.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None
    hidden_states: tuple[jax.Array, ...] | None


class Context(NamedTuple):
    """What all layers share in one pass, beside the hidden states.

    Attributes:
      rows: what attention knows of the rows, as ``kernels.prepare`` returns it.
      is_packed: whether rows may have several texts.
      task_mask: bool (B, 1 or T, K), each token's adapter; None to skip the adapters.
      kernels: how the parts of a layer are computed.
      task_ids: int (B, T), the same as a number, -1 for no adapter.
    """

    rows: Any
    is_packed: bool
    task_mask: jax.Array | None
    kernels: Kernels
    task_ids: jax.Array | None = None


class Encoder(nnx.Module):
    """The whole network, drawn at random; ``jina_jax.checkpoints.load`` reads trained weights.

    Args:
      config: the architecture.
      dtype: of the weights and of what flows between layers.
      rngs: source of the initial values; None for ``jax.ShapeDtypeStruct`` instead of arrays.
      scan_layers: run one layer's program L times over parameters with an axis of layers in front,
        instead of L programs one after another: compiles L times as fast, and on CPU runs slower,
        as each turn copies a layer's weights.
      quantization: the linear layers of attention and feed-forward networks multiply in 8 bits, see
        ``jina_jax.nn.quantized``; one of ``QUANTIZATIONS``, or None.
    """

    def __init__(
        self,
        config: Config,
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None,
        scan_layers: bool = False,
        quantization: str | None = None,
    ):
        width = config.hidden_size
        options = {"config": config, "dtype": dtype, "rngs": rngs}
        self.config = config
        self.word_embeddings = Embed(config.vocab_size, width, **options)
        self.token_type_embeddings = Embed(config.type_vocab_size, width, **options)
        self.position_embeddings = (
            Embed(config.max_position_embeddings, width, **options)
            if config.has_position_table
            else None
        )
        self.embedding_norm = LayerNorm(config, dtype=dtype, rngs=rngs)
        layers = [
            self._layer(**options, quantization=quantization)
            for _ in range(config.num_hidden_layers)
        ]
        self.layers = _stack(layers) if scan_layers else nnx.List(layers)
        self.pooler = Linear(width, width, **options) if config.add_pooling_layer else None
        widths = (width, *(spec.out_features for spec in config.dense))
        maps = [
            DenseLayer(size, spec, config, dtype=dtype, draw=functools.partial(draw, rngs))
            for size, spec in zip(widths, config.dense, strict=False)
        ]
        self.dense = nnx.List(maps) if maps else None

    def project(self, pooled: jax.Array) -> jax.Array:
        """Map pooled vectors, float32 (..., D), by ``config.dense``, if it has any."""
        for layer in self.dense or ():
            pooled = layer(pooled)
        return pooled

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        task_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
        kernels: Kernels = REFERENCE,
        dropout: Dropout | None = None,
    ) -> EncoderOutput:
        """Encode token ids.

        Args:
          input_ids: int (B, T), each below ``vocab_size``.
          attention_mask: bool (B, T), False for padding.
          task_ids: int (B,), one task per row, or (B, T), one per token; -1 for no adapter. None
            skips the adapters altogether.
          position_ids: int (B, T) counted from 0; None for 0 … T-1. Packed texts start at 0 each.
          segment_ids: int (B, T) for packed rows, the number of each token's text from 1, 0 where
            the mask is False; None for rows of one text.
          output_hidden_states: also return every layer's output.
          kernels: how its parts are computed (``jina_jax.nn.kernels.choose``).
          dropout: for training; of the embeddings and of what each sub-layer adds, where
            XLM-RoBERTa has ``hidden_dropout_prob``. Attention weights are never dropped, as fused
            kernels cannot do it.
        """
        mask = None
        if task_ids is None or not self.config.num_tasks:
            task_ids = None
        else:
            mask = task_mask(task_ids, self.config.num_tasks)
            if task_ids.ndim == 1:
                task_ids = jnp.broadcast_to(task_ids[:, None], input_ids.shape)
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1])[None, :]
        angles = None
        if self.config.rotary_emb_base is not None:
            angles = rotary_angles(position_ids, self.config.head_dim, self.config.rotary_emb_base)
        rows = kernels.prepare(Rows(attention_mask, segment_ids, angles))
        context = Context(rows, segment_ids is not None, mask, kernels, task_ids)
        first = drop(dropout, 0, self._embed(input_ids, position_ids, context))
        x, kept = self._run_layers(first, context, dropout, keep=output_hidden_states)
        pooled = None
        if self.pooler is not None:
            pooled = jnp.tanh(self.pooler(x[:, :1], mask if mask is None else mask[:, :1]))[:, 0]
        return EncoderOutput(x, pooled, tuple(kept) if output_hidden_states else None)

    def _layer(self, *, quantization: str | None, **options) -> Layer:
        return Layer(quantization=quantization, **options)

    def _run_layers(
        self, x: jax.Array, context: Context, dropout: Dropout | None, *, keep: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Return the last layer's output, (B, T, D), and if they are to be kept x and every one."""

        def run(layer: Layer, x: jax.Array, number: jax.Array | int) -> jax.Array:
            return layer(x, context, None if dropout is None else dropout.fold(number))

        outputs = [x] if keep else []
        if isinstance(self.layers, nnx.List):
            run = traced_once(run)
            for number, layer in enumerate(self.layers, start=1):
                x = run(layer, x, number)
                outputs += [x] if keep else []
            return x, outputs
        graph, stacked = nnx.split(self.layers)

        def turn(x, layer):
            number, state = layer
            x = run(nnx.merge(graph, state), x, number)
            return x, x if keep else None

        numbers = jnp.arange(1, self.config.num_hidden_layers + 1)
        x, kept = jax.lax.scan(turn, x, (numbers, stacked))
        return x, [*outputs, *kept] if keep else []

    def _embed(self, input_ids: jax.Array, position_ids: jax.Array, context: Context) -> jax.Array:
        """Sum the embeddings (token type 0 for every token) and normalise: (B, T, D)."""
        x = self.word_embeddings(input_ids, context.task_mask)
        x += self.token_type_embeddings(jnp.zeros_like(input_ids), context.task_mask)
        if self.position_embeddings is not None:
            x += self._positions(input_ids, position_ids, context)
        return self.embedding_norm(x)

    def _positions(
        self, input_ids: jax.Array, position_ids: jax.Array, context: Context
    ) -> jax.Array:
        """Look up absolute positions: float32 (B, T, D)."""
        assert self.position_embeddings is not None
        ids = jnp.broadcast_to(position_ids, input_ids.shape) + self.config.position_offset
        if self.config.position_offset:
            ids = _without_pads(ids, input_ids, self.config)
        return self.position_embeddings(ids, context.task_mask)


def _without_pads(ids: jax.Array, input_ids: jax.Array, config: Config) -> jax.Array:
    """Skip the ``<pad>`` tokens inside a text, as XLM-R's ``create_position_ids_from_input_ids``.

    They have position ``pad_token_id``, and the tokens behind them are not pushed on.

    Args:
      ids: (B, T), positions that count every token of a text, from ``position_offset``.
      input_ids: (B, T).
      config: has the id of ``<pad>``.
    """
    is_pad = input_ids == config.pad_token_id
    ones = is_pad.astype(jnp.int32)
    before = jnp.cumsum(ones, axis=1) - ones  # pads before each token, in its row
    first = jnp.arange(ids.shape[1])[None, :] - (ids - config.position_offset)
    own = before - jnp.take_along_axis(before, jnp.maximum(first, 0), axis=1)
    return jnp.where(is_pad, config.pad_token_id, ids - own)


def _stack(layers: list[Layer]) -> Layer:
    """Join the parameters of layers on a new first axis."""
    graphs, states = zip(*map(nnx.split, layers), strict=True)

    def join(*leaves):
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
        return jnp.stack(leaves)

    return nnx.merge(graphs[0], jax.tree.map(join, *states))


class Layer(nnx.Module):
    """One transformer layer: attention and feed-forward network, each added and then normalised."""

    def __init__(
        self, config: Config, *, dtype, rngs: nnx.Rngs | None, quantization: str | None = None
    ):
        options = {"config": config, "dtype": dtype, "rngs": rngs, "quantization": quantization}
        self.attention = Attention(**options)
        self.norm1 = LayerNorm(config, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(**options)
        self.norm2 = LayerNorm(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context, dropout: Dropout | None = None) -> jax.Array:
        """Map (B, T, D) to (B, T, D), in the dtype of the weights."""
        # Sub-layers return float32, and the sums stay in it until LayerNorm has used them.
        attended = _gathered(self.attention(x, context), x.dtype, context)
        x = self._add(x, drop(dropout, 0, attended), self.norm1, context)
        moved = _gathered(self.mlp(x, context.task_mask), x.dtype, context)
        return self._add(x, drop(dropout, 1, moved), self.norm2, context)

    def _add(self, x: jax.Array, made: jax.Array, norm: LayerNorm, context: Context) -> jax.Array:
        terms = Terms(made, norm.scale[...], norm.bias[...], residual=x)
        return context.kernels.sum_norm(terms, norm.epsilon)


def _gathered(y: jax.Array, dtype, context: Context) -> jax.Array:
    """Write what a sub-layer with adapters per token returns, in the dtype of the weights.

    XLA for GPU does not gather factors of adapters within LayerNorm's kernel: it would write the
    sum before it, in float32.
    """
    if context.task_mask is None or not context.is_packed:
        return y
    return by_platform(
        y, cuda=lambda y: as_stored(y.astype(dtype)).astype(y.dtype), default=lambda y: y
    )


class Attention(nnx.Module):
    """Self-attention.

    ``qkv_proj`` makes queries, keys and values in one product, with a kernel (D, 3, N · H): split
    along the last axis, a device has all three of its heads.
    """

    def __init__(self, config: Config, **options: Any):
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.qkv_proj = Linear(width, width, config, parts=3, **options)
        self.out_proj = Linear(width, width, config, **options)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Map (B, T, D) to float32 (B, T, D)."""
        qkv = self.qkv_proj(x, context.task_mask)
        mixed = context.kernels.attention(qkv, self.head_dim, x.dtype, context.rows)
        return self.out_proj(mixed, context.task_mask)


class Mlp(nnx.Module):
    """Feed-forward network, D → F → D, with the exact GELU between."""

    def __init__(self, config: Config, **options: Any):
        width, inner = config.hidden_size, config.intermediate_size
        self.fc1 = Linear(width, inner, config, **options)
        self.fc2 = Linear(inner, width, config, **options)

    def __call__(self, x: jax.Array, task_mask: jax.Array | None) -> jax.Array:
        """Map (B, T, D) to float32 (B, T, D)."""
        return self.fc2(gelu(self.fc1(x, task_mask)).astype(x.dtype), task_mask)


def abstract_encoder(
    config: Config, dtype=jnp.float32, **options
) -> tuple[nnx.GraphDef, nnx.State]:
    """Return the encoder's graph and a state of ``jax.ShapeDtypeStruct``; allocates nothing.

    ``options`` are those of ``Encoder``.
    """
    return nnx.split(Encoder(config, dtype=dtype, rngs=None, **options))
