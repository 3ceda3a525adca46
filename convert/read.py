"""Open a checkpoint directory of any known layout as our own tensors."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.checkpoints.native import WEIGHTS_FILE, check_keys, load_native
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor
from jina_jax.config import Config
from jina_jax.convert.configs import read_config, task_folder
from jina_jax.convert.files import Pairs, open_adapter, open_dense, open_weights
from jina_jax.convert.layouts import HEADS, IGNORED, MARKS, Binding, bindings
from jina_jax.convert.st_modules import POOLING_FILE, Modules, read_modules
from jina_jax.files import read_json
from jina_jax.nn.parameters import parameter_shapes

_LOGGER = logging.getLogger("jina_jax")

_WORD_EMBEDDINGS = re.compile(
    r"((?:.*\.)?)embeddings\.word_embeddings\.(parametrizations\.weight\.original|weight)"
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; its tensors are read on demand.

    Attributes:
      directory: where its config, weights and tokenizer are.
      layout: "native", "published", "transformers" or "xlm-roberta".
      config: its config.
      tensors: path in our encoder → tensor.
      extras: the fields of its ``config.json`` that are not in ``config``.
      ignored: keys of its weights that are not part of an encoder (heads, buffers).
      notes: what a user of its vectors should know: what was assumed, or is not used.
    """

    directory: Path
    layout: str
    config: Config
    tensors: Mapping[str, LazyTensor]
    extras: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the word embeddings, taken as the checkpoint's."""
        return self.tensors["word_embeddings.embedding"].dtype


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Open a checkpoint directory, recognising its layout.

    Args:
      directory: a native checkpoint, the published layout (safetensors, sharded or one file, or
        ``pytorch_model.bin``), the transformers layout with its PEFT folders, or plain XLM-R.

    Raises:
      ConfigError, CheckpointError: if it is none of these, or damaged; the message lists every
        field or key at fault.
    """
    directory = Path(directory)
    if (directory / "config.json").exists() and (directory / WEIGHTS_FILE).exists():
        config, tensors = load_native(directory)
        raw = read_json(directory / "config.json")
        extras = {name: value for name, value in raw.items() if name not in config.to_dict()}
        return Checkpoint(directory, "native", config, tensors, extras)
    modules = read_modules(directory)
    if not (modules.encoder / "config.json").exists():
        found = [path.parent.name for path in sorted(directory.glob("*_Transformer/config.json"))]
        hint = f"; {found[0]} has one, and would be found by a modules.json" if found else ""
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory with a config.json{hint}"
        )
    return _open_foreign(modules.encoder, modules, directory)


def _open_foreign(directory: Path, modules: Modules, root: Path) -> Checkpoint:
    file, pairs = open_weights(directory)
    prefix, layout = _recognise(file, pairs)
    ignored = tuple(key for key, _ in pairs if re.search(IGNORED, key))
    if ignored:
        _LOGGER.info("%s: ignored, no part of the encoder: %s", file, ", ".join(ignored))
    pairs = [pair for pair in pairs if pair[0] not in ignored]
    adapters = _open_adapters(directory)
    stacked = any(".parametrizations." in key for key, _ in pairs)
    if stacked and adapters:
        raise CheckpointError(f"{file}: has adapters, and PEFT folders beside it: {[*adapters]}")
    config, extras = read_config(
        directory,
        modules,
        layout=layout,
        has_pooler=any(key.startswith(f"{prefix}pooler.") for key, _ in pairs),
        stacked=stacked,
        adapters={folder: (rank, alpha) for folder, (rank, alpha, _) in adapters.items()},
    )
    by_task = {task_folder(folder): folder for folder in adapters}
    folders = tuple(by_task[task_folder(task)] for task in config.lora_adaptations if adapters)
    for folder, (_, _, tensors) in adapters.items():
        pairs += [(f"{folder}/{key}", tensor) for key, tensor in tensors.items()]
    dense = tuple(module.folder for module in modules.dense)
    for folder in dense:
        pairs += [(f"{folder}/{key}", tensor) for key, tensor in open_dense(root / folder).items()]
    folders_of = (None if stacked else folders, dense)
    bound = [_prefixed(b, prefix) for b in bindings(layout, config, *folders_of)]
    expected = {k: s for b in bound for k, s in zip(b.keys, b.shapes, strict=True)}
    check_keys(expected, pairs, str(file))
    found, shapes = dict(pairs), parameter_shapes(config)
    _check_dtypes(bound, found, str(file))
    tensors = {b.path: _bind(b, found, shapes[b.path]) for b in bound}
    notes = tuple(_notes(root, layout, modules, ignored))
    return Checkpoint(directory, layout, config, tensors, extras, ignored, notes)


def _notes(root: Path, layout: str, modules: Modules, ignored: tuple[str, ...]) -> Iterator[str]:
    """Yield what a user of a checkpoint's vectors should know."""
    if heads := [key for key in ignored if re.search(HEADS, key)]:
        yield (
            f"{root}: {', '.join(heads)} ignored: this is a classifier or reranker; its vectors "
            "were not trained to be compared"
        )
    if modules.pooler is None and (layout == "xlm-roberta" or modules.normalize is not None):
        yield (
            f"{root}: no {POOLING_FILE} or no Pooling in modules.json: the mean over tokens is "
            "assumed, as sentence-transformers does without module files"
        )
    if modules.similarity_fn_name != "cosine" and modules.normalize is False:
        yield (
            f"{root}: similarity_fn_name={modules.similarity_fn_name!r} compares vectors that are "
            "not of unit length: encode with normalize_embeddings=False"
        )


