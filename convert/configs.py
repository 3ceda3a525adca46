"""Foreign ``config.json`` dialects to and from ``Config``.

Four dialects: "published" (jinaai/jina-embeddings-v3), "transformers" (its JinaEmbeddingsV3Config),
"xlm-roberta" (its XLMRobertaConfig) and "bert" (its BertConfig). Fields that a dialect leaves out
are filled in here and nowhere else, with the defaults of the dialect's own code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jina_jax.config import Config, ConfigError
from jina_jax.convert.st_modules import Modules

# Order, names and prompts of the published adapters (``lora_adaptations`` and
# ``task_instructions`` of jinaai/jina-embeddings-v3), which the transformers dialect leaves out.
PUBLISHED_INSTRUCTIONS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}

_NATIVE_TYPE = "jina_embeddings_v3"  # of transformers' JinaEmbeddingsV3Config
_ABSOLUTE_TYPES = ("xlm-roberta", "camembert", "roberta")
_CLASSES = {"xlm-roberta": "XLMRobertaModel", "bert": "BertModel"}
_DIALECT_ONLY = (
    *("architectures", "auto_map", "dtype", "model_type", "rope_parameters", "rope_theta"),
    "torch_dtype",
)
# Of config.json of jinaai/jina-embeddings-v3; transformers loads them with trust_remote_code.
_CODE = "jinaai/xlm-roberta-flash-implementation--"
_WITHOUT_ADAPTERS = "modeling_xlm_roberta.XLMRobertaModel"
_PUBLISHED_CLASSES = {
    "AutoConfig": f"{_CODE}configuration_xlm_roberta.XLMRobertaFlashConfig",
    "AutoModel": f"{_CODE}modeling_lora.XLMRobertaLoRA",
}
_PLAIN_ROPE = {"rope_theta": 0, "rope_type": "default", "partial_rotary_factor": 1.0}
_FIELDS = tuple(field.name for field in dataclasses.fields(Config))
# Fields of our own, which sentence-transformers has in its module files (``st_modules``).
_MODULE_FIELDS = (
    *("default_prompt", "prompts", "include_prompt", "max_seq_length", "dense", "normalize"),
    "similarity_fn_name",
)


def task_folder(task: str) -> str:
    """Name the PEFT folder of a task: "retrieval.query" → "retrieval_query"."""
    return re.sub(r"[^A-Za-z0-9]+", "_", task)


def read_config(
    raw: Mapping[str, Any],
    modules: Modules,
    *,
    layout: str,
    has_pooler: bool,
    stacked: bool,
    in_folders: bool,
) -> tuple[Config, dict[str, Any]]:
    """Read the config of a foreign checkpoint.

    Args:
      raw: the fields of ``config.json``.
      modules: the module files of sentence-transformers, from ``read_modules``.
      layout: of the weights, a key of ``layouts.TABLES``.
      has_pooler: whether the weights have a pooler.
      stacked: whether the weights have adapters of their own, as published.
      in_folders: whether PEFT's folders have adapters, which ``open_checkpoint`` adds.

    Returns:
      The config, and the fields of ``config.json`` that are not in it.

    Raises:
      ConfigError: naming every field at fault.
    """
    values = {name: value for name, value in raw.items() if name not in _MODULE_FIELDS}
    values["position_embedding_type"] = kind = _position_embedding_type(raw, layout)
    values["rotary_emb_base"] = _rotary_emb_base(raw) if kind == "rotary" else None
    values["add_pooling_layer"] = has_pooler
    # Only the published code reads these here; transformers' own class has another model_type.
    own = raw if layout == "published" and raw.get("model_type") != _NATIVE_TYPE else {}
    values["emb_pooler"] = _agreed("emb_pooler", own, modules.pooler) or "mean"
    values["truncate_dim"] = _agreed("truncate_dim", own, modules.truncate_dim)
    values.setdefault("matryoshka_dimensions", [])
    if not stacked:
        values |= _no_tasks(raw, in_folders)
    values |= _module_values(modules, layout, values.get("task_instructions"))
    config = Config.from_dict(values)
    _check_sizes(config, modules)
    limit = modules.max_seq_length
    if limit is not None and limit < config.max_length:
        config = dataclasses.replace(config, max_seq_length=int(limit))
    extras = {name: value for name, value in raw.items() if name not in _FIELDS}
    return config, extras


def _module_values(modules: Modules, layout: str, instructions: Any) -> dict[str, Any]:
    """Return the fields of our own; prompts that have a name already are not named again."""
    tasks = instructions if isinstance(instructions, Mapping) else {}
    own = {"default": modules.default_prompt, **tasks}
    prompts = {name: text for name, text in modules.prompts.items() if own.get(name) != text}
    # Without module files the published code normalises, and sentence-transformers does not.
    normalize = layout not in _CLASSES if modules.normalize is None else modules.normalize
    return {
        "default_prompt": modules.default_prompt,
        "prompts": prompts,
        "include_prompt": modules.include_prompt,
        "dense": tuple(module.spec for module in modules.dense),
        "normalize": normalize,
        "similarity_fn_name": modules.similarity_fn_name,
    }


def _agreed(name: str, raw: Mapping[str, Any], theirs: Any) -> Any:
    """Return the value of config.json or of the module files, which must not differ."""
    ours = raw.get(name)
    if theirs is not None and ours is not None and ours != theirs:
        raise ConfigError(
            f"config: {name}={ours!r}: the files of sentence-transformers: {theirs!r}"
        )
    return ours if theirs is None else theirs


def _check_sizes(config: Config, modules: Modules) -> None:
    """Check the lengths of vectors that the module files name."""
    problems = [
        f"Pooling: {name}={size}: expected hidden_size={config.hidden_size}"
        for name, size in modules.pooling_dimensions.items()
        if size != config.hidden_size
    ]
    size = config.hidden_size
    for module in modules.dense:
        if module.in_features != size:
            problems.append(f"{module.folder}: in_features={module.in_features}: expected {size}")
        size = module.spec.out_features
    if problems:
        raise ConfigError("config: " + "; ".join(problems))


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
    fields = {k: v for k, v in config.to_dict().items() if k not in _MODULE_FIELDS}
    native = {
        "model_type": _NATIVE_TYPE,
        "rope_parameters": {"rope_theta": config.rotary_emb_base, "rope_type": "default"},
    }
    if layout == "published":
        named: dict[str, Any] = {
            "architectures": ["XLMRobertaModel"],
            "torch_dtype": dtype.name,
            "auto_map": _auto_map(config, extras),
        }
        if not config.num_tasks and config.position_embedding_type == "rotary":
            named |= native  # transformers' own class reads these weights, too
        return {**carried, **named, **fields}
    del fields["lora_rank"], fields["lora_alpha"]  # in PEFT's folders, which need not share them
    del fields["emb_pooler"], fields["truncate_dim"]  # for these libraries, in the module files
    if layout == "transformers":
        del fields["rotary_emb_base"]
        named = {"architectures": ["JinaEmbeddingsV3Model"], **native}
        return {**carried, **named, "dtype": dtype.name, **fields}
    named = {"architectures": [_CLASSES[layout]], "model_type": layout}
    fields["position_embedding_type"] = "absolute"
    return {**carried, **named, "dtype": dtype.name, **fields}


def _auto_map(config: Config, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Name the classes of the published code: a checkpoint's own, else those on the Hub.

    Those of ``modeling_lora`` need adapters.
    """
    known = extras.get("auto_map")
    classes = dict(known) if isinstance(known, dict) and known else dict(_PUBLISHED_CLASSES)
    if config.num_tasks:
        return classes
    return {
        name: re.sub(r"modeling_lora\.\w+", _WITHOUT_ADAPTERS, path)
        for name, path in classes.items()
        if isinstance(path, str)
    }


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
    if model_type == _NATIVE_TYPE:
        return "rotary"
    raise ConfigError(
        f"config: position_embedding_type is missing, and model_type={model_type!r}: expected "
        f"the former, or model_type={_NATIVE_TYPE!r}, whose positions are rotary"
    )


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
    if isinstance(bases[0], bool) or not isinstance(bases[0], int | float) or bases[0] <= 0:
        raise ConfigError(
            f"config: rotary_emb_base or rope_theta={bases[0]!r}: expected a positive number"
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
    raw: Mapping[str, Any], prompts: Mapping[str, str], folders: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """Name the tasks of PEFT folders: as config.json does, or as published, then as the folders.

    Args:
      raw: the fields of ``config.json``.
      prompts: of the checkpoint's config, by name.
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
    known = {**PUBLISHED_INSTRUCTIONS, **prompts, **(raw.get("task_instructions") or {})}
    return {task: (folder, known.get(task, "")) for task, folder in tasks.items()}


def check_lora_fields(raw: Mapping[str, Any], rank: int, alpha: float) -> None:
    """Check that config.json, if it has the fields of adapters, has those of the PEFT folders."""
    for name, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if raw.get(name) not in (None, value):
            raise ConfigError(f"config: {name}={raw[name]!r}: the PEFT folders have {value!r}")
