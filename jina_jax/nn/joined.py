"""The encoder with its adapters joined to its weights, as TPUs multiply them.

Between layers, each token's x has ``low`` behind: the products with the first factors of the linear
map that follows, of the token's own task. Nothing of a sub-layer's width is written for an adapter,
and no weight is moved in a step:

- ``qkv_proj`` and ``fc1`` multiply ``[x | low]`` by ``[W ; B]``.
- ``out_proj`` and ``fc2`` multiply by ``[W | A]``, which gives ``[y | low]``.
- The norms, each one kernel with the sum before it, add the second factors' products of that
  ``low``, and make the ``low`` of what follows: ``lora_a`` of a norm is the next map's.
- A row of the table of words has its row of the first factor behind, and that of the token type.

A program without tasks multiplies x by W alone, which XLA reads where it is. The kernel of
``qkv_proj`` is flat, (D, 3 · N · H), so that attention reads its result as it is; over G devices
that share the heads, each device's queries, keys and values are together.

The leaves are made of an ``Encoder``'s by ``joins``, and back by ``splits``: only memory differs,
not the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn import lanes
from jina_jax.nn.dropout import Dropout
from jina_jax.nn.encoder import Context, Encoder, Layer
from jina_jax.nn.layers import LayerNorm, Linear, as_wide, gelu
from jina_jax.nn.lora import Adapter, product
from jina_jax.nn.sum_norm import Following, Terms, Update


class JoinedEncoder(Encoder):
    """An ``Encoder`` of joined weights, for inference; its own leaves are shapes."""

    def __init__(
        self, config: Config, *, dtype=jnp.bfloat16, scan_layers: bool = False, groups: int = 1
    ):
        self.groups = groups
        super().__init__(config, dtype=dtype, rngs=None, scan_layers=scan_layers)
        if config.lora_rank is not None:
            width = lanes.padded(2 * config.num_tasks * config.lora_rank)
            shape = (config.vocab_size, config.hidden_size + width)
            self.word_embeddings.embedding = nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
            self.word_embeddings.lora_a = None
            self.word_embeddings.lora_b = _adapter((width, config.hidden_size), dtype)
            self.embedding_norm.lora_a = _adapter((config.hidden_size, _lanes(config)), dtype)

    def _layer(self, *, quantization: str | None, **options) -> Layer:
        assert quantization is None, "joined weights are not in 8 bits"
        return JoinedLayer(groups=self.groups, **options)

    def _embed(self, input_ids: jax.Array, position_ids: jax.Array, context: Context) -> jax.Array:
        """Sum the embeddings and normalise, in one pass over the words' rows: (B, T, D + P)."""
        table, update, positions = self.word_embeddings.embedding[...], None, None
        if context.task_ids is None:
            words = table[input_ids, : self.config.hidden_size]
        else:
            words = table[input_ids]
            own = own_lanes(self.config, repeats=2)
            update = Update(None, factor(self.word_embeddings.lora_b), own)
        if self.position_embeddings is not None:
            positions = self._positions(input_ids, position_ids, context)
        terms = terms_of(self.embedding_norm, self.config, context)._replace(
            addend=words,
            residual=positions,
            row=self.token_type_embeddings.embedding[...][0],
            update=update,
        )
        epsilon = self.embedding_norm.epsilon
        return context.kernels.sum_norm(terms, epsilon, self.config.lora_scale)

    def _run_layers(
        self, x: jax.Array, context: Context, dropout: Dropout | None, *, keep: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        x, kept = super()._run_layers(x, context, dropout, keep=keep)
        width = self.config.hidden_size
        return x[..., :width], [output[..., :width] for output in kept]


class JoinedLayer(Layer):
    """A ``Layer`` of joined weights."""

    def __init__(self, config: Config, *, dtype, rngs: None, groups: int):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.config, self.groups = config, groups
        qkv = self.attention.qkv_proj
        for name in ("kernel", "bias"):
            *features, parts, out = getattr(qkv, name).shape
            shape = jax.ShapeDtypeStruct((*features, parts * out), dtype)
            setattr(qkv, name, nnx.Param(shape))
        if config.lora_rank is None:
            return
        low = _lanes(config)
        for linear in (qkv, self.mlp.fc1):
            features, out = linear.kernel.shape
            linear.kernel = nnx.Param(jax.ShapeDtypeStruct((features + low, out), dtype))
            linear.lora_a = linear.lora_b = None
        for linear in (self.attention.out_proj, self.mlp.fc2):
            features, out = linear.kernel.shape
            linear.kernel = nnx.Param(jax.ShapeDtypeStruct((features, out + low), dtype))
            linear.lora_a, linear.lora_b = None, _adapter((low, out), dtype)
        for norm in (self.norm1, self.norm2):
            norm.lora_a = _adapter((config.hidden_size, low), dtype)

    def __call__(self, x: jax.Array, context: Context, dropout: Dropout | None = None) -> jax.Array:
        """Map (B, T, D), or with tasks (B, T, D + P), to the same, in the dtype of the weights."""
        if dropout is not None:
            raise ValueError("dropout: joined weights are for inference, expected None")
        if context.kernels.layer is not None:
            return context.kernels.layer(self, x, context)
        attention, mlp, dtype = self.attention, self.mlp, x.dtype
        qkv = ungroup(_first(attention.qkv_proj, x), self.groups)
        mixed = context.kernels.attention(qkv, attention.head_dim, dtype, context.rows)
        x = self._second(attention.out_proj, mixed, x, self.norm1, context)
        inner = gelu(_first(mlp.fc1, x)).astype(dtype)
        return self._second(mlp.fc2, inner, x, self.norm2, context)

    def _second(
        self,
        linear: Linear,
        inner: jax.Array,
        residual: jax.Array,
        norm: LayerNorm,
        context: Context,
    ) -> jax.Array:
        """Add the second map of a sub-layer to the residual, and normalise."""
        kernel, update = linear.kernel[...], None
        if context.task_ids is None:
            kernel = kernel[:, : self.config.hidden_size]
        else:
            update = Update(None, factor(linear.lora_b), own_lanes(self.config))
        terms = terms_of(norm, self.config, context)._replace(
            addend=product(inner, kernel).astype(inner.dtype),
            residual=residual,
            row=linear.bias[...],
            update=update,
        )
        return context.kernels.sum_norm(terms, norm.epsilon, self.config.lora_scale)


def terms_of(norm: LayerNorm, config: Config, context: Context) -> Terms:
    """Return the terms that a norm and the batch provide, with None for the others."""
    following = None
    if context.task_ids is not None:
        following = Following(factor(norm.lora_a), own_lanes(config))
    weights = (norm.scale[...], norm.bias[...])
    return Terms(None, *weights, task_ids=context.task_ids, following=following)


def own_lanes(config: Config, repeats: int = 1) -> jax.Array:
    """Return the task of each lane of ``low``, see ``lanes.lane_tasks``."""
    return jnp.asarray(lanes.lane_tasks(config.num_tasks, config.lora_rank or 0, repeats))


def factor(adapter: Adapter | None) -> jax.Array:
    """Return a factor of a network with adapters."""
    assert adapter is not None
    return adapter[...]


def _lanes(config: Config) -> int:
    return lanes.padded(config.num_tasks * (config.lora_rank or 0))


def _first(linear: Linear, x: jax.Array) -> jax.Array:
    """Multiply [x | low] by [W ; B], or x by W, and add the bias, to float32."""
    y = product(x, linear.kernel[...][: x.shape[-1]])
    return y + as_wide(linear.bias[...].astype(jnp.float32), y)


def _adapter(shape: tuple[int, ...], dtype) -> Adapter:
    return Adapter(jax.ShapeDtypeStruct(shape, dtype))


def abstract_joined(
    config: Config, dtype=jnp.bfloat16, **options
) -> tuple[nnx.GraphDef, nnx.State]:
    """Return the graph and shapes of a ``JoinedEncoder``, as ``abstract_encoder``."""
    return nnx.split(JoinedEncoder(config, dtype=dtype, **options))


def group(parts: jax.Array, groups: int = 1) -> jax.Array:
    """Lay out queries, keys and values, (…, 3, N · H), by devices: (…, 3 · N · H)."""
    *features, count, out = parts.shape
    split = parts.reshape(*features, count, groups, out // groups)
    return jnp.moveaxis(split, -3, -2).reshape(*features, count * out)


def ungroup(flat: jax.Array, groups: int = 1) -> jax.Array:
    """Undo ``group``."""
    *features, size = flat.shape
    split = flat.reshape(*features, groups, 3, size // (3 * groups))
    return jnp.moveaxis(split, -3, -2).reshape(*features, 3, size // 3)
