"""The fields of PEFT's ``adapter_config.json`` (its ``LoraConfig``).

Each is applied, known to change no vector, or refused by name unless it is null or false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jina_jax.config import ConfigError

# Fields that decide how an adapter came about or is run, not what it computes once it is loaded.
_NO_EFFECT = (
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "qalora_group_size"),
)
_APPLIED = (
    *("base_model_name_or_path", "revision", "peft_type", "r", "lora_alpha", "rank_pattern"),
    *("alpha_pattern", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "bias", "init_lora_weights"),
)
# Other initial values ("pissa", "olora", …) change the base weights, too, when PEFT loads them.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


def check_peft_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse the fields of an ``adapter_config.json`` that cannot be applied.

    Args:
      path: of the file, for the error.
      config: its fields.

    Raises:
      ConfigError: listing every field that is missing, of another type, or would be ignored.
    """
    if wrong := list(_wrong(config)):
        raise ConfigError(f"{path}: " + "; ".join(wrong))


def _wrong(config: Mapping[str, Any]) -> Iterator[str]:
    """Describe every field that is missing, of another type, or would be ignored."""
    for name, expected, fits in _RULES:
        if not fits(config.get(name)):
            given = f"={short(config[name])}: expected {expected}" if name in config else ""
            yield f"{name}{given or ' is missing'}"
    for name, value in config.items():
        # An empty object can be a switch, too: PEFT fills in its defaults.
        if value not in (None, False) and name not in (*_NO_EFFECT, *_APPLIED):
            yield f"{name}={short(value)}: not supported"
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if isinstance(config.get("target_modules"), str) and (layers, patterns) != (None, None):
        yield "layers_to_transform, layers_pattern: expected null where target_modules is a pattern"
    elif patterns and layers is None:
        yield f"layers_pattern={short(patterns)}: expected layers_to_transform, too"


def _is_expression(value: Any, around: str = "{}") -> bool:
    if not isinstance(value, str):
        return False
    try:
        re.compile(around.format(value))
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_pattern(value: Any) -> bool:
    """Return whether a value is a pattern that PEFT can make a part of a larger one."""
    return _is_expression(value, "({})$") and _is_expression(
        value, r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
    )


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_dict(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, dict)
        and all(map(_is_pattern, value))
        and _is_list([*value.values()], is_item)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_index(value: Any) -> bool:
    return type(value) is int


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return _is_expression(value) or (_is_list(value, _is_text) and bool(value))


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_NAMES = "a list of names of modules, or a pattern"
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("peft_type", "'LORA'", lambda value: value == "LORA"),
    ("r", "a positive integer", _is_rank),
    ("lora_alpha", "a finite number", _is_alpha),
    ("target_modules", _NAMES, _is_names),
    (
        "exclude_modules",
        f"null, {_NAMES}",
        _or_null(lambda value: _is_expression(value) or _is_list(value, _is_text)),
    ),
    (
        "rank_pattern",
        "null, or an object from pattern to positive integer",
        _or_null(lambda value: _is_dict(value, _is_rank)),
    ),
    (
        "alpha_pattern",
        "null, or an object from pattern to number",
        _or_null(lambda value: _is_dict(value, _is_alpha)),
    ),
    ("use_rslora", "true, false or null", _or_null(lambda value: isinstance(value, bool))),
    (
        "layers_to_transform",
        "null, a number, or a list of numbers",
        _or_null(lambda value: _is_index(value) or _is_list(value, _is_index)),
    ),
    (
        "layers_pattern",
        "null, a pattern, or a list of patterns",
        _or_null(lambda value: _is_pattern(value) or _is_list(value, _is_pattern)),
    ),
    ("bias", "'none'", _or_null(lambda value: value == "none")),
    (
        "init_lora_weights",
        "true, false, 'gaussian', 'eva' or 'orthogonal'; others change the base weights, too",
        lambda value: value in _INITIAL,
    ),
    ("base_model_name_or_path", "a string or null", _or_null(_is_text)),
    ("revision", "a string or null", _or_null(_is_text)),
)


def short(value: Any) -> str:
    """Write a value for an error, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
