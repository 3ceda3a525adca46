"""PEFT's adapters to and from ours, which are stacked: one rank and scale for all.

Ranks are padded with zeros. Where one of our modules is several of theirs (query, key and value),
the different A's are side by side, and each B is a block: (x A₁) B₁ is the same sum as before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.convert.peft import Factors

Modules = Mapping[str, tuple[str, ...]]  # our module's path → theirs, side by side
_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """The adapters of all tasks.

    Attributes:
      rank, alpha: ``Config.lora_rank`` and ``Config.lora_alpha``.
      tensors: path of each factor → (K, in, R) or (K, R, out).
    """

    rank: int
    alpha: float
    tensors: dict[str, LazyTensor]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Modules that share an A: the columns of B that belong to each."""

    a: LazyTensor
    parts: tuple[tuple[int, Factors], ...]


def stack(
    tasks: Sequence[Mapping[str, Factors]],
    modules: Modules,
    shapes: Mapping[str, tuple[int, int]],
) -> Stacked:
    """Stack the adapters of K tasks.

    Args:
      tasks: of each, the factors by module.
      modules: every module that can have an adapter.
      shapes: our module's path → (in, out), or (V, D).

    Returns:
      Both factors of every one of ``modules``; zero where no task has any.
    """
    every = [factors for task in tasks for factors in task.values()]
    scale = next((f.scale for f in every if f.scale > 0), 1.0)
    blocks = {path: [_blocks(task, names) for task in tasks] for path, names in modules.items()}
    rank = max(sum(block.a.shape[0] for block in own) for tasks in blocks.values() for own in tasks)
    shared = [factors.alpha for factors in every if factors.rank == rank and factors.scale == scale]
    alpha = shared[0] if shared else rounded(scale * rank)
    usual = _common(f.a.dtype for f in every)
    tensors: dict[str, LazyTensor] = {}
    for path, names in modules.items():
        size, out = shapes[path]
        own, width = blocks[path], out // len(names)
        tensors[f"{path}.lora_a"] = _stacked_a(own, (len(tasks), size, rank), usual)
        tensors[f"{path}.lora_b"] = _stacked_b(own, (len(tasks), rank, out), usual, width, scale)
    return Stacked(rank, alpha, tensors)


def _blocks(task: Mapping[str, Factors], names: tuple[str, ...]) -> list[_Block]:
    """Group the modules that are one of ours by equal A's, in order."""
    blocks: list[_Block] = []
    for part in [(i, task[name]) for i, name in enumerate(names) if name in task]:
        a = part[1].a
        for at, block in enumerate(blocks):
            if block.a.shape == a.shape and np.array_equal(block.a.read().copy(), a.read()):
                blocks[at] = dataclasses.replace(block, parts=(*block.parts, part))
                break
        else:
            blocks.append(_Block(a, (part,)))
    return blocks


def _stacked_a(
    tasks: Sequence[Sequence[_Block]], shape: tuple[int, int, int], usual: np.dtype
) -> LazyTensor:
    found = [block.a.dtype for blocks in tasks for block in blocks]
    dtype = _common(found) if found else usual

    def read() -> np.ndarray:
        stacked = np.zeros(shape, dtype)
        for own, blocks in zip(stacked, tasks, strict=True):
            for block, rows in _with_rows(blocks):
                own[:, rows] = block.a.read().T
        return stacked

    return LazyTensor(shape, dtype, read)


def _stacked_b(
    tasks: Sequence[Sequence[_Block]],
    shape: tuple[int, int, int],
    usual: np.dtype,
    width: int,
    scale: float,
) -> LazyTensor:
    parts = [f for blocks in tasks for block in blocks for _, f in block.parts]
    # Folded into B, a scale must not be rounded to 16 bits.
    folded = any(_fold(f, scale) != 1 for f in parts)
    dtype = _FLOAT32 if folded else _common(f.b.dtype for f in parts) if parts else usual

    def read() -> np.ndarray:
        stacked = np.zeros(shape, dtype)
        for own, blocks in zip(stacked, tasks, strict=True):
            for block, rows in _with_rows(blocks):
                for part, factors in block.parts:
                    b, fold = factors.b.read().T.astype(dtype), _fold(factors, scale)
                    own[rows, part * width : (part + 1) * width] = b * dtype.type(fold)
        return stacked

    return LazyTensor(shape, dtype, read)


def _with_rows(blocks: Iterable[_Block]) -> Iterator[tuple[_Block, slice]]:
    """Pair each block with the part of the rank that it takes up."""
    end = 0
    for block in blocks:
        start, end = end, end + block.a.shape[0]
        yield block, slice(start, end)


def _fold(factors: Factors, scale: float) -> float:
    """Return the factor by which B differs, so that the common scale is right for it."""
    fold = factors.scale / scale
    return 1.0 if math.isclose(fold, 1.0, rel_tol=1e-12) else fold


def rounded(alpha: float) -> float:
    """Return alpha as an integer, if it is one but for rounding in float64."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _common(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the smallest dtype of weights with the values of all."""
    found = set(dtypes)
    return found.pop() if len(found) == 1 else _FLOAT32
