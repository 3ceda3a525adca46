"""Checkpoints of other layouts, made by hand from the published one.

Like ``published.py`` this says every name a second time and uses nothing of ``jina_jax``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from published import SMALL, TASKS, published_config, published_shapes, random_tensor
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]

FOLDERS = [re.sub(r"\W", "_", task.replace("-", "_")) for task in TASKS]
_ADAPTED = re.compile(r"roberta\.(.*)\.parametrizations\.weight\.(original|0\.lora_A|0\.lora_B)")
# As transformers' JinaEmbeddingsV3Model calls the modules that the published code adapts.
_TARGETS = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "pooler.dense"),
    *("word_embeddings", "token_type_embeddings"),
]
_RENAMED = (
    (r"^emb_ln", "embeddings.LayerNorm"),
    (r"^encoder\.layers", "layers"),
    (r"mixer\.out_proj", "self_attn.o_proj"),
    (r"norm1", "post_attention_layernorm"),
    (r"norm2", "post_mlp_layernorm"),
)
_NATIVE = (
    (r"^embeddings\.", ""),
    (r"^emb_ln", "embedding_norm"),
    (r"^encoder\.", ""),
    (r"mixer\.Wqkv", "attention.qkv_proj"),
    (r"mixer\.out_proj", "attention.out_proj"),
    (r"pooler\.dense", "pooler"),
)


def published_tensors(size: Mapping[str, int] = SMALL, dtype="float32", seed: int = 0) -> Tensors:
    """Draw the tensors that ``published.write_published`` writes."""
    shapes = published_shapes(size)
    return {key: random_tensor(key, s, np.dtype(dtype), seed) for key, s in shapes.items()}


def native_tensors(published: Tensors) -> Tensors:
    """Rename and transpose published tensors to ours."""
    native = {}
    for key, value in published.items():
        match = _ADAPTED.fullmatch(key)
        module, leaf = match.groups() if match else key.removeprefix("roberta.").rsplit(".", 1)
        is_embedding = module.endswith("_embeddings")
        is_norm = match is None and leaf == "weight"
        leaf = {"original": "embedding" if is_embedding else "kernel"}.get(leaf, leaf)
        leaf = (
            "scale" if is_norm else leaf.replace("0.lora_A", "lora_a").replace("0.lora_B", "lora_b")
        )
        if match and not is_embedding:
            value = np.swapaxes(value, -1, -2)
        native[f"{_rename(module, _NATIVE)}.{leaf}"] = value
    return native


def plain_tensors(published: Tensors, task: int | None = None, scale: float = 0.25) -> Tensors:
    """Take adapters out of published tensors, or merge one (in float32): names end in ".weight"."""
    plain = {}
    for key, value in published.items():
        match = _ADAPTED.fullmatch(key)
        if match is None:
            plain[key.removeprefix("roberta.")] = value
        elif match[2] == "original":
            stem = key.removesuffix("original")
            a, b = (published[f"{stem}0.lora_{x}"].astype(np.float32) for x in "AB")
            if task is not None:
                update = a[task] @ b[task] if "_embeddings" in key else b[task] @ a[task]
                value = (value.astype(np.float32) + update * scale).astype(value.dtype)
            plain[f"{match[1]}.weight"] = value
    return plain


def transformers_tensors(plain: Tensors) -> Tensors:
    """Rename plain tensors to those of transformers' JinaEmbeddingsV3Model."""
    renamed = {}
    for key, value in plain.items():
        if "mixer.Wqkv" in key:
            for name, part in zip("qkv", np.split(value, 3), strict=True):
                new = key.replace("mixer.Wqkv", f"self_attn.{name}_proj")
                renamed[_rename(new, _RENAMED)] = part
        else:
            renamed[_rename(key, _RENAMED)] = value
    return renamed


