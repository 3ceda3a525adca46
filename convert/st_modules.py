"""Read the module files of sentence-transformers: how token vectors become a text's vector.

``st_fields`` is the table of what each field does here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import ConfigError, Dense
from jina_jax.convert import st_fields
from jina_jax.convert.files import WEIGHT_FILES, is_file
from jina_jax.convert.st_fields import Fields, check_fields
from jina_jax.files import read_json, read_json_value

MODULES_FILE = "modules.json"
POOLING_FILE = "1_Pooling/config.json"
SETTINGS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
# The first one found is read; the others are older names.
_TRANSFORMER_FILES = (
    TRANSFORMER_FILE,
    *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert")),
    *(f"sentence_{kind}_config.json" for kind in ("albert", "xlm-roberta", "xlnet")),
)
# The module of the published code, in the folder or in its repository, computes what the base
# model does unless a task is named.
_OWN_CLASS = re.compile(r"sentence_transformers\.(?:\w+\.)*(\w+)")
_PUBLISHED_CLASS = re.compile(r"(?:.+--)?custom_st\.(Transformer)")
_ORDER = "Transformer, Pooling, any number of Dense, any number of Normalize"  # see _listed


class DenseFiles(NamedTuple):
    """A module Dense: its folder in the checkpoint, the length of its input, and what it is."""

    folder: str
    in_features: int
    spec: Dense


class Modules(NamedTuple):
    """The modules of a checkpoint and their settings.

    Attributes:
      encoder: directory of the encoder's config, weights and tokenizer.
      pooler: pooling mode; None if no file names one.
      pooling_dimensions: field → length of token vectors, as the pooling's file has it.
      normalize: whether there is a module Normalize; None without a modules.json.
      default_prompt: the prompt that ``default_prompt_name`` names, or "".
      include_prompt, dense, prompts, max_seq_length, truncate_dim, similarity_fn_name: as in
        ``Config``, ``max_seq_length`` not yet limited by the number of positions.
    """

    encoder: Path
    pooler: str | None
    pooling_dimensions: Mapping[str, int]
    include_prompt: bool
    dense: tuple[DenseFiles, ...]
    normalize: bool | None
    prompts: Mapping[str, str]
    default_prompt: str
    max_seq_length: float | None
    truncate_dim: int | None
    similarity_fn_name: str


def read_modules(directory: Path) -> Modules:
    """Read the module files of a checkpoint; none of them needs to be there.

    Raises:
      ConfigError: naming the file and the field at fault.
      CheckpointError: if a folder that modules.json names is not there.
    """
    listed = _listed(directory)
    paths: dict[str, list[str]] = {}
    for kind, path in listed or [("Transformer", ""), ("Pooling", "1_Pooling")]:
        paths.setdefault(kind, []).append(path)
    for path in paths.get("Normalize", ()):
        _read(directory / path / "config.json", st_fields.NORMALIZE, strict=False)
    pooling: dict[str, Any] = {}
    for path in paths.get("Pooling", ()):
        pooling = _read(directory / path / "config.json", st_fields.POOLING)
        if listed and not pooling:
            raise ConfigError(
                f"{directory / MODULES_FILE}: path={path!r}: expected a folder with the "
                "config.json of the module Pooling"
            )
    settings = _read(directory / SETTINGS_FILE, st_fields.SENTENCE_TRANSFORMERS, strict=False)
    prompts = {name: prompt or "" for name, prompt in settings.get("prompts", {}).items()}
    encoder = directory / paths["Transformer"][0]
    return Modules(
        encoder=encoder,
        pooler=_pooler(directory, pooling) if pooling else None,
        pooling_dimensions={k: v for k, v in pooling.items() if k.endswith("embedding_dimension")},
        include_prompt=pooling.get("include_prompt", True),
        dense=tuple(_dense(directory, path) for path in paths.get("Dense", ())),
        normalize="Normalize" in paths if listed else None,
        prompts=prompts,
        default_prompt=_default_prompt(directory / SETTINGS_FILE, settings, prompts),
        max_seq_length=_max_seq_length(encoder),
        truncate_dim=settings.get("truncate_dim"),
        similarity_fn_name=settings.get("similarity_fn_name") or "cosine",
    )


def _listed(directory: Path) -> list[tuple[str, str]]:
    """Return kind and path of each module that counts; nothing without a modules.json."""
    file = directory / MODULES_FILE
    if not is_file(file):
        return []
    modules = _read_list(file)
    kinds: list[tuple[str, str]] = []
    for module in modules:
        check_fields(file, module, st_fields.MODULE, strict=False)
        if missing := {"name", "path", "type"} - module.keys():
            raise ConfigError(f"{file}: expected {', '.join(sorted(missing))} of every module")
        found = _OWN_CLASS.fullmatch(module["type"]) or _PUBLISHED_CLASS.fullmatch(module["type"])
        kind = found[1] if found else module["type"]
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
            raise ConfigError(
                f"{file}: type={module['type']!r}: not supported; expected Transformer, Pooling, "
                "Dense, Normalize or Dropout of sentence-transformers"
            )
        if kind in ("Pooling", "Dense") and not module["path"].strip("./"):
            raise ConfigError(f"{file}: path={module['path']!r}: expected a folder of {kind}")
        kinds.append((kind, module["path"]))
    if len({module["name"] for module in modules}) < len(modules):
        raise ConfigError(f"{file}: name: expected a name of its own for every module")
    kinds = [pair for pair in kinds if pair[0] != "Dropout"]  # without effect, except in training
    order = "".join(kind[0] for kind, _ in kinds)
    if not re.fullmatch("T(PD*)?N*", order):
        raise ConfigError(
            f"{file}: type: expected {_ORDER}, in this order; got {[kind for kind, _ in kinds]}"
        )
    _check_encoder(directory, kinds[0][1])
    return kinds


def _check_encoder(directory: Path, path: str) -> None:
    """Check that the folder of a module Transformer is that of an encoder."""
    needed = [("config.json", "adapter_config.json"), (*WEIGHT_FILES, "adapter_config.json")]
    if path and not all(any((directory / path / n).is_file() for n in names) for names in needed):
        raise CheckpointError(
            f"{directory / MODULES_FILE}: path={path!r}: expected a folder with config.json and "
            "weights"
        )


def _read_list(file: Path) -> list[dict[str, Any]]:
    modules = read_json_value(file)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise ConfigError(f"{file}: expected a list of objects, one per module")
    return modules


def _read(path: Path, fields: Fields, *, strict: bool = True) -> dict[str, Any]:
    """Read and check a file; a missing one has no fields."""
    raw = read_json(path) if is_file(path) else {}
    check_fields(path, raw, fields, strict=strict)
    return raw


def _pooler(directory: Path, raw: Mapping[str, Any]) -> str:
    """Return the pooling mode; without one sentence-transformers takes the mean."""
    if "pooling_mode" in raw:
        mode = raw["pooling_mode"]
        return mode[0] if isinstance(mode, list) else mode
    on = [name for name in st_fields.FLAGS if raw.get(name)]
    if len(on) > 1:
        raise ConfigError(f"{directory}: Pooling: expected one pooling mode, got {on}")
    return st_fields.FLAGS[on[0]] if on else "mean"


def _dense(directory: Path, path: str) -> DenseFiles:
    file = directory / path / "config.json"
    raw = _read(file, st_fields.DENSE)
    if not raw:
        raise ConfigError(
            f"{directory / MODULES_FILE}: path={path!r}: expected a folder with the config.json of "
            "the module Dense"
        )
    for name in ("in_features", "out_features"):
        if name not in raw:
            raise ConfigError(f"{file}: {name} is missing")
    activation = raw.get("activation_function", "torch.nn.Tanh")  # the default there
    spec = Dense(
        out_features=raw["out_features"],
        bias=raw.get("bias", True),
        activation=st_fields.ACTIVATIONS[activation],
    )
    return DenseFiles(path.strip("/"), raw["in_features"], spec)


def _default_prompt(file: Path, raw: Mapping[str, Any], prompts: Mapping[str, str]) -> str:
    # Names that sentence-transformers knows by itself, for no prompt.
    known = {"query": "", "document": "", **prompts}
    name = raw.get("default_prompt_name")
    if name is not None and name not in known:
        raise ConfigError(f"{file}: default_prompt_name={name!r} is not among its prompts")
    return "" if name is None else known[name]


def _max_seq_length(encoder: Path) -> float | None:
    """Return the most tokens of a text by the module's file, else by the tokenizer's."""
    length = None
    for name in _TRANSFORMER_FILES:
        if raw := _read(encoder / name, st_fields.TRANSFORMER):
            length = raw.get("max_seq_length")
            break
    _read(encoder / "special_tokens_map.json", st_fields.SPECIAL_TOKENS, strict=False)
    tokenizer = _read(encoder / "tokenizer_config.json", st_fields.TOKENIZER, strict=False)
    no_class = tokenizer.get("tokenizer_class") is None
    config = _read(
        encoder / "config.json", st_fields.TOKENIZER_CLASS if no_class else {}, strict=False
    )
    if config.get("model_type") == "bert" and tokenizer.get("padding_side") == "left":
        raise ConfigError(
            f"{encoder / 'tokenizer_config.json'}: padding_side='left': expected 'right' for a "
            "BERT, whose positions count the padding"
        )
    return tokenizer.get("model_max_length") if length is None else length
