"""Write the module files of sentence-transformers, all of them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jina_jax.config import Config
from jina_jax.convert.layouts import dense_folder
from jina_jax.convert.st_fields import ACTIVATIONS, FLAGS
from jina_jax.convert.st_modules import (
    MODULES_FILE,
    POOLING_FILE,
    SETTINGS_FILE,
    TRANSFORMER_FILE,
)
from jina_jax.files import write_json

_CLASSES = "sentence_transformers.models."
# Selects adapters by encode(task=…); sentence-transformers loads it with trust_remote_code.
_PUBLISHED_CLASS = "jinaai/jina-embeddings-v3--custom_st.Transformer"
_ACTIVATIONS = {
    name: path for path, name in ACTIVATIONS.items() if path.startswith("torch.nn.modules.")
}


def write_modules(directory: Path, config: Config, layout: str) -> None:
    """Write what sentence-transformers reads beside the encoder, for the vectors of ``encode``.

    Args:
      directory: of a checkpoint in a foreign layout, with the weights of Dense.
      config: of the checkpoint.
      layout: "published", "transformers" or "xlm-roberta".
    """
    write_json(directory / TRANSFORMER_FILE, _transformer(config))
    write_json(directory / SETTINGS_FILE, _settings(config))
    (directory / POOLING_FILE).parent.mkdir()
    write_json(directory / POOLING_FILE, _pooling(config))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    size = config.hidden_size
    for number, spec in enumerate(config.dense):
        folder = dense_folder(number)
        fields = {
            "in_features": size,
            "out_features": spec.out_features,
            "bias": spec.bias,
            "activation_function": _ACTIVATIONS[spec.activation],
        }
        write_json(directory / folder / "config.json", fields)
        modules.append(("Dense", folder))
        size = spec.out_features
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    listed: list[dict[str, Any]] = [
        {"idx": i, "name": str(i), "path": path, "type": _CLASSES + kind}
        for i, (kind, path) in enumerate(modules)
    ]
    if layout == "published" and config.num_tasks:
        listed[0] |= {"type": _PUBLISHED_CLASS, "kwargs": ["task"]}
    (directory / MODULES_FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _transformer(config: Config) -> dict[str, Any]:
    return {
        "max_seq_length": config.max_seq_length or config.max_length,
        "do_lower_case": False,
    }


def _pooling(config: Config) -> dict[str, Any]:
    """Write the flags that all releases read."""
    flags = {flag: mode == config.emb_pooler for flag, mode in FLAGS.items()}
    return {
        "word_embedding_dimension": config.hidden_size,
        **flags,
        "include_prompt": config.include_prompt,
    }


def _settings(config: Config) -> dict[str, Any]:
    prompts = {**dict(config.task_instructions), **dict(config.prompts)}
    name = None
    if config.default_prompt:
        named = [name for name, text in prompts.items() if text == config.default_prompt]
        free = "default" if "default" not in prompts else "default_prompt"
        name = named[0] if named else free
        prompts[name] = config.default_prompt
    settings: dict[str, Any] = {
        "prompts": prompts,
        "default_prompt_name": name,
        "similarity_fn_name": config.similarity_fn_name,
    }
    if config.truncate_dim is not None:
        settings["truncate_dim"] = config.truncate_dim
    return settings
