"""Open a checkpoint directory: weights, and the adapters in PEFT's files beside or over them."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from jina_jax.checkpoints.hub import HubOptions, fetch
from jina_jax.checkpoints.native import WEIGHTS_FILE
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import ConfigError
from jina_jax.convert.configs import check_lora_fields, folder_tasks
from jina_jax.convert.files import WEIGHT_FILES, is_file, tokenizer_file
from jina_jax.convert.layouts import adapted_modules
from jina_jax.convert.peft import CONFIG_FILE, PeftAdapter, open_peft
from jina_jax.convert.read import Checkpoint, open_base
from jina_jax.convert.st_modules import read_modules
from jina_jax.convert.stacking import Stacked, stack
from jina_jax.convert.write import merge_checkpoint
from jina_jax.files import read_json
from jina_jax.nn.parameters import parameter_shapes

_LOGGER = logging.getLogger("jina_jax")

# Of transformers' Trainer, and of sentence-transformers: neither is a task.
_OTHER_FOLDERS = re.compile(r"checkpoint-\d+|\d+_Transformer")
# Of sentence-transformers: a folder with one of these has settings of its own.
_SETTINGS = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json")
_TOP = "adapter"  # what the adapter at the top is called until it is merged


def open_checkpoint(directory: str | Path, **hub: Unpack[HubOptions]) -> Checkpoint:
    """Open a checkpoint directory, recognising its layout.

    Adapters of PEFT in sub-folders are tasks. One at the top of the directory is merged into the
    weights beside it, or without these into the base model that it names: as in transformers, the
    directory is then that of the adapted model. So is one in the folder that modules.json names.

    Args:
      directory: a native checkpoint; the published layout (safetensors, sharded or one file, or
        ``pytorch_model.bin``), the transformers layout, plain XLM-R, or a BERT with XLM-R's
        vocabulary, each with or without adapters of PEFT; or adapters alone.
      hub: token, cache_dir and local_files_only, to fetch the base model that an adapter names;
        its revision is the adapter's own choice.

    Raises:
      ConfigError, CheckpointError: if it is none of these, or damaged; the message lists every
        field or key at fault.
    """
    directory = Path(directory)
    encoder = read_modules(directory).encoder  # or a folder in it that modules.json names
    folders = _peft_folders(directory, encoder)
    if not folders:
        return open_base(directory)
    top = next((folder for folder in folders if folder in (encoder, directory)), None)
    if top and len(folders) > 1:
        names = sorted(folder.name for folder in folders if folder != top)
        raise CheckpointError(
            f"{top}: has an adapter at the top ({CONFIG_FILE}) and others in {names}; move "
            "the one at the top into a folder of its own, whose name is then its task"
        )
    adapters = {folder.name: open_peft(folder) for folder in folders}
    own = next((path for path in (encoder, directory) if _has_weights(path)), None)
    base = own or _named_base(directory, adapters, hub)
    return _adapted(directory, base, adapters, top=top)


def _peft_folders(directory: Path, encoder: Path) -> list[Path]:
    """List the folders with an adapter: the encoder's, the directory itself, and those in it."""
    inner = [
        folder
        for folder in sorted(directory.glob("*/"))
        if is_file(folder / CONFIG_FILE) and not _OTHER_FOLDERS.fullmatch(folder.name)
    ]
    own = [path for path in dict.fromkeys([encoder, directory]) if is_file(path / CONFIG_FILE)]
    return [*own, *(folder for folder in inner if folder not in own)]


def _has_weights(directory: Path) -> bool:
    names = (WEIGHTS_FILE, *WEIGHT_FILES)
    return is_file(directory / "config.json") and any(is_file(directory / n) for n in names)


