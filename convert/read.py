"""Open the weights of any known layout as our own tensors."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.checkpoints.native import WEIGHTS_FILE, load_native
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor
from jina_jax.config import Config
from jina_jax.convert.configs import read_config
from jina_jax.convert.files import Pairs, is_file, open_dense, open_weights, tokenizer_file
from jina_jax.convert.layouts import HEADS, IGNORED, MARKS, Binding, bindings
from jina_jax.convert.sizes import check_tensors
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
      directory: where its config and weights are, or for an adapter alone, its settings.
      layout: "native", "published", "transformers", "xlm-roberta" or "bert".
      config: its config.
      tensors: path in our encoder → tensor.
      extras: the fields of its ``config.json`` that are not in ``config``.
      ignored: keys of its weights that are not part of an encoder (heads, buffers).
      tokenizer_directory: where its tokenizer is; None for ``directory``.
      notes: what a user of its vectors should know: what was assumed, or is not used.
    """

    directory: Path
    layout: str
    config: Config
    tensors: Mapping[str, LazyTensor]
    extras: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    tokenizer_directory: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Path:
        """The file of its tokenizer: tokenizer.json, or else the SentencePiece model."""
        return tokenizer_file(self.tokenizer_directory or self.directory)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the word embeddings, taken as the checkpoint's."""
        return self.tensors["word_embeddings.embedding"].dtype


def open_base(
    directory: Path, *, settings: Path | None = None, in_folders: bool = False
) -> Checkpoint:
    """Open the weights of a directory, without PEFT's adapters.

    Args:
      directory: of the weights and their ``config.json``.
      settings: directory with the files of sentence-transformers; None for the same.
      in_folders: whether PEFT's folders have adapters, so that config.json may list them.

    Raises:
      ConfigError, CheckpointError: as ``open_checkpoint``.
    """
    if is_file(directory / "config.json") and is_file(directory / WEIGHTS_FILE):
        config, tensors = load_native(directory)
        raw = read_json(directory / "config.json")
        extras = {name: value for name, value in raw.items() if name not in config.to_dict()}
        return Checkpoint(directory, "native", config, tensors, extras)
    modules = read_modules(directory)
    encoder = modules.encoder
    if not is_file(encoder / "config.json"):
        found = [path.parent.name for path in sorted(directory.glob("*_Transformer/config.json"))]
        hint = f"; {found[0]} has one, and would be found by a modules.json" if found else ""
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory with a config.json{hint}"
        )
    if settings not in (None, directory):
        modules = read_modules(settings)
    opened = _open_foreign(encoder, modules, settings or directory, in_folders=in_folders)
    if settings in (None, directory):
        return opened
    return dataclasses.replace(opened, directory=settings, tokenizer_directory=encoder)


def _open_foreign(directory: Path, modules: Modules, root: Path, *, in_folders: bool) -> Checkpoint:
    file, pairs = open_weights(directory)
    raw = read_json(directory / "config.json")
    prefix, layout = _recognise(file, pairs, raw)
    ignored = tuple(key for key, _ in pairs if re.search(IGNORED, key))
    if ignored:
        _LOGGER.info("%s: ignored, no part of the encoder: %s", file, ", ".join(ignored))
    pairs = [pair for pair in pairs if pair[0] not in ignored]
    stacked = any(".parametrizations." in key for key, _ in pairs)
    config, extras = read_config(
        raw,
        modules,
        layout=layout,
        has_pooler=any(key.startswith(f"{prefix}pooler.") for key, _ in pairs),
        stacked=stacked,
        in_folders=in_folders,
    )
    dense = tuple(module.folder for module in modules.dense)
    for folder in dense:
        pairs += [(f"{folder}/{key}", tensor) for key, tensor in open_dense(root / folder).items()]
    bound = [_prefixed(b, prefix) for b in bindings(layout, config, stacked=stacked, dense=dense)]
    check_tensors(str(file), config, bound, pairs)
    found, shapes = dict(pairs), parameter_shapes(config)
    _check_dtypes(bound, found, str(file))
    tensors = {b.path: _bind(b, found, shapes[b.path]) for b in bound}
    notes = tuple(_notes(root, layout, modules, ignored))
    return Checkpoint(directory, layout, config, tensors, extras, ignored, notes=notes)


def _notes(root: Path, layout: str, modules: Modules, ignored: tuple[str, ...]) -> Iterator[str]:
    """Yield what a user of a checkpoint's vectors should know."""
    if heads := [key for key in ignored if re.search(HEADS, key)]:
        yield (
            f"{root}: {', '.join(heads)} ignored: this is a classifier or reranker; its vectors "
            "were not trained to be compared"
        )
    plain = layout in ("xlm-roberta", "bert")
    if modules.pooler is None and (plain or modules.normalize is not None):
        yield (
            f"{root}: no {POOLING_FILE} or no Pooling in modules.json: the mean over tokens is "
            "assumed, as sentence-transformers does without module files"
        )
    if modules.similarity_fn_name != "cosine" and modules.normalize is False:
        yield (
            f"{root}: similarity_fn_name={modules.similarity_fn_name!r} compares vectors that are "
            "not of unit length: encode with normalize_embeddings=False"
        )


def _recognise(file: Path, pairs: Pairs, raw: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prefix of all keys ("", "roberta.", …) and the layout."""
    prefixes = [match[1] for key, _ in pairs if (match := _WORD_EMBEDDINGS.fullmatch(key))]
    if len(set(prefixes)) != 1:
        raise CheckpointError(
            f"{file}: expected one '…embeddings.word_embeddings.weight', found {len(prefixes)}"
        )
    for layout, mark in MARKS.items():
        if any(mark in key for key, _ in pairs):
            is_bert = layout == "xlm-roberta" and raw.get("model_type") == "bert"
            return prefixes[0], "bert" if is_bert else layout
    raise CheckpointError(
        f"{file}: not a known layout; expected keys with one of {', '.join(MARKS.values())}"
    )


def _prefixed(binding: Binding, prefix: str) -> Binding:
    """Prepend the file's prefix to a binding's keys, except those of modules in folders."""
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
