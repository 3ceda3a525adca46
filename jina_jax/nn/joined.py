"""The encoder with its adapters joined to its weights, as TPUs multiply them.

Nothing of a sub-layer's width is written for an adapter, and no weight is moved in a step:

- ``qkv_proj`` and ``fc1`` multiply ``[x | low]`` by ``[W ; B]``, where ``low`` are the first
  factors' products of each token's own task. ``fc1``'s are made by the kernel that makes its x.
- ``out_proj`` and ``fc2`` multiply by ``[W | A]``, which gives ``[y | low]``; the kernel that
  normalises the sum adds the second factors' products.
- The table of words has its first factor in whole vectors, with that of the token type behind.

The kernel of ``qkv_proj`` is flat, (D, 3 · N · H), so that attention reads its result as it is;
over G devices that share the heads, each device's queries, keys and values are together.

A program without tasks multiplies by W alone, which XLA reads where it is. The leaves are made of
an ``Encoder``'s by ``joins``, and back by ``splits``: only memory differs, not the network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn import lanes
from jina_jax.nn.dropout import Dropout
from jina_jax.nn.encoder import Context, Encoder, Layer
from jina_jax.nn.layers import LayerNorm, Linear, as_wide, gelu
from jina_jax.nn.lora import Adapter, product
from jina_jax.nn.matmul import einsum
from jina_jax.nn.parameters import adapters_of, is_stacked
from jina_jax.nn.sum_norm import Following, Terms, Update

# path → the function and the paths from which it is computed.
Recipe = dict[str, tuple[Callable[..., Any], tuple[str, ...]]]

# One object per function and arguments, so that ``jax.jit`` finds what it compiled for it.
_bound = functools.cache(functools.partial)
_WORDS, _TYPES = "word_embeddings", "token_type_embeddings"


class JoinedEncoder(Encoder):
    """An ``Encoder`` of joined weights, for inference; its own leaves are shapes."""

    def __init__(
        self, config: Config, *, dtype=jnp.bfloat16, scan_layers: bool = False, groups: int = 1
    ):
        self.groups = groups
        super().__init__(config, dtype=dtype, rngs=None, scan_layers=scan_layers)
        if config.lora_rank is not None:
            width = lanes.padded(2 * config.num_tasks * config.lora_rank)
            self.word_embeddings.lora_a = _adapter((config.vocab_size, width), dtype)
            self.word_embeddings.lora_b = _adapter((width, config.hidden_size), dtype)

    def _layer(self, **options) -> Layer:
        return JoinedLayer(groups=self.groups, **options)

    def _embed(self, input_ids: jax.Array, position_ids: jax.Array, context: Context) -> jax.Array:
        """Sum the embeddings and normalise, in one pass over the words' rows: (B, T, D)."""
        words, norm, update, positions = self.word_embeddings, self.embedding_norm, None, None
        if context.task_ids is not None:
            own = lanes.lane_tasks(self.config.num_tasks, self.config.lora_rank, repeats=2)
            update = Update(words.lora_a[...][input_ids], words.lora_b[...], jnp.asarray(own))
        if self.position_embeddings is not None:
            positions = self._positions(input_ids, position_ids, context)
        terms = Terms(
            words.embedding[...][input_ids],
            *(norm.scale[...], norm.bias[...]),
            residual=positions,
            row=self.token_type_embeddings.embedding[...][0],
            task_ids=context.task_ids,
            update=update,
        )
        return context.kernels.sum_norm(terms, norm.epsilon, words.lora_scale)


