"""How joined weights are made of an encoder's, and those of joined ones; no value changes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from jina_jax.nn import lanes
from jina_jax.nn.joined import group, ungroup

# path → the function and the paths of its operands.
Recipe = dict[str, tuple[Callable[..., Any], tuple[str, ...]]]

_WORDS, _TYPES = "word_embeddings", "token_type_embeddings"
_LAYER = re.compile(r"layers\.(?:(\d+)\.)?")
# One object per function and arguments, so that ``jax.jit`` finds what it compiled for it.
_bound = functools.cache(functools.partial)


def joins(paths: Collection[str], groups: int = 1) -> Recipe:
    """Map each path of joined weights that the encoder lacks, or has otherwise, to its making.

    Args:
      paths: of the encoder's weights.
      groups: devices that share the heads.
    """
    recipe: Recipe = {}
    if f"{_WORDS}.lora_a" in paths:
        a, b = ((f"{_WORDS}.{leaf}", f"{_TYPES}.{leaf}") for leaf in ("lora_a", "lora_b"))
        recipe[f"{_WORDS}.embedding"] = _append_both, (f"{_WORDS}.embedding", *a)
        recipe[f"{_WORDS}.lora_b"] = _below, b
    for layer, stacked in _layers(paths):
        qkv = f"{layer}attention.qkv_proj"
        flat = _bound(group, groups=groups)
        recipe |= {f"{qkv}.{leaf}": (flat, (f"{qkv}.{leaf}",)) for leaf in ("kernel", "bias")}
        if f"{qkv}.lora_a" not in paths:
            continue
        below = _bound(_append_rows, stacked)
        recipe[f"{qkv}.kernel"] = _bound(_then, flat, below), (f"{qkv}.kernel", f"{qkv}.lora_b")
        fc1 = f"{layer}mlp.fc1"
        recipe[f"{fc1}.kernel"] = below, (f"{fc1}.kernel", f"{fc1}.lora_b")
        for stem in (f"{layer}attention.out_proj", f"{layer}mlp.fc2"):
            recipe[f"{stem}.kernel"] = _append_columns, (f"{stem}.kernel", f"{stem}.lora_a")
            recipe[f"{stem}.lora_b"] = _bound(lanes.join_second, axis=stacked), (f"{stem}.lora_b",)
        recipe[f"{layer}norm1.lora_a"] = lanes.join_first, (f"{fc1}.lora_a",)
        recipe |= _low_of_next(layer, paths)
    return recipe


def _low_of_next(layer: str, paths: Collection[str]) -> Recipe:
    """Give the first factor of each ``qkv_proj`` to the norm before it."""
    leaf = "attention.qkv_proj.lora_a"
    number = _LAYER.match(layer)[1]
    if number is None:
        first = _bound(_then, _bound(_at, 0), lanes.join_first)
        shifted = _bound(_then, _shift, lanes.join_first)
        own = (f"{layer}{leaf}",)
        return {"embedding_norm.lora_a": (first, own), f"{layer}norm2.lora_a": (shifted, own)}
    following = f"layers.{int(number) + 1}.{leaf}"
    is_last = following not in paths
    join = _bound(_then, jnp.zeros_like, lanes.join_first) if is_last else lanes.join_first
    made: Recipe = {f"{layer}norm2.lora_a": (join, (f"{layer}{leaf}" if is_last else following,))}
    if int(number) == 0:
        made["embedding_norm.lora_a"] = lanes.join_first, (f"{layer}{leaf}",)
    return made


def splits(paths: Collection[str], tasks: int, rank: int, groups: int = 1) -> Recipe:
    """Map each path of the encoder's weights that joined ones lack, or have otherwise.

    Args:
      paths: of the joined weights.
      tasks, rank: K and R; rank 0 without adapters.
      groups: as for ``joins``.
    """
    first = _bound(lanes.split_first, tasks=tasks, rank=rank)
    used = lanes.padded(tasks * rank)
    recipe: Recipe = {}
    if rank:
        table, b = f"{_WORDS}.embedding", f"{_WORDS}.lora_b"
        left, right = (_bound(_cut, lanes.padded(2 * tasks * rank), -1, part) for part in (0, 1))
        recipe[table] = left, (table,)
        recipe[f"{_WORDS}.lora_a"] = _bound(_then, first, right), (table,)
        recipe[b] = _bound(lanes.split_second, tasks=tasks, rank=rank), (b,)
    for layer, stacked in _layers(paths):
        qkv, fc1 = f"{layer}attention.qkv_proj", f"{layer}mlp.fc1"
        apart = _bound(ungroup, groups=groups)
        recipe |= {f"{qkv}.{leaf}": (apart, (f"{qkv}.{leaf}",)) for leaf in ("kernel", "bias")}
        if not rank:
            continue
        second = _bound(lanes.split_second, tasks=tasks, rank=rank, axis=stacked)
        before, behind = (_bound(_cut, used, stacked, part) for part in (0, 1))
        for stem, opened in ((qkv, apart), (fc1, _same)):
            own = (f"{stem}.kernel",)
            recipe[own[0]] = _bound(_then, before, opened), own
            recipe[f"{stem}.lora_b"] = _bound(_then, second, _bound(_then, behind, opened)), own
        left, right = (_bound(_cut, used, -1, part) for part in (0, 1))
        for stem in (f"{layer}attention.out_proj", f"{layer}mlp.fc2"):
            own = (f"{stem}.kernel",)
            recipe |= {own[0]: (left, own), f"{stem}.lora_a": (_bound(_then, first, right), own)}
            recipe[f"{stem}.lora_b"] = second, (f"{stem}.lora_b",)
        recipe[f"{fc1}.lora_a"] = first, (f"{layer}norm1.lora_a",)
        recipe[f"{qkv}.lora_a"] = _low_of_own(layer, first)
    return recipe


def _low_of_own(layer: str, first: Callable) -> tuple[Callable, tuple[str, ...]]:
    """Take the first factor of a ``qkv_proj`` from the norm before it."""
    number = _LAYER.match(layer)[1]
    if number is None:
        return _bound(_then, first, _unshift), ("embedding_norm.lora_a", f"{layer}norm2.lora_a")
    before = f"layers.{int(number) - 1}.norm2" if int(number) else "embedding_norm"
    return first, (f"{before}.lora_a",)


def _layers(paths: Collection[str]) -> list[tuple[str, int]]:
    """Name each layer as its paths begin, with the number of stacked axes."""
    matches = filter(None, map(_LAYER.match, paths))
    return sorted({(match[0], int(match[1] is None)) for match in matches})


def _append_rows(stacked: int, kernel: jax.Array, lora_b: jax.Array) -> jax.Array:
    """Return [W ; B]."""
    return jnp.concatenate((kernel, lanes.join_second(lora_b, stacked)), axis=stacked)


def _append_columns(kernel: jax.Array, lora_a: jax.Array) -> jax.Array:
    """Return [W | A]."""
    return jnp.concatenate((kernel, lanes.join_first(lora_a)), axis=-1)


def _cut(size: int, axis: int, part: int, joined: jax.Array) -> jax.Array:
    """Return what is before the last ``size`` of an axis, or these."""
    return jnp.split(joined, (joined.shape[axis] - size,), axis=axis)[part]


def _shift(stacked: jax.Array) -> jax.Array:
    """Give each layer what the next one has, and zeros to the last."""
    return jnp.concatenate((stacked[1:], jnp.zeros_like(stacked[:1])))


def _unshift(first: jax.Array, shifted: jax.Array) -> jax.Array:
    return jnp.concatenate((first[None], shifted[:-1]))


def _then(second: Callable, first: Callable, *arrays: jax.Array) -> jax.Array:
    return second(first(*arrays))


def _at(index: int, array: jax.Array) -> jax.Array:
    return array[index]


def _same(array: jax.Array) -> jax.Array:
    return array


def _append_both(table: jax.Array, words: jax.Array, types: jax.Array) -> jax.Array:
    """Put the first factors of each word and of token type 0 behind the word's row."""
    tasks, count, rank = words.shape
    both = jnp.stack((words, jnp.broadcast_to(types[:, :1], words.shape)))
    return _append_columns(table, both.reshape(2 * tasks, count, rank))


def _below(words: jax.Array, types: jax.Array) -> jax.Array:
    return lanes.join_second(jnp.concatenate((words, types)))
