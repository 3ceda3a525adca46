"""Every constant of the network, read from ``config.json`` and checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

POSITION_EMBEDDING_TYPES = ("rotary", "absolute")
POOLERS = ("mean", "cls")
ACTIVATIONS = ("gelu",)

# Switches of the published code (jinaai/xlm-roberta-flash-implementation) and of transformers that
# would change the function computed here, each with the values that leave it unchanged.
_UNSUPPORTED_UNLESS: dict[str, tuple[Any, ...]] = {
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "rotary_emb_interleaved": (None, False),
    "rotary_emb_scale_base": (None,),
    "rope_scaling": (None,),
    "use_qk_norm": (None, False),
    "prenorm": (None, False),
    "window_size": (None, [-1, -1]),
}
# The head dimension under other names, in which both may ask for another one.
_HEAD_DIMS = ("head_dim", "rotary_emb_dim")


class ConfigError(ValueError):
    """A ``config.json`` that cannot be used; the message lists every field at fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture and the habits of one checkpoint.

    Field names are those of the published ``config.json``. Nothing has a default: what a file does
    not say is an error, or is spelled out by the reader of that file's format.

    Attributes:
      vocab_size: rows V of the word embedding table.
      hidden_size: width D.
      num_hidden_layers: layers L.
      num_attention_heads: heads N; the head dimension is ``hidden_size // num_attention_heads``.
      intermediate_size: width F of the feed-forward network.
      hidden_act: activation, "gelu" (the exact one, by the error function).
      layer_norm_eps: epsilon added to the variance in every LayerNorm.
      max_position_embeddings: positions, counting the ``pad_token_id + 1`` that XLM-R never uses.
      type_vocab_size: rows of the token type table; row 0 is added to every token.
      pad_token_id: id of ``<pad>``; absolute positions start at ``pad_token_id + 1``.
      initializer_range: standard deviation of freshly drawn weights.
      hidden_dropout_prob, attention_probs_dropout_prob: used in training only.
      position_embedding_type: "rotary" or "absolute".
      rotary_emb_base: base of the rotary angles; None with absolute positions.
      add_pooling_layer: whether the checkpoint has the tanh pooler (not used for embeddings).
      emb_pooler: how token vectors become a text's vector, "mean" or "cls".
      lora_adaptations: task names, in the order of the adapters' task axis; empty for none.
      lora_rank, lora_alpha: rank R, and alpha of ``lora_alpha / lora_rank``; None without tasks.
      task_instructions: for each task, the prompt put in front of a text.
      default_prompt: the prompt of a text that is encoded without a task.
      matryoshka_dimensions: allowed ``truncate_dim``, ascending; empty allows 1 … ``hidden_size``.
      truncate_dim: dimension when a call names none; None for all of ``hidden_size``.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    initializer_range: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    position_embedding_type: str
    rotary_emb_base: float | None
    add_pooling_layer: bool
    emb_pooler: str
    lora_adaptations: tuple[str, ...]
    lora_rank: int | None
    lora_alpha: float | None
    task_instructions: tuple[tuple[str, str], ...]
    default_prompt: str
    matryoshka_dimensions: tuple[int, ...]
    truncate_dim: int | None

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: expected {rule}"
            for name, rule, holds in self._rules()
            if not holds
        ]
        if problems:
            raise ConfigError("config: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a config from the fields of a native ``config.json``.

        Args:
          values: every field of this class, plus any that change nothing here.

        Raises:
          ConfigError: naming every missing, mistyped or unsupported field.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        problems = [f"{name} is missing" for name in names if name not in values]
        problems += [
            f"{name}={values[name]!r} is not supported, only {allowed[-1]!r}"
            for name, allowed in _UNSUPPORTED_UNLESS.items()
            if name in values and values[name] not in allowed
        ]
        if problems:
            raise ConfigError("config: " + "; ".join(problems))
        picked = {name: values[name] for name in names}
        for name in ("lora_adaptations", "matryoshka_dimensions"):
            if isinstance(picked[name], list):
                picked[name] = tuple(picked[name])
        if isinstance(picked["task_instructions"], Mapping):
            picked["task_instructions"] = tuple(picked["task_instructions"].items())
        config = cls(**picked)
        for name in _HEAD_DIMS:
            if values.get(name) not in (None, config.head_dim):
                raise ConfigError(f"config: {name}={values[name]!r}: expected {config.head_dim}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``from_dict`` gives back an equal config."""
        values = dataclasses.asdict(self)
        values["lora_adaptations"] = list(self.lora_adaptations)
        values["matryoshka_dimensions"] = list(self.matryoshka_dimensions)
        values["task_instructions"] = dict(self.task_instructions)
        return values

    @property
    def head_dim(self) -> int:
        """Width H of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """Tokens that a text may have, ``<s>`` and ``</s>`` included."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def num_tasks(self) -> int:
        """Adapters K on the task axis."""
        return len(self.lora_adaptations)

    @property
    def lora_scale(self) -> float:
        """Factor of the low-rank update, ``lora_alpha / lora_rank`` (1.0 without adapters)."""
        if self.lora_alpha is None or self.lora_rank is None:
            return 1.0
        return self.lora_alpha / self.lora_rank

    def task_id(self, task: str | None) -> int:
        """Return the position of ``task`` on the adapters' task axis, -1 for None.

        Raises:
          ValueError: for an unknown task; the message lists the known ones.
        """
        if task is None:
            return -1
        if task not in self.lora_adaptations:
            known = ", ".join(map(repr, self.lora_adaptations)) or "none: it has no adapters"
            raise ValueError(f"task={task!r}: this checkpoint has {known}; or task=None")
        return self.lora_adaptations.index(task)

    def prompt(self, task: str | None) -> str:
        """Return the prompt of ``task``, or the default prompt for None."""
        return self.default_prompt if task is None else dict(self.task_instructions)[task]

    def only(self, tasks: Sequence[str]) -> Config:
        """Return the config of an encoder with these adapters alone, in this order.

        Raises:
          ValueError: for an unknown task.
        """
        for task in tasks:
            self.task_id(task)
        return dataclasses.replace(
            self,
            lora_adaptations=tuple(tasks),
            lora_rank=self.lora_rank if tasks else None,
            lora_alpha=self.lora_alpha if tasks else None,
            task_instructions=tuple((task, self.prompt(task)) for task in tasks),
        )

    def merged(self, task: str) -> Config:
        """Return the config of plain weights into which ``task`` was merged; keeps its prompt.

        Raises:
          ValueError: for an unknown task, or for None.
        """
        if self.task_id(task) < 0:
            raise ValueError(f"task=None: expected one of {list(self.lora_adaptations)}")
        return dataclasses.replace(
            self,
            lora_adaptations=(),
            lora_rank=None,
            lora_alpha=None,
            task_instructions=(),
            default_prompt=self.prompt(task),
        )

    def embedding_dim(self, truncate_dim: int | None) -> int:
        """Return the dimension of an embedding cut to ``truncate_dim`` (None or 0: the default).

        Raises:
          ValueError: for a dimension that the checkpoint was not made for.
        """
        dim = truncate_dim or self.truncate_dim or self.hidden_size
        allowed = self.matryoshka_dimensions or range(1, self.hidden_size + 1)
        if type(dim) is not int or (dim not in allowed and dim != self.hidden_size):
            wanted = ", ".join(map(str, self.matryoshka_dimensions)) or f"1 to {self.hidden_size}"
            raise ValueError(f"truncate_dim={truncate_dim!r}: expected one of {wanted}")
        return dim

    def _rules(self) -> list[tuple[str, str, bool]]:
        """List (field, what it must be, whether it is)."""
        positive = [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "type_vocab_size",
        ]
        rules = [(name, "a positive integer", _is_int(getattr(self, name), 1)) for name in positive]
        ok_heads = all(_is_int(n, 1) for n in (self.hidden_size, self.num_attention_heads))
        ok_pad = _is_int(self.pad_token_id, 0)
        heads = ok_heads and self.hidden_size % self.num_attention_heads == 0
        rotary = self.position_embedding_type == "rotary"
        even = not rotary or (heads and self.head_dim % 2 == 0)
        tasks = self.lora_adaptations
        named = _is_tuple(tasks, lambda t: isinstance(t, str)) and len(set(tasks)) == len(tasks)
        adapted = named and bool(tasks)
        prompts = self.task_instructions
        has_prompts = _is_tuple(prompts, lambda p: isinstance(p[1], str))
        dims = self.matryoshka_dimensions
        ascending = _is_tuple(dims, lambda d: _is_int(d, 1)) and list(dims) == sorted(set(dims))
        ok_dims = ascending and (not dims or not ok_heads or dims[-1] <= self.hidden_size)
        rules += [
            ("num_attention_heads", f"a divisor of hidden_size={self.hidden_size!r}", heads),
            ("num_attention_heads", "an even head dimension with rotary positions", even),
            ("hidden_act", _one_of(ACTIVATIONS), self.hidden_act in ACTIVATIONS),
            ("layer_norm_eps", "a positive number", _is_number(self.layer_norm_eps, above=0.0)),
            ("pad_token_id", "a token id", ok_pad),
            (
                "max_position_embeddings",
                "an integer of at least pad_token_id + 3",
                ok_pad and _is_int(self.max_position_embeddings, self.pad_token_id + 3),
            ),
            ("initializer_range", "a number ≥ 0", _is_number(self.initializer_range)),
            ("hidden_dropout_prob", "a number in 0 … 1", _is_share(self.hidden_dropout_prob)),
            (
                "attention_probs_dropout_prob",
                "a number in 0 … 1",
                _is_share(self.attention_probs_dropout_prob),
            ),
            (
                "position_embedding_type",
                _one_of(POSITION_EMBEDDING_TYPES),
                self.position_embedding_type in POSITION_EMBEDDING_TYPES,
            ),
            (
                "rotary_emb_base",
                "a positive number with rotary positions, null otherwise",
                _is_number(self.rotary_emb_base, above=0.0)
                if rotary
                else self.rotary_emb_base is None,
            ),
            ("add_pooling_layer", "true or false", isinstance(self.add_pooling_layer, bool)),
            ("emb_pooler", _one_of(POOLERS), self.emb_pooler in POOLERS),
            ("lora_adaptations", "a list of distinct task names", named),
            (
                "lora_rank",
                "a positive integer with adapters, null without",
                _is_int(self.lora_rank, 1) if adapted else self.lora_rank is None,
            ),
            (
                "lora_alpha",
                "a positive number with adapters, null without",
                _is_number(self.lora_alpha, above=0.0) if adapted else self.lora_alpha is None,
            ),
            (
                "task_instructions",
                "one prompt for each of lora_adaptations",
                has_prompts and named and sorted(dict(prompts)) == sorted(tasks),
            ),
            ("default_prompt", "a string", isinstance(self.default_prompt, str)),
            ("matryoshka_dimensions", "ascending integers up to hidden_size", ok_dims),
        ]
        allowed = dims or range(1, self.hidden_size + 1) if ok_dims and ok_heads else ()
        rules.append(
            (
                "truncate_dim",
                "null or one of matryoshka_dimensions",
                self.truncate_dim is None
                or (_is_int(self.truncate_dim, 1) and self.truncate_dim in allowed),
            )
        )
        return rules


def _one_of(names: tuple[str, ...]) -> str:
    return "one of " + ", ".join(map(repr, names))


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: Any, above: float = -math.ulp(0.0)) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value > above


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1


def _is_tuple(value: Any, holds: Any) -> bool:
    return isinstance(value, tuple) and all(holds(item) for item in value)
