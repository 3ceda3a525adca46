"""Fields of the files that sentence-transformers and transformers read beside the weights.

Every field of theirs is in one of these classes; a value that breaks the rule of its field is
refused with the file, the field, the value and the rule.

===================================  ===================================================
applied                              modules.json: type, path, the order; in 1_Pooling:
                                     pooling_mode (or its older flags), include_prompt; in
                                     Dense: out_features, bias, activation_function; in
                                     sentence_bert_config.json (or an older name of it):
                                     max_seq_length; in config_sentence_transformers.json:
                                     prompts, default_prompt_name, truncate_dim,
                                     similarity_fn_name; in tokenizer_config.json:
                                     model_max_length
compared with the rest               additional_special_tokens, extra_special_tokens,
                                     added_tokens_decoder and added_tokens.json, which must be
                                     those of tokenizer.json; the sizes of config.json, with the
                                     weights; word_embedding_dimension, embedding_dimension,
                                     in_features; emb_pooler and truncate_dim of config.json
change nothing                       modules.json: idx, name, kwargs; the module Dropout;
                                     unpad_inputs, attn_implementation; __version__ and
                                     requirements; padding_side, but of a BERT; do_lower_case of
                                     tokenizer_config.json; dtype and torch_dtype, as the
                                     weights have a dtype of their own (``from_pretrained(dtype=)``)
refused, unless without effect       other modules and activations, Dense on tokens, several
                                     pooling modes, weightedmean without the prompt;
                                     do_lower_case, other tasks and modalities, lengths and
                                     expansions of queries, arguments of loading and processing;
                                     other model types; truncation on the left, other special
                                     tokens, tokenizers of other classes, other files by
                                     transformers_weights, configuration_files and
                                     fast_tokenizer_files; is_decoder, add_cross_attention,
                                     pruned_heads, quantization_config and the others of
                                     ``jina_jax.config``
===================================  ===================================================

Of rotary models, max_seq_length and model_max_length above the number of positions less
``pad_token_id + 1`` (8,192) are that number, with a warning where a text is cut.

Unknown fields are refused where sentence-transformers refuses them (module files), and ignored
where it ignores them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jina_jax.config import POOLERS, SIMILARITIES, ConfigError


class Field(NamedTuple):
    """What is expected of a field.

    Attributes:
      expected: in words.
      is_fine: value → whether it is.
    """

    expected: str
    is_fine: Callable[[Any], bool]


Fields = Mapping[str, Field]


def check_fields(path: Path, raw: Mapping[str, Any], fields: Fields, *, strict: bool) -> None:
    """Refuse values that are not as expected, and with ``strict`` fields that are unknown.

    Raises:
      ConfigError: listing all of them.
    """
    problems = [
        f"{name}={raw[name]!r}: expected {field.expected}"
        for name, field in fields.items()
        if name in raw and not field.is_fine(raw[name])
    ]
    if strict:
        problems += [f"{name}={raw[name]!r}: unknown" for name in raw if name not in fields]
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))


def is_integer(value: Any, least: int = 1) -> bool:
    """Return whether a value of JSON is an integer of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_relative(value: Any) -> bool:
    if not isinstance(value, str) or "\\" in value:
        return False
    return not Path(value).is_absolute() and ".." not in Path(value).parts


def _is_length(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value >= 2) or is_integer(value, 2)


def _is_pooling_mode(value: Any) -> bool:
    modes = value if isinstance(value, list) else [value]
    return len(modes) == 1 and isinstance(modes[0], str) and modes[0] in POOLERS


def _are_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str | None) for v in value.values())


def _has_masks(value: Any) -> bool:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return value is None or (
        isinstance(value, list)
        and all(isinstance(name, str) and name in names for name in value)
        and set(names[:2]) <= set(value)
    )


def _is_token(content: str) -> Callable[[Any], bool]:
    def is_token(value: Any) -> bool:
        return value is None or (value.get("content") if isinstance(value, dict) else value) == (
            content
        )

    return is_token


def _only(*values: Any) -> Field:
    """Expect one of these values, of the same type."""

    def is_fine(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in values)

    return Field(" or ".join(map(repr, values)), is_fine)


def _only_keys(*keys: str) -> Field:
    def is_fine(value: Any) -> bool:
        return value is None or (isinstance(value, dict) and value.keys() <= set(keys))

    return Field(f"no key but {', '.join(keys)}", is_fine)


