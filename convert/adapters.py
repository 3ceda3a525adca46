"""Checkpoints with tasks added or trained parameters in place of those of their files."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jina_jax.checkpoints.native import check_keys
from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.checks import check_integer
from jina_jax.config import Config
from jina_jax.convert.configs import task_folder
from jina_jax.convert.read import Checkpoint
from jina_jax.nn.layers import EMBED_FACTORS, LINEAR_FACTORS
from jina_jax.nn.parameters import is_adapter, is_table, parameter_shapes

# Defaults of the published code, for a checkpoint without adapters.
_RANK, _ALPHA = 4, 1


def add_task(
    checkpoint: Checkpoint,
    name: str,
    *,
    copy_of: str | None = None,
    prompt: str | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Add a task at the end of the task axis.

    Its adapter is ready to be trained: a copy of another one, or one that changes nothing yet, of
    whose two factors one is zero and the other is drawn at random (``jina_jax.nn.layers``).
    Adapters have the dtype of the other adapters, or of their weight if there are none.

    Args:
      checkpoint: with or without adapters; not changed.
      name: of the new task.
      copy_of: task to copy; None for an update of zero.
      prompt: prepended to the task's texts; None for the prompt of ``copy_of``, or for none.
      rank: R of a checkpoint's first adapter, None for 4; shared by later ones.
      alpha: alpha of the first adapter, None for 1; shared by later ones.
      seed: of the random values, from 0 up; the same seed and name give the same values.

    Returns:
      The checkpoint with one more task; its tensors are made when read.

    Raises:
      ValueError: if the name is taken or has no folder name of its own, ``copy_of`` is unknown, or
        rank or alpha differ from those of the other adapters.
    """
    before = checkpoint.config
    index = before.task_id(copy_of)
    seed = check_integer("seed", seed, 0)
    _check_name(name, before.lora_adaptations)
    if rank is not None:
        rank = check_integer("rank", rank, 1)
    if isinstance(alpha, np.generic):
        alpha = alpha.item()
    config = _with_task(before, name, copy_of, prompt, rank, alpha)
    tensors = dict(checkpoint.tensors)

    def add(path: str, shape: tuple[int, ...]) -> LazyTensor:
        present = checkpoint.tensors.get(path)
        dtype = _weight(checkpoint, path).dtype if present is None else present.dtype

        def read() -> np.ndarray:
            old = np.empty((0, *shape[1:]), dtype) if present is None else present.read()
            new = _draw(path, shape[1:], name, seed)
            return np.concatenate([old, (new if index < 0 else old[index])[None].astype(dtype)])

        return LazyTensor(shape, dtype, read)

    for path, shape in _adapter_shapes(config).items():
        tensors[path] = add(path, shape)
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


def with_adapters(
    checkpoint: Checkpoint, tasks: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> Checkpoint:
    """Replace the adapters of some tasks by trained ones.

    The other tasks keep their values exactly: adapters get the smallest dtype that represents both
    the old and the new ones, so that trained float32 beside bfloat16 makes all of them float32.

    Args:
      checkpoint: with these tasks; not changed.
      tasks: k distinct names.
      arrays: for every path of an adapter ("….lora_a", "….lora_b") the values of these tasks, in
        their order: (k, in, R) or (k, R, out), float32, bfloat16 or float16. Not copied.

    Raises:
      ValueError: for an unknown task, a task named twice, or no task.
      CheckpointError: listing every path that is missing, unknown, misshapen or not float.
    """
    indices = [checkpoint.config.task_id(task) for task in tasks]
    if not indices or len(set(indices)) < len(indices) or -1 in indices:
        raise ValueError(f"tasks={tasks!r}: expected distinct names, at least one")
    shapes = _adapter_shapes(checkpoint.config)
    expected = {path: (len(indices), *shape[1:]) for path, shape in shapes.items()}
    trained = _checked(arrays, expected)

    def replace(present: LazyTensor, new: LazyTensor) -> LazyTensor:
        dtype = present.dtype if present.dtype == new.dtype else np.dtype(np.float32)

        def read() -> np.ndarray:
            stacked = present.read().astype(dtype)
            stacked[indices] = new.read()
            return stacked

        return LazyTensor(present.shape, dtype, read)

    replaced = {path: replace(checkpoint.tensors[path], new) for path, new in trained.items()}
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **replaced})


def with_weights(checkpoint: Checkpoint, arrays: Mapping[str, np.ndarray]) -> Checkpoint:
    """Replace some weights of the base model by trained ones.

    Args:
      checkpoint: not changed.
      arrays: path to values in the parameter's shape, float32, bfloat16 or float16; the new tensor
        has this dtype. Not copied. Adapters are for ``with_adapters``.

    Raises:
      CheckpointError: listing every path that is unknown, misshapen or not float.
    """
    shapes = parameter_shapes(checkpoint.config)
    expected = {path: shapes[path] for path in arrays if path in shapes and not is_adapter(path)}
    replaced = _checked(arrays, expected)
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **replaced})


def _check_name(name: str, others: Sequence[str]) -> None:
    if not isinstance(name, str) or not re.search("[A-Za-z0-9]", name):
        raise ValueError(f"name={name!r}: expected a string with a letter or digit of ASCII")
    taken = {task_folder(task): task for task in others}
    if task_folder(name) in taken:
        raise ValueError(
            f"name={name!r}: expected a folder name of its own; the task "
            f"{taken[task_folder(name)]!r} has {task_folder(name)!r}"
        )


def _with_task(
    config: Config,
    name: str,
    copy_of: str | None,
    prompt: str | None,
    rank: int | None,
    alpha: float | None,
) -> Config:
    """Return the config with the task at the end."""
    shared = config.num_tasks > 0
    for argument, value, other in (
        ("rank", rank, config.lora_rank),
        ("alpha", alpha, config.lora_alpha),
    ):
        if shared and value not in (None, other):
            raise ValueError(
                f"{argument}={value!r}: expected {other!r}: all adapters of a checkpoint share it"
            )
    if prompt is None:
        prompt = "" if copy_of is None else config.prompt(copy_of)
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r}: expected a string or None")
    return dataclasses.replace(
        config,
        lora_adaptations=(*config.lora_adaptations, name),
        task_instructions=(*config.task_instructions, (name, prompt)),
        lora_rank=config.lora_rank if shared else _RANK if rank is None else rank,
        lora_alpha=config.lora_alpha if shared else _ALPHA if alpha is None else alpha,
    )


def _adapter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, shape in parameter_shapes(config).items() if is_adapter(path)}


def _weight(checkpoint: Checkpoint, path: str) -> LazyTensor:
    """Return the weight that an adapter's path belongs to."""
    stem = path.rpartition(".")[0]
    leaf = "embedding" if is_table(path) else "kernel"
    return checkpoint.tensors[f"{stem}.{leaf}"]


def _draw(path: str, shape: tuple[int, ...], name: str, seed: int) -> np.ndarray:
    """Draw one factor of a new adapter, float32, (in, R) or (R, out)."""
    factors = EMBED_FACTORS if is_table(path) else LINEAR_FACTORS
    initializer = factors[0 if path.endswith(".lora_a") else 1]
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{name}:{path}".encode()))
    return np.asarray(initializer(key, (1, *shape), np.float32))[0]


def _checked(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, LazyTensor]:
    """View arrays as tensors, exactly those expected."""
    found = {path: LazyTensor.of(np.asarray(array)) for path, array in arrays.items()}
    check_keys(expected, found.items(), "arrays")
    return found