def _named_base(directory: Path, adapters: Mapping[str, PeftAdapter], hub: HubOptions) -> Path:
    """Return the directory of the base model that adapters name, fetched if necessary."""
    named = {
        (adapter.config.get("base_model_name_or_path"), adapter.config.get("revision"))
        for adapter in adapters.values()
    }
    name, revision = min(named, key=str)
    field = (
        f"{next(iter(adapters.values())).folder / CONFIG_FILE}: base_model_name_or_path={name!r}"
    )
    advice = f"put the base model's files into {directory}, or correct base_model_name_or_path"
    if len(named) > 1:
        raise ConfigError(f"{directory}: expected one base model for all adapters, got {named}")
    if not name:
        raise ConfigError(f"{field}: an adapter without its base model; {advice}")
    try:
        local = Path(name)
        options: HubOptions = {**hub, "revision": revision}
        found = local if local.is_dir() else fetch(name, **options)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"{field}: the adapter's base model is missing ({error}); {advice}"
        ) from error
    if not _has_weights(found):
        raise CheckpointError(
            f"{field}: expected the base model of the adapter, a directory with config.json and "
            f"weights, but {found} has none; {advice}"
        )
    return found


def _adapted(
    directory: Path, base: Path, adapters: Mapping[str, PeftAdapter], *, top: Path | None
) -> Checkpoint:
    """Open a base model with adapters, as tasks, or merged where there is one in ``top``."""
    own = directory if any((directory / name).exists() for name in _SETTINGS) else base
    checkpoint = open_base(base, settings=own, in_folders=True)
    for folder in (directory, top):
        if folder is not None and is_file(tokenizer_file(folder)):
            checkpoint = dataclasses.replace(checkpoint, tokenizer_directory=folder)
    if checkpoint.config.num_tasks or checkpoint.layout == "native":
        has = "has adapters" if checkpoint.config.num_tasks else "is native"
        raise CheckpointError(f"{base}: {has}, and PEFT folders beside it: {[*adapters]}")
    if top is not None:
        tasks = {_TOP: (top.name, checkpoint.config.default_prompt)}
        _LOGGER.info("%s: merged into %s", top / CONFIG_FILE, base)
        return merge_checkpoint(_with_tasks(checkpoint, adapters, tasks, {}), _TOP)
    raw = read_json(base / "config.json") if base == directory else {}
    tasks = folder_tasks(raw, dict(checkpoint.config.prompts), adapters)
    return _with_tasks(checkpoint, adapters, tasks, raw)


def _with_tasks(
    checkpoint: Checkpoint,
    adapters: Mapping[str, PeftAdapter],
    tasks: Mapping[str, tuple[str, str]],
    raw: Mapping[str, Any],
) -> Checkpoint:
    """Add adapters as tasks, of which each is given with its folder and prompt."""
    stacked = _stacked(checkpoint, [adapters[folder] for folder, _ in tasks.values()])
    check_lora_fields(raw, stacked.rank, stacked.alpha)
    instructions = tuple((task, prompt) for task, (_, prompt) in tasks.items())
    config = dataclasses.replace(
        checkpoint.config,
        lora_adaptations=tuple(tasks),
        lora_rank=stacked.rank,
        lora_alpha=stacked.alpha,
        task_instructions=instructions,
        prompts=tuple(pair for pair in checkpoint.config.prompts if pair not in instructions),
    )
    return dataclasses.replace(
        checkpoint, config=config, tensors={**checkpoint.tensors, **stacked.tensors}
    )


def _stacked(checkpoint: Checkpoint, adapters: Sequence[PeftAdapter]) -> Stacked:
    layout, shapes = checkpoint.layout, parameter_shapes(checkpoint.config)
    # transformers saves the published names, if it has loaded them, but PEFT sees its modules.
    layouts = {"published": ("published", "transformers")}.get(layout, (layout,))
    tables = [adapted_modules(name, checkpoint.config) for name in layouts]
    modules = max(tables, key=lambda table: sum(adapter.count_of(table) for adapter in adapters))
    weights = {p: shapes.get(f"{p}.kernel") or shapes[f"{p}.embedding"] for p in modules}
    ours = {path: (size, out) for path, (size, out) in weights.items()}
    theirs = {
        name: (ours[path][0], ours[path][1] // len(names))
        for path, names in modules.items()
        for name in names
    }
    return stack([adapter.factors(theirs) for adapter in adapters], modules, ours)
