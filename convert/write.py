"""Write a checkpoint in any layout, one tensor at a time."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from jina_jax.checkpoints.names import LAYOUTS
from jina_jax.checkpoints.native import write_native
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor, write_safetensors
from jina_jax.convert.configs import dump_config, task_folder
from jina_jax.convert.files import TOKENIZERS
from jina_jax.convert.layouts import POSITIONS, Binding, adapted_modules, bindings
from jina_jax.convert.peft import CONFIG_FILE, WEIGHT_FILES
from jina_jax.convert.read import Checkpoint
from jina_jax.convert.st_write import write_modules
from jina_jax.convert.unstacking import peft_config, peft_keys, unstack
from jina_jax.files import new_directory, read_json, write_json
from jina_jax.nn.lora import merged_weight
from jina_jax.nn.parameters import adapters_of, is_adapter

_BLOCK_ROWS = 1024

TOKENIZER_FILES = (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json")


def write_checkpoint(checkpoint: Checkpoint, directory: str | Path, layout: str) -> None:
    """Write a checkpoint as a new directory.

    Weights keep their dtype and every bit. The directory appears only when it is complete.

    Args:
      checkpoint: from ``open_checkpoint`` or ``merge_checkpoint``.
      directory: to make.
      layout: "native", "published", "transformers", "xlm-roberta" or "bert"; the last three have
        adapters in PEFT folders.

    Raises:
      ValueError: for an unknown layout.
      CheckpointError: if the layout cannot represent a part of the checkpoint.
      FileExistsError: if the directory exists and is not empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(map(repr, LAYOUTS))}")
    with new_directory(Path(directory)) as partial:
        if layout == "native":
            write_native(partial, checkpoint.config, checkpoint.tensors, checkpoint.extras)
        else:
            _write_foreign(checkpoint, partial, layout)
            write_modules(partial, checkpoint.config, layout)
        _carry_files(checkpoint, partial, layout)


def merge_checkpoint(checkpoint: Checkpoint, task: str) -> Checkpoint:
    """Fold one task's adapter into plain weights.

    Sums are made in float32 and then cast to the checkpoint's dtype, tensor by tensor, when they
    are read. The task's prompt becomes the default prompt.

    Raises:
      ValueError: for an unknown task.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    merged_config, index = config.merged(task), config.task_id(task)

    def merge(path: str, weight: LazyTensor) -> LazyTensor:
        factors = adapters_of(path, tensors)
        if factors is None:
            return weight

        def read() -> np.ndarray:
            lora_a, lora_b = (tensors[factor].read()[index].copy() for factor in factors)
            return _merged_in_blocks(weight, lora_a, lora_b, config.lora_scale)

        return dataclasses.replace(weight, read=read)

    merged = {path: merge(path, t) for path, t in tensors.items() if not is_adapter(path)}
    return dataclasses.replace(checkpoint, config=merged_config, tensors=merged)


def _merged_in_blocks(
    weight: LazyTensor, lora_a: np.ndarray, lora_b: np.ndarray, scale: float
) -> np.ndarray:
    """Merge some rows at a time: in float32 all word embeddings would need another gigabyte."""
    base, merged = weight.read(), np.empty(weight.shape, weight.dtype)
    for start in range(0, len(base), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        merged[rows] = merged_weight(base[rows], lora_a[rows], lora_b, scale)
    return merged


def _write_foreign(checkpoint: Checkpoint, directory: Path, layout: str) -> None:
    config = checkpoint.config
    stacked = layout == "published"
    if config.position_embedding_type not in POSITIONS[layout]:
        raise CheckpointError(
            f"layout {layout!r} has no place for {config.position_embedding_type} positions"
        )
    prefix = "roberta." if stacked else ""
    groups: dict[str, dict[str, LazyTensor]] = {"": {}}  # by folder
    for binding in bindings(layout, config, stacked=stacked and config.num_tasks > 0):
        for key, tensor in _split(binding, checkpoint.tensors[binding.path]).items():
            folder, _, name = key.rpartition("/")
            groups.setdefault(folder, {})[name if folder else prefix + name] = tensor
    raw = dump_config(layout, config, checkpoint.extras, checkpoint.dtype)
    write_json(directory / "config.json", raw)
    for folder, tensors in groups.items():
        (directory / folder).mkdir(exist_ok=True)
        write_safetensors(directory / folder / "model.safetensors", tensors, "pt")
    if not stacked:
        _write_folders(checkpoint, directory, layout)


def _write_folders(checkpoint: Checkpoint, directory: Path, layout: str) -> None:
    """Write each task's adapter as a folder of PEFT's."""
    config = checkpoint.config
    folders = [task_folder(task) for task in config.lora_adaptations]
    if len(set(folders)) < len(folders):
        raise CheckpointError(f"tasks {config.lora_adaptations} have the same folder names")
    modules = adapted_modules(layout, config)
    paths = {name: path for path, names in modules.items() for name in names}
    for task, folder in enumerate(folders):
        factors = unstack(checkpoint.tensors, modules, task)
        (directory / folder).mkdir()
        write_json(directory / folder / CONFIG_FILE, peft_config(factors, modules, config))
        tensors = {
            key: tensor
            for name, pair in factors.items()
            for key, tensor in zip(peft_keys(paths[name], name), pair, strict=True)
        }
        write_safetensors(directory / folder / WEIGHT_FILES[0], tensors, "pt")


def _split(binding: Binding, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """View the foreign tensors that ours is made of."""

    def lazy(k: int) -> LazyTensor:
        return LazyTensor(binding.shapes[k], tensor.dtype, lambda: binding.split(tensor.read())[k])

    return {key: lazy(k) for k, key in enumerate(binding.keys)}


def _carry_files(checkpoint: Checkpoint, directory: Path, layout: str) -> None:
    """Copy the tokenizer's files, and the text about a model whose layout stays."""
    same, config = layout == checkpoint.layout, checkpoint.config
    for name in (*TOKENIZER_FILES, *(["README.md"] if same else [])):
        own = checkpoint.tokenizer.parent if name in TOKENIZER_FILES else checkpoint.directory
        if (own / name).exists():
            shutil.copyfile(own / name, directory / name)
    if layout == "bert":  # transformers takes it for a WordPiece tokenizer, unless a class is named
        path = directory / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {"model_max_length": config.max_length}
        named = settings.get("tokenizer_class") or "XLMRobertaTokenizer"
        write_json(path, {**settings, "tokenizer_class": named})