def _open_adapters(directory: Path) -> dict[str, tuple[int, float, dict[str, LazyTensor]]]:
    """Open every PEFT folder of a checkpoint, by name."""
    paths = sorted(directory.glob("*/adapter_config.json"))
    return {path.parent.name: open_adapter(path.parent) for path in paths}


def _recognise(file: Path, pairs: Pairs) -> tuple[str, str]:
    """Return the prefix of all keys ("", "roberta.", …) and the layout."""
    prefixes = [match[1] for key, _ in pairs if (match := _WORD_EMBEDDINGS.fullmatch(key))]
    if len(set(prefixes)) != 1:
        raise CheckpointError(
            f"{file}: expected one '…embeddings.word_embeddings.weight', found {len(prefixes)}"
        )
    for layout, mark in MARKS.items():
        if any(mark in key for key, _ in pairs):
            return prefixes[0], layout
    raise CheckpointError(
        f"{file}: not a known layout; expected keys with one of {', '.join(MARKS.values())}"
    )


def _prefixed(binding: Binding, prefix: str) -> Binding:
    """Prepend the file's prefix to a binding's keys, except those in PEFT folders."""
    keys = tuple(key if "/" in key else prefix + key for key in binding.keys)
    return dataclasses.replace(binding, keys=keys)


def _check_dtypes(bound: list[Binding], found: Mapping[str, LazyTensor], source: str) -> None:
    """Refuse foreign tensors of several dtypes that would be one of ours: nothing is rounded."""
    mixed = [b.keys for b in bound if len({found[key].dtype for key in b.keys}) > 1]
    if mixed:
        lines = "\n  ".join(", ".join(keys) for keys in mixed)
        raise CheckpointError(f"{source}: expected one dtype for all tensors of a line:\n  {lines}")


def _bind(binding: Binding, found: Mapping[str, LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    """Make our tensor from the foreign ones, which are read one at a time."""
    parts = [found[key] for key in binding.keys]

    def read() -> np.ndarray:
        if len(parts) == 1:
            return binding.join([parts[0].read()])
        return binding.join([part.read().copy() for part in parts])

    return LazyTensor(shape, parts[0].dtype, read)