def _one_of(names: tuple[str, ...], *others: Any) -> Field:
    return _only(*names, *others)


_ANY = Field("any value", lambda _: True)
_FLAG = _only(True, False)
_STRING = Field("a string", lambda value: isinstance(value, str))
_SIZE = Field("a positive integer", is_integer)
_LENGTH = Field("null or an integer of at least 2", _is_length)
_LOADING = _only_keys("attn_implementation", "trust_remote_code")
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}

MODULE: Fields = {
    "idx": _ANY,
    "name": _STRING,
    "path": Field("a path within the model's directory", _is_relative),
    "type": _STRING,
    "kwargs": _ANY,
}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING: Fields = {
    "word_embedding_dimension": _SIZE,
    "embedding_dimension": _SIZE,
    "pooling_mode": Field(f"one of {', '.join(map(repr, POOLERS))}", _is_pooling_mode),
    **dict.fromkeys(FLAGS, _FLAG),
    "include_prompt": _FLAG,
}
_TORCH = "torch.nn."
ACTIVATIONS = {
    f"{_TORCH}Identity": "identity",
    f"{_TORCH}modules.linear.Identity": "identity",
    f"{_TORCH}Tanh": "tanh",
    f"{_TORCH}modules.activation.Tanh": "tanh",
}
DENSE: Fields = {
    "in_features": _SIZE,
    "out_features": _SIZE,
    "bias": _FLAG,
    "activation_function": _one_of(tuple(ACTIVATIONS)),
    "module_input_name": _only("sentence_embedding"),
    "module_output_name": _only("sentence_embedding", None),
    "use_residual": _only(False),
}
NORMALIZE: Fields = {
    "module_input_name": _only("sentence_embedding"),
    "module_output_name": _only("sentence_embedding", None),
}
TRANSFORMER: Fields = {
    "max_seq_length": _LENGTH,
    "do_lower_case": _only(False, None),
    "transformer_task": _only("feature-extraction"),
    "modality_config": _only(
        {"text": _TEXT}, {"text": {**_TEXT, "method_output_name": ["last_hidden_state"]}}
    ),
    "module_output_name": _only("token_embeddings"),
    "processing_kwargs": _only({}, None),
    **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), _LOADING),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), _LOADING),
    "unpad_inputs": _only(True, False, None),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), _only(None)),
    "tokenizer_name_or_path": _only(None),
}
SENTENCE_TRANSFORMERS: Fields = {
    "model_type": _only("SentenceTransformer"),
    "prompts": Field("an object with a string for each name", _are_prompts),
    "default_prompt_name": Field("a name or null", lambda value: isinstance(value, str | None)),
    "similarity_fn_name": _one_of(SIMILARITIES, None),
    "truncate_dim": Field(
        "null or a positive integer", lambda value: value is None or is_integer(value)
    ),
}
_TOKENS = {
    **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
    **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
    **{name: f"<{name.removesuffix('_token')}>" for name in ("unk_token", "pad_token")},
    "mask_token": "<mask>",
}
SPECIAL_TOKENS: Fields = {
    name: Field(repr(content), _is_token(content)) for name, content in _TOKENS.items()
}
# transformers builds a tokenizer of another kind from the same tokenizer.json for other classes.
TOKENIZER_CLASS: Fields = {
    "tokenizer_class": _one_of(
        (
            *("XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "PreTrainedTokenizerFast"),
            *("TokenizersBackend", "CamembertTokenizer", "CamembertTokenizerFast"),
        ),
        None,
    )
}
TOKENIZER: Fields = {
    **SPECIAL_TOKENS,
    **TOKENIZER_CLASS,
    "fast_tokenizer_files": _only(None, [], ["tokenizer.json"]),
    "model_max_length": _LENGTH,
    "truncation_side": _only("right", None),
    "padding_side": _only("right", "left", None),
    "do_lower_case": _only(True, False, None),  # without effect on tokenizers of these classes
    "split_special_tokens": _only(False, None),
    "add_prefix_space": _only(True, None),
    "add_bos_token": _only(True, None),
    "add_eos_token": _only(True, None),
    "model_input_names": Field("input_ids and attention_mask", _has_masks),
}
