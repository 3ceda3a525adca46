"""Foreign ``config.json`` dialects to and from ``Config``.

Four dialects: "published" (jinaai/jina-embeddings-v3), "transformers" (its JinaEmbeddingsV3Config),
"xlm-roberta" (its XLMRobertaConfig) and "bert" (its BertConfig). Fields that a dialect leaves out
are filled in here and nowhere else, with the defaults of the dialect's own code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.config import Config, ConfigError
from jina_jax.files import read_json

# Order, names and prompts of the published adapters (``lora_adaptations`` and
# ``task_instructions`` of jinaai/jina-embeddings-v3), which the transformers dialect leaves out.
PUBLISHED_INSTRUCTIONS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}

_ABSOLUTE_TYPES = ("xlm-roberta", "camembert", "roberta")
_CLASSES = {"xlm-roberta": "XLMRobertaModel", "bert": "BertModel"}
_DIALECT_ONLY = (
    *("architectures", "auto_map", "dtype", "model_type", "rope_parameters", "rope_theta"),
    "torch_dtype",
)
_PLAIN_ROPE = {"rope_theta": 0, "rope_type": "default", "partial_rotary_factor": 1.0}
_FIELDS = tuple(field.name for field in dataclasses.fields(Config))


def task_folder(task: str) -> str:
    """Name the PEFT folder of a task: "retrieval.query" → "retrieval_query"."""
    return re.sub(r"[^A-Za-z0-9]+", "_", task)


def read_config(
    raw: Mapping[str, Any],
    directory: Path,
    *,
    layout: str,
    has_pooler: bool,
    stacked: bool,
    in_folders: bool,
) -> tuple[Config, dict[str, Any]]:
    """Read the config of a foreign checkpoint.

    Args:
      raw: the fields of ``config.json``.
      directory: with ``1_Pooling/config.json`` and ``config_sentence_transformers.json``, if the
        checkpoint has them.
      layout: of the weights, a key of ``layouts.TABLES``.
      has_pooler: whether the weights have a pooler.
      stacked: whether the weights have adapters of their own, as published.
      in_folders: whether PEFT's folders have adapters, which ``with_folders`` adds.

    Returns:
      The config, and the fields of ``config.json`` that are not in it.

    Raises:
      ConfigError: naming every field at fault.
    """
    prompts = sentence_transformers_prompts(directory)
    values: dict[str, Any] = dict(raw)
    values["position_embedding_type"] = kind = _position_embedding_type(raw, layout)
    values["rotary_emb_base"] = _rotary_emb_base(raw) if kind == "rotary" else None
    values["add_pooling_layer"] = has_pooler
    values["emb_pooler"] = raw.get("emb_pooler") or _sentence_transformers_pooler(directory)
    values["default_prompt"] = raw.get("default_prompt", prompts.get(None, ""))
    values.setdefault("truncate_dim", None)
    values.setdefault("matryoshka_dimensions", [])
    if not stacked:
        values |= _no_tasks(raw, in_folders)
    config = Config.from_dict(values)
    extras = {name: value for name, value in raw.items() if name not in _FIELDS}
    return config, extras


def dump_config(
    layout: str, config: Config, extras: Mapping[str, Any], dtype: np.dtype
) -> dict[str, Any]:
    """Write a config in a dialect.

    Args:
      layout: a key of ``layouts.TABLES``, which is also the dialect's name.
      config: what to write.
      extras: other fields of the ``config.json`` that the checkpoint was read from, to keep.
      dtype: of the weights.

    Returns:
      The fields of ``config.json``; ``read_config`` returns the same config from them.
    """
    carried = {name: value for name, value in extras.items() if name not in _DIALECT_ONLY}
    fields = config.to_dict()
    if layout != "published":  # in PEFT's folders, which need not share them
        del fields["lora_rank"], fields["lora_alpha"]
    if layout == "published":
        named: dict[str, Any] = {
            "architectures": ["XLMRobertaModel"],
            "torch_dtype": dtype.name,
        }
        if auto_map := _auto_map(config, extras):
            named["auto_map"] = auto_map
        return {**carried, **named, **fields}
    if layout == "transformers":
        base = fields.pop("rotary_emb_base")
        named = {
            "architectures": ["JinaEmbeddingsV3Model"],
            "model_type": "jina_embeddings_v3",
            "rope_parameters": {"rope_theta": base, "rope_type": "default"},
        }
        return {**carried, **named, "dtype": dtype.name, **fields}
    named = {"architectures": [_CLASSES[layout]], "model_type": layout}
    fields["position_embedding_type"] = "absolute"
    return {**carried, **named, "dtype": dtype.name, **fields}


def _auto_map(config: Config, extras: Mapping[str, Any]) -> dict[str, str]:
    """Keep the classes of the published code that fit: those of modeling_lora need adapters."""
    classes = (extras.get("auto_map") or {}).items()
    return {k: v for k, v in classes if config.num_tasks or "modeling_lora." not in v}


def _position_embedding_type(raw: Mapping[str, Any], layout: str) -> str:
    """Distinguish rotary and absolute positions, as each dialect's own code does."""
    model_type = raw.get("model_type")
    if layout == "bert":
        kind = raw.get("position_embedding_type", "absolute")
        return "absolute_from_zero" if kind == "absolute" else kind
    if layout == "xlm-roberta":
        if model_type not in _ABSOLUTE_TYPES:
            raise ConfigError(
                f"config: model_type={model_type!r}: weights are named as in XLM-RoBERTa, so one "
                f"of {', '.join(map(repr, (*_ABSOLUTE_TYPES, 'bert')))} is expected"
            )
        return raw.get("position_embedding_type", "absolute")
    if "position_embedding_type" in raw:
        return raw["position_embedding_type"]
    if model_type == "jina_embeddings_v3":
        return "rotary"
    raise ConfigError("config: position_embedding_type is missing")


