"""Write docs/files.md from the tables in the code: ``python docs/make_files.py``.

Fields and their accepted values are those of the code; here are only the words about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jina_jax import config
from jina_jax.convert import files, peft, peft_config, st_fields
from jina_jax.convert.st_fields import Field, Fields

PAGE = Path(__file__).with_name("files.md")
TEMPLATE = Path(__file__).with_name("files.template.md")

_NO_EFFECT = "changes nothing"  # of fields without words here


def _otherwise(why: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"{_NO_EFFECT}; others: {why}")


def _applied(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "applied")


NOTES = {
    # modules.json
    "path": "applied: the folder of the module",
    "type": "applied: the module; see the list above",
    # Pooling
    "pooling_mode": "applied; of several modes the vectors would be joined, which is refused",
    **dict.fromkeys(st_fields.FLAGS, "applied: older form of pooling_mode; one may be true"),
    "include_prompt": "applied: whether `<s>` and the prompt are pooled",
    "word_embedding_dimension": "compared with hidden_size",
    "embedding_dimension": "compared with hidden_size",
    # Dense
    "in_features": "compared with the length of the vector before it",
    **_applied("out_features", "bias", "activation_function"),
    **_otherwise("a sum with the input, not computed here", "use_residual"),
    # Transformer and its tokenizer
    **_otherwise(
        "another tokenizer (config.json's counts where this file names none)", "tokenizer_class"
    ),
    **_otherwise("another tokenizer", "fast_tokenizer_files"),
    "max_seq_length": "applied: most tokens of a text, at most the number of positions",
    "model_max_length": "applied where max_seq_length is missing",
    **_otherwise("lower the texts yourself", "do_lower_case"),
    **_otherwise("not a text encoder", "transformer_task", "modality_config"),
    **_otherwise("late interaction, not computed here", "query_length", "document_length"),
    **_otherwise("late interaction, not computed here", "query_expansion"),
    **_otherwise(
        "remove them, and give dtype and the like to `from_pretrained`",
        *("model_args", "tokenizer_args", "config_args"),
        *("model_kwargs", "processor_kwargs", "config_kwargs"),
    ),
    **_otherwise("put the tokenizer's files into the folder", "tokenizer_name_or_path"),
    **_otherwise("cut the texts yourself", "truncation_side"),
    **_otherwise("another tokenizer", *st_fields.SPECIAL_TOKENS),
    # config_sentence_transformers.json
    "prompts": "applied: `encode(prompt_name=…)`",
    "default_prompt_name": "applied: the prompt of texts without one",
    "similarity_fn_name": "applied: `similarity`",
    "truncate_dim": "applied: length of vectors, unless a call says otherwise",
    **_otherwise("another kind of model (sparse, cross-encoder)", "model_type"),
}
PEFT_NOTES = {
    "peft_type": "others (IA3, prompt tuning, …) are refused",
    "r": "applied; ranks may differ by module and task",
    "lora_alpha": "applied: the update is scaled by lora_alpha / r",
    "use_rslora": "applied: the update is scaled by lora_alpha / sqrt(r)",
    **_applied("rank_pattern", "alpha_pattern"),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        "applied: compared with the modules of the weights",
    ),
    **_otherwise("they change the base weights, too", "init_lora_weights"),
    **_otherwise("the base's biases were trained", "bias"),
    "base_model_name_or_path": "applied where no weights are beside the adapter",
    "revision": "applied with base_model_name_or_path",
}
CONFIG_NOTES = {
    **_applied("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    **_applied("intermediate_size", "hidden_act", "layer_norm_eps", "type_vocab_size"),
    **_applied("pad_token_id", "max_position_embeddings", "task_instructions"),
    **_otherwise("other files in place of these", "transformers_weights", "configuration_files"),
    "initializer_range": "applied to new weights in training",
    **dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob"), "used in training only"
    ),
    "position_embedding_type": "applied; missing in BERT and XLM-R: absolute",
    "rotary_emb_base": "applied; or rope_theta, or a plain rope_parameters",
    "add_pooling_layer": "replaced by what the weights have",
    "emb_pooler": "applied in the published layout; must agree with Pooling",
    "truncate_dim": "applied in the published layout; must agree with the module files",
    "lora_adaptations": "applied: the tasks",
    **dict.fromkeys(("lora_rank", "lora_alpha"), "applied; must agree with PEFT's folders"),
    "matryoshka_dimensions": "applied: allowed truncate_dim",
    **dict.fromkeys(
        (
            *("default_prompt", "prompts", "include_prompt", "dense", "normalize"),
            *("similarity_fn_name", "max_seq_length"),
        ),
        "applied in the native layout; in others from the module files",
    ),
    **_otherwise("another network", "is_decoder", "is_encoder_decoder", "add_cross_attention"),
    **_otherwise("another network", "rotary_emb_interleaved", "rotary_emb_scale_base"),
    **_otherwise("another network", "rope_scaling", "use_qk_norm", "prenorm", "window_size"),
    **_otherwise("another network", "pruned_heads", "head_dim", "rotary_emb_dim"),
    **_otherwise("load the weights as they were before", "quantization_config"),
}
FILES = {
    "MODULE": "modules.json",
    "POOLING": "config.json of Pooling",
    "DENSE": "config.json of Dense",
    "NORMALIZE": "config.json of Normalize",
    "TRANSFORMER": "sentence_bert_config.json",
    "SENTENCE_TRANSFORMERS": "config_sentence_transformers.json",
    "TOKENIZER": "tokenizer_config.json",
}
# Of PEFT's other fields, those that people use.
PEFT_REFUSED = {
    "use_dora": "DoRA scales each column",
    "modules_to_save": "whole modules were trained beside the factors",
    "trainable_token_indices": "embeddings were trained beside the factors",
    "target_parameters": "parameters that are no linear layer",
    "layer_replication": "another number of layers",
    "lora_bias": "B has a bias",
    "use_qalora": "A of another shape",
    "arrow_config": "adapters chosen per token",
}
_JSON = {"None": "null", "True": "true", "False": "false"}


def _json_words(text: str) -> str:
    """Write a rule with the words of JSON, without the value of another field in it."""
    text = re.sub(r"=\{.*?\}", "", text)
    text = re.sub("None|True|False", lambda match: _JSON[match[0]], text)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table; fields with the same rule and effect share one."""
    merged: dict[tuple[str, str], list[str]] = {}
    for name, expected, effect in rows:
        merged.setdefault((expected, effect), []).append(
            f"`{name}`" if name.isidentifier() else name
        )
    for (expected, effect), names in merged.items():
        yield f"| {', '.join(names)} | {_json_words(expected)} | {effect} |"