def peft_tensors(published: Tensors, task: int) -> Tensors:
    """Rename one task's adapter to PEFT's keys; query, key and value get a copy of A each."""
    adapter = {}
    for key, value in published.items():
        match = _ADAPTED.fullmatch(key)
        if match is None or match[2] == "original":
            continue
        module, letter = _rename(match[1], _RENAMED), match[2][-1]
        if "_embeddings" in module:
            adapter[f"base_model.model.{module}.lora_embedding_{letter}"] = value[task].T
            continue
        modules = [module]
        if "mixer.Wqkv" in module:
            modules = [module.replace("mixer.Wqkv", f"self_attn.{x}_proj") for x in "qkv"]
        parts = np.split(value[task], len(modules)) if letter == "B" else [value[task]] * 3
        for name, part in zip(modules, parts, strict=False):
            adapter[f"base_model.model.{name}.lora_{letter}.weight"] = part
    return adapter


def xlm_roberta_tensors(size: Mapping[str, int] = SMALL, *, pooler: bool, seed: int = 0) -> Tensors:
    """Draw the tensors of transformers' XLMRobertaModel."""
    renamed = {}
    for key, value in plain_tensors(published_tensors(size, seed=seed)).items():
        key = key.replace("emb_ln", "embeddings.LayerNorm").replace(
            "encoder.layers", "encoder.layer"
        )
        key = key.replace("mixer.out_proj", "attention.output.dense")
        key = key.replace("norm1", "attention.output.LayerNorm").replace(
            "norm2", "output.LayerNorm"
        )
        key = key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        if "mixer.Wqkv" in key:
            for name, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                renamed[key.replace("mixer.Wqkv", f"attention.self.{name}")] = part
        elif pooler or "pooler" not in key:
            renamed[key] = value
    shape = (size["positions"], size["width"])
    key = "embeddings.position_embeddings.weight"
    renamed[key] = random_tensor(key, shape, np.dtype("float32"), seed)
    return renamed


def transformers_config(size: Mapping[str, int] = SMALL, **changes) -> dict:
    """Return config.json as transformers 5 writes it for JinaEmbeddingsV3Model."""
    common = xlm_roberta_config(size)
    rope = {"rope_theta": 20000.0, "rope_type": "default"}
    named = {"architectures": ["JinaEmbeddingsV3Model"], "model_type": "jina_embeddings_v3"}
    dropped = ("is_decoder", "add_cross_attention")
    kept = {name: value for name, value in common.items() if name not in dropped}
    return {**kept, **named, "rope_parameters": rope, **changes}


def xlm_roberta_config(size: Mapping[str, int] = SMALL, **changes) -> dict:
    """Return config.json as transformers 5 writes it for XLMRobertaModel."""
    published = published_config(size)
    names = (
        *("attention_probs_dropout_prob", "bos_token_id", "classifier_dropout", "eos_token_id"),
        *("hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range"),
        *("intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "pad_token_id", "type_vocab_size"),
        "vocab_size",
    )
    return {
        **{name: published[name] for name in names},
        "add_cross_attention": False,
        "architectures": ["XLMRobertaModel"],
        "dtype": "float32",
        "is_decoder": False,
        "model_type": "xlm-roberta",
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "use_cache": True,
        **changes,
    }


def peft_config(**changes) -> dict:
    """Return the fields of PEFT's adapter_config.json that matter here."""
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 1, "bias": "none", "fan_in_fan_out": False}
    switches = {"use_dora": False, "use_rslora": False, "rank_pattern": {}}
    return {**plain, **switches, "target_modules": _TARGETS, **changes}


def write(directory: Path, config: Mapping, tensors: Tensors, prefix: str = "") -> Path:
    """Write config.json and model.safetensors, with a prefix in front of every key."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save(directory / "model.safetensors", {prefix + key: value for key, value in tensors.items()})
    return directory


def write_adapters(directory: Path, published: Tensors, folders=FOLDERS, **changes) -> Path:
    """Write a PEFT folder for each of the first tasks."""
    for task, folder in enumerate(folders):
        (directory / folder).mkdir(parents=True)
        config = directory / folder / "adapter_config.json"
        config.write_text(json.dumps(peft_config(**changes)))
        save(directory / folder / "adapter_model.safetensors", peft_tensors(published, task))
    return directory


def save(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file with the safetensors library."""
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, {"format": "pt"})


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key