class JoinedLayer(Layer):
    """A ``Layer`` of joined weights."""

    def __init__(self, config: Config, *, dtype, rngs: None, groups: int):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.groups = groups
        self.factors = None
        qkv = self.attention.qkv_proj
        for name in ("kernel", "bias"):
            *features, parts, out = getattr(qkv, name).shape
            shape = jax.ShapeDtypeStruct((*features, parts * out), dtype)
            setattr(qkv, name, nnx.Param(shape))
        if config.lora_rank is None:
            return
        self.factors = (config.num_tasks, config.lora_rank)
        width = lanes.padded(config.num_tasks * config.lora_rank)
        for linear in (self.attention.qkv_proj, self.mlp.fc1):
            features, out = linear.kernel.shape
            linear.kernel = nnx.Param(jax.ShapeDtypeStruct((features + width, out), dtype))
            linear.lora_a, linear.lora_b = _adapter((features, width), dtype), None
        for linear in (self.attention.out_proj, self.mlp.fc2):
            features, out = linear.kernel.shape
            linear.kernel = nnx.Param(jax.ShapeDtypeStruct((features, out + width), dtype))
            linear.lora_a, linear.lora_b = None, _adapter((width, out), dtype)

    def __call__(self, x: jax.Array, context: Context, dropout: Dropout | None = None) -> jax.Array:
        """Map (B, T, D) to (B, T, D), in the dtype of the weights."""
        if dropout is not None:
            raise ValueError("dropout: joined weights are for inference, expected None")
        if context.kernels.layer is not None:
            return context.kernels.layer(self, x, context)
        attention, mlp = self.attention, self.mlp
        qkv = _first(attention.qkv_proj, self._with_low(x, context))
        qkv = ungroup(qkv, self.groups)
        mixed = context.kernels.attention(qkv, attention.head_dim, x.dtype, context.rows)
        x = self._sum(x, mixed, attention.out_proj, self.norm1, context, following=mlp.fc1)
        inner = gelu(_first(mlp.fc1, x)).astype(x.dtype)
        return self._sum(x, inner, mlp.fc2, self.norm2, context)

    @property
    def lane_tasks(self) -> jax.Array:
        """The task of each lane of adapters."""
        return jnp.asarray(lanes.lane_tasks(*self.factors))

    def _with_low(self, x: jax.Array, context: Context) -> jax.Array:
        """Put the first factors' products of ``qkv_proj`` behind x, of each token's task."""
        if context.task_ids is None:
            return x
        linear = self.attention.qkv_proj
        low = linear.lora_scale * einsum("bti,ir->btr", x, linear.lora_a[...])
        flat = low.reshape(-1, low.shape[-1])
        kept = lanes.keep_own(flat, self.lane_tasks, context.task_ids.reshape(-1, 1))
        return jnp.concatenate((x, kept.astype(x.dtype).reshape(low.shape)), axis=-1)

    def _sum(
        self,
        residual: jax.Array,
        x: jax.Array,
        linear: Linear,
        norm: LayerNorm,
        context: Context,
        following: Linear | None = None,
    ) -> jax.Array:
        """Normalise the residual and ``linear`` of x, ready for the product that follows."""
        kernel, update, after = linear.kernel[...], None, None
        if context.task_ids is None:
            kernel = kernel[:, : norm.scale.shape[0]]
        else:
            update = Update(None, linear.lora_b[...], self.lane_tasks)
            after = following and Following(following.lora_a[...], self.lane_tasks)
        terms = Terms(
            product(x, kernel).astype(x.dtype),
            *(norm.scale[...], norm.bias[...]),
            residual=residual,
            row=linear.bias[...],
            task_ids=context.task_ids,
            update=update,
            following=after,
        )
        return context.kernels.sum_norm(terms, norm.epsilon, linear.lora_scale)


def _first(linear: Linear, x: jax.Array) -> jax.Array:
    """Multiply [x | low] by [W ; B], or x by W, and add the bias, to float32."""
    y = product(x, linear.kernel[...][: x.shape[-1]])
    return y + as_wide(linear.bias[...].astype(jnp.float32), y)


def _adapter(shape: tuple[int, ...], dtype) -> Adapter:
    return Adapter(jax.ShapeDtypeStruct(shape, dtype))


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


def abstract_joined(
    config: Config, dtype=jnp.bfloat16, **options
) -> tuple[nnx.GraphDef, nnx.State]:
    """Return the graph and shapes of a ``JoinedEncoder``, as ``abstract_encoder``."""
    return nnx.split(JoinedEncoder(config, dtype=dtype, **options))