def field_tables() -> dict[str, Fields]:
    """Return the tables of ``st_fields``, but for those that are part of another."""
    found = {
        name: table
        for name, table in vars(st_fields).items()
        if name.isupper() and isinstance(table, Mapping)
        if all(isinstance(field, Field) for field in table.values())
    }
    return {
        name: table
        for name, table in found.items()
        if not name.startswith("_") and not any(t.items() > table.items() for t in found.values())
    }


def _st_lines() -> Iterator[str]:
    for name, table in field_tables().items():
        yield f"| **{FILES[name]}** | | |"
        yield from _table((n, f.expected, NOTES.get(n, _NO_EFFECT)) for n, f in table.items())


def _config_rows() -> Iterator[tuple[str, str, str]]:
    rules: dict[str, list[str]] = {}
    for name, expected, _ in (*config._VALUE_RULES, *config._CONFIG_RULES):
        rules.setdefault(name, []).append(expected)
    for name, allowed in config._UNSUPPORTED_UNLESS.items():
        rules[name] = [" or ".join(map(repr, allowed))]
    for name in config._HEAD_DIMS:
        rules[name] = ["null, or hidden_size / num_attention_heads"]
    for name, expected in rules.items():
        yield name, "; ".join(expected), CONFIG_NOTES.get(name, _NO_EFFECT)


def _peft_rows() -> Iterator[tuple[str, str, str]]:
    for name, expected, _ in peft_config._RULES:
        yield name, expected.split("; others")[0], PEFT_NOTES.get(name, _NO_EFFECT)
    for name in peft_config._NO_EFFECT:
        yield name, "any value", _NO_EFFECT
    for name, why in PEFT_REFUSED.items():
        yield name, "null or false", f"others refused: {why}"
    yield "any other field", "null or false", "others refused"


def unknown_words() -> set[str]:
    """Return the fields that have words here and are in no table of the code."""
    fields = {name for table in field_tables().values() for name in table}
    return {
        *(NOTES.keys() - fields),
        *(CONFIG_NOTES.keys() - {name for name, *_ in _config_rows()}),
        *(PEFT_NOTES.keys() - {name for name, *_ in _peft_rows()}),
        *(FILES.keys() - field_tables().keys()),
    }


def _names(names: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def page() -> str:
    """Return the page as the code has it now."""
    parts = {
        "weights": _names(files.WEIGHT_FILES),
        "tokenizers": _names(files.TOKENIZERS),
        "adapters": _names(peft.WEIGHT_FILES),
        "sentence_transformers": "\n".join(_st_lines()),
        "config": "\n".join(_table(_config_rows())),
        "peft": "\n".join(_table(_peft_rows())),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