def _rotary_emb_base(raw: Mapping[str, Any]) -> float:
    """Find the base in any dialect. Never guessed: the published code's default differs."""
    rope = raw.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or {**_PLAIN_ROPE, **rope, "rope_theta": 0} != _PLAIN_ROPE:
        raise ConfigError(f"config: rope_parameters={rope!r}: only a plain rope_theta is supported")
    bases = [rope["rope_theta"]] if "rope_theta" in rope else []
    bases += [raw[name] for name in ("rotary_emb_base", "rope_theta") if name in raw]
    if not bases:
        raise ConfigError(
            "config: rotary_emb_base is missing (or rope_parameters.rope_theta in the "
            "transformers dialect); rotary positions need it"
        )
    if any(base != bases[0] for base in bases):
        raise ConfigError(f"config: rotary_emb_base and rope_theta differ: {bases}")
    return bases[0]


def _no_tasks(raw: Mapping[str, Any], in_folders: bool) -> dict[str, Any]:
    """Return the fields of plain weights; config.json must name no adapters that are nowhere."""
    if raw.get("lora_adaptations") and not in_folders:
        raise ConfigError(
            f"config: lora_adaptations={raw['lora_adaptations']!r}, but the weights have no "
            "adapters and there are no PEFT folders beside them; add these, or remove "
            "lora_adaptations for the plain model"
        )
    none: dict[str, Any] = {"lora_adaptations": [], "lora_rank": None, "lora_alpha": None}
    return {**none, "task_instructions": {}}


def folder_tasks(
    raw: Mapping[str, Any], directory: Path, folders: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """Name the tasks of PEFT folders: as config.json does, or as published, then as the folders.

    Args:
      raw: the fields of ``config.json``.
      directory: with ``config_sentence_transformers.json``, if the checkpoint has it.
      folders: names of the PEFT folders.

    Returns:
      Task → its folder and its prompt, in the order of the task axis.

    Raises:
      ConfigError: if config.json lists other tasks.
    """
    own = {task_folder(folder): folder for folder in sorted(folders)}
    listed = raw.get("lora_adaptations")
    known = {task_folder(task): task for task in listed or PUBLISHED_INSTRUCTIONS}
    if listed and own.keys() != known.keys():
        raise ConfigError(
            f"config: lora_adaptations={listed!r}: expected PEFT folders {sorted(known)}, "
            f"got {sorted(own.values())}"
        )
    tasks = {task: own[name] for name, task in known.items() if name in own}
    tasks |= {folder: folder for name, folder in own.items() if name not in known}
    given = sentence_transformers_prompts(directory)
    prompts = {**PUBLISHED_INSTRUCTIONS, **given, **(raw.get("task_instructions") or {})}
    return {task: (folder, prompts.get(task, "")) for task, folder in tasks.items()}


def check_lora_fields(raw: Mapping[str, Any], rank: int, alpha: float) -> None:
    """Check that config.json, if it has the fields of adapters, has those of the PEFT folders."""
    for name, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if raw.get(name) not in (None, value):
            raise ConfigError(f"config: {name}={raw[name]!r}: the PEFT folders have {value!r}")


def sentence_transformers_prompts(directory: Path) -> dict[str | None, str]:
    """Map prompt names to prompts; None is the name of the default prompt."""
    path = directory / "config_sentence_transformers.json"
    raw = read_json(path) if path.exists() else {}
    prompts: dict[str | None, str] = dict(raw.get("prompts") or {})
    name = raw.get("default_prompt_name")
    if name is not None:
        if name not in prompts:
            raise ConfigError(f"{path}: default_prompt_name={name!r} is not among its prompts")
        prompts[None] = prompts[name]
    return prompts


def _sentence_transformers_pooler(directory: Path) -> str:
    """Read 1_Pooling/config.json; without it sentence-transformers uses the mean."""
    path = directory / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    raw = read_json(path)
    if "pooling_mode" in raw:
        return raw["pooling_mode"]
    prefix = "pooling_mode_"
    modes = [k.removeprefix(prefix) for k, on in raw.items() if k.startswith(prefix) and on]
    if len(modes) != 1:
        raise ConfigError(f"{path}: expected one pooling mode, got {modes}")
    return {"mean_tokens": "mean", "cls_token": "cls"}.get(modes[0], modes[0])