def joins(paths: Collection[str], groups: int = 1) -> Recipe:
    """Map each path of joined weights that are not the encoder's to how they are made of them.

    Args:
      paths: of the encoder.
      groups: devices that share the heads.
    """
    recipe: Recipe = {}
    for path in paths:
        factors = adapters_of(path, paths)
        if _is_qkv(path) and (path.endswith(".bias") or factors is None):
            recipe[path] = _bound(group, groups=groups), (path,)
        if factors is None:
            continue
        (a, b), stacked = factors, int(is_stacked(path))
        second = _bound(lanes.join_second, axis=stacked)
        if path.startswith(_WORDS):
            recipe[a] = _side_by_side, (a, f"{_TYPES}.lora_a")
            recipe[b] = _below, (b, f"{_TYPES}.lora_b")
        elif _multiplies_low(path):
            recipe[path] = _bound(_append, second, stacked), (path, b)
            if _is_qkv(path):
                recipe[path] = (
                    _bound(_then, _bound(group, groups=groups), recipe[path][0]),
                    (path, b),
                )
            recipe[a] = lanes.join_first, (a,)
        elif _makes_low(path):
            recipe[path] = _bound(_append, lanes.join_first, -1), (path, a)
            recipe[b] = second, (b,)
    return recipe


def splits(paths: Collection[str], tasks: int, rank: int, groups: int = 1) -> Recipe:
    """Map each path of the encoder's weights that are not joined ones to how they are made.

    Args:
      paths: of the joined weights.
      tasks, rank: K and R; 0 without adapters.
      groups: as for ``joins``.
    """
    flat = {path: (_bound(ungroup, groups=groups), (path,)) for path in paths if _is_qkv(path)}
    if not tasks:
        return flat
    recipe = flat
    for path in paths:
        stem, _, leaf = path.rpartition(".")
        a, b, stacked = f"{stem}.lora_a", f"{stem}.lora_b", int(is_stacked(path))
        first = _bound(lanes.split_first, tasks=tasks, rank=rank)
        second = _bound(lanes.split_second, tasks=tasks, rank=rank, axis=stacked)
        used = lanes.padded(tasks * rank)
        if path == f"{_WORDS}.embedding":
            recipe |= {a: (first, (a,)), b: (second, (b,))}
        elif leaf == "kernel" and _multiplies_low(path):
            before, behind = (_bound(_cut, used, stacked, part) for part in (0, 1))
            if _is_qkv(path):
                apart = _bound(ungroup, groups=groups)
                before, behind = (_bound(_then, cut, apart) for cut in (before, behind))
            recipe |= {path: (before, (path,)), a: (first, (a,))}
            recipe[b] = _bound(_then, second, behind), (path,)
        elif leaf == "kernel" and _makes_low(path):
            before, behind = (_bound(_cut, used, -1, part) for part in (0, 1))
            recipe |= {path: (before, (path,)), b: (second, (b,))}
            recipe[a] = _bound(_then, first, behind), (path,)
    return recipe


def _is_qkv(path: str) -> bool:
    return path.endswith((".qkv_proj.kernel", ".qkv_proj.bias"))


def _multiplies_low(path: str) -> bool:
    return path.endswith((".qkv_proj.kernel", ".fc1.kernel"))


def _makes_low(path: str) -> bool:
    return path.endswith((".out_proj.kernel", ".fc2.kernel"))


def _append(join: Callable, axis: int, kernel: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.concatenate((kernel, join(factor)), axis=axis)


def _cut(size: int, axis: int, part: int, joined: jax.Array) -> jax.Array:
    """Return what is before the last ``size`` of an axis, or these."""
    return jnp.split(joined, (joined.shape[axis] - size,), axis=axis)[part]


def _then(second: Callable, first: Callable, *arrays: jax.Array) -> jax.Array:
    return second(first(*arrays))


def _side_by_side(words: jax.Array, types: jax.Array) -> jax.Array:
    """Put the factor of token type 0 behind each word's: (V, P)."""
    tasks, count, rank = words.shape
    both = jnp.stack((words, jnp.broadcast_to(types[:, :1], words.shape)))
    return lanes.join_first(both.reshape(2 * tasks, count, rank))


def _below(words: jax.Array, types: jax.Array) -> jax.Array:
    return lanes.join_second(jnp.concatenate((words, types)))
