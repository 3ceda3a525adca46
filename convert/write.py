"""Write a checkpoint in any layout, one tensor at a time."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jina_jax.checkpoints.names import LAYOUTS
from jina_jax.checkpoints.native import write_native
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor, write_safetensors
from jina_jax.convert.configs import dump_config, task_folder
from jina_jax.convert.layouts import Binding, bindings
from jina_jax.convert.read import Checkpoint
from jina_jax.convert.st_write import write_modules
from jina_jax.files import new_directory, write_json
from jina_jax.nn.lora import merged_weight
from jina_jax.nn.parameters import adapters_of, is_adapter

_BLOCK_ROWS = 1024

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_checkpoint(checkpoint: Checkpoint, directory: str | Path, layout: str) -> None:
    """Write a checkpoint as a new directory.

    Weights keep their dtype and every bit. The directory appears only when it is complete.

    Args:
      checkpoint: from ``open_checkpoint`` or ``merge_checkpoint``.
      directory: to make.
      layout: "native", "published", "transformers" (adapters in PEFT folders) or "xlm-roberta".

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
    folders = None
    if layout != "published":
        folders = tuple(task_folder(task) for task in config.lora_adaptations)
        if len(set(folders)) < len(folders):
            raise CheckpointError(f"tasks {config.lora_adaptations} have the same folder names")
    if layout == "xlm-roberta" and folders:
        raise CheckpointError("layout 'xlm-roberta' has no place for adapters; merge a task first")
    if (layout == "xlm-roberta") != (config.position_embedding_type == "absolute") and (
        layout != "published"
    ):
        raise CheckpointError(
            f"layout {layout!r} has no place for {config.position_embedding_type} positions"
        )
    groups: dict[str, dict[str, LazyTensor]] = {"": {}, **{name: {} for name in folders or ()}}
    for binding in bindings(layout, config, folders):
        for key, tensor in _split(binding, checkpoint.tensors[binding.path]).items():
            folder, _, name = key.rpartition("/")
            prefix = "roberta." if layout == "published" and not folder else ""
            groups.setdefault(folder, {})[prefix + name] = tensor
    raw = dump_config(layout, config, checkpoint.extras, checkpoint.dtype)
    write_json(directory / "config.json", raw)
    write_safetensors(directory / "model.safetensors", groups.pop(""), "pt")
    for folder, tensors in groups.items():
        (directory / folder).mkdir()
        name = "model.safetensors"
        if folder in (folders or ()):
            name = "adapter_model.safetensors"
            adapter = _adapter_config(checkpoint, tensors)
            write_json(directory / folder / "adapter_config.json", adapter)
        write_safetensors(directory / folder / name, tensors, "pt")


def _split(binding: Binding, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """View the foreign tensors that ours is made of."""

    def lazy(k: int) -> LazyTensor:
        return LazyTensor(binding.shapes[k], tensor.dtype, lambda: binding.split(tensor.read())[k])

    return {key: lazy(k) for k, key in enumerate(binding.keys)}


def _adapter_config(checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, object]:
    """Describe an adapter to PEFT."""
    modules = {key.split(".lora_")[0].rsplit(".", 1)[1] for key in tensors}
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": None,
        "r": checkpoint.config.lora_rank,
        "lora_alpha": checkpoint.config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }


def _carry_files(checkpoint: Checkpoint, directory: Path, layout: str) -> None:
    """Copy the tokenizer's files, and the text about a model whose layout stays."""
    same = layout == checkpoint.layout
    for name in (*TOKENIZER_FILES, *(["README.md"] if same else [])):
        source = checkpoint.directory / name
        if source.exists():
            shutil.copyfile(source, directory / name)
