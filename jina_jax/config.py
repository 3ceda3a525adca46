"""The constants of a network, read from ``config.json`` and checked."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# "absolute" is XLM-RoBERTa's, from pad_token_id + 1; "absolute_from_zero" is BERT's.
POSITION_EMBEDDING_TYPES = ("rotary", "absolute", "absolute_from_zero")
POOLERS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("gelu",)
DENSE_ACTIVATIONS = ("identity", "tanh")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# Switches of the published code (jinaai/xlm-roberta-flash-implementation) and of transformers that
# would change the function computed here, each with the values that leave it unchanged.
_UNSUPPORTED_UNLESS: dict[str, tuple[Any, ...]] = {
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "transformers_weights": (None,),  # the name of another file of weights
    "configuration_files": (None, []),  # names of other files in place of config.json
    "rotary_emb_interleaved": (None, False),
    "rotary_emb_scale_base": (None,),
    "rope_scaling": (None,),
    "use_qk_norm": (None, False),
    "prenorm": (None, False),
    "window_size": (None, [-1, -1]),
}
_MOST_LAYERS = 1000  # a mistyped number is refused before there is a path for every layer
# Fields of both that may ask for another head dimension than hidden_size / num_attention_heads.
_HEAD_DIMS = ("head_dim", "rotary_emb_dim")


class ConfigError(ValueError):
    """An unusable ``config.json``; the message lists every field at fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear map of pooled vectors, as sentence-transformers' module of that name.

    Attributes:
      out_features: length of its result.
      bias: whether it has one.
      activation: "identity" or "tanh", applied to the result.
    """

    out_features: int
    bias: bool
    activation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Architecture, tasks, prompts and dimensions of one checkpoint.

    Field names are those of the published ``config.json``. Fields of the published model have no
    default: a missing one is an error, unless the reader of a file's format fills it in. The last
    ones, of models made with sentence-transformers, change nothing where they are missing.

    Attributes:
      vocab_size: number V of rows in the word embedding table.
      hidden_size: width D.
      num_hidden_layers: layers L.
      num_attention_heads: heads N; the head dimension is ``hidden_size // num_attention_heads``.
      intermediate_size: width F of the feed-forward network.
      hidden_act: activation, "gelu" (exact, with the error function).
      layer_norm_eps: epsilon added to the variance in every LayerNorm.
      max_position_embeddings: number of positions, including the ``position_offset`` that XLM-R
        never uses.
      type_vocab_size: number of rows in the token type table; row 0 is added to every token.
      pad_token_id: id of ``<pad>``; "absolute" positions start at ``pad_token_id + 1``.
      initializer_range: standard deviation of new weights.
      hidden_dropout_prob, attention_probs_dropout_prob: used in training only.
      position_embedding_type: "rotary", "absolute" or "absolute_from_zero".
      rotary_emb_base: base of the rotary angles; None with absolute positions.
      add_pooling_layer: whether the checkpoint has the tanh pooler (not used for embeddings).
      emb_pooler: pooling of token vectors into a text's vector, one of ``POOLERS``.
      lora_adaptations: task names, in the order of the adapters' task axis; empty for none.
      lora_rank, lora_alpha: rank R, and alpha of ``lora_alpha / lora_rank``; None without tasks.
      task_instructions: pairs of a task and the prompt that is prepended to its texts.
      default_prompt: the prompt of texts that are encoded without a task.
      matryoshka_dimensions: allowed ``truncate_dim``, ascending; empty allows 1 … ``output_size``.
      truncate_dim: dimension of embeddings by default; None for ``output_size``.
      prompts: pairs of a name and a prompt, for ``encode(prompt_name=…)``.
      include_prompt: whether the tokens of ``<s>`` and the prompt are pooled.
      max_seq_length: most tokens of a text unless a call says otherwise; None for ``max_length``.
      dense: maps of the pooled vector, in order.
      normalize: whether sentence-transformers scales the vectors to unit length by itself;
        ``JinaEmbeddings.encode`` always does, unless its argument says otherwise.
      similarity_fn_name: what ``similarity`` computes, one of ``SIMILARITIES``.
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
    prompts: tuple[tuple[str, str], ...] = ()
    include_prompt: bool = True
    max_seq_length: int | None = None
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    similarity_fn_name: str = "cosine"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: expected {expected.format(c=self)}"
            for name, expected in self._broken_rules()
        ]
        if problems:
            raise ConfigError("config: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a config from the fields of a native ``config.json``.

        Args:
          values: every field of this class; others are ignored unless they change the function.

        Raises:
          ConfigError: naming every missing, mistyped or unsupported field.
        """
        fields = dataclasses.fields(cls)
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        problems = [f"{name} is missing" for name in needed if name not in values]
        problems += [
            f"{name}={values[name]!r} is not supported, only {allowed[-1]!r}"
            for name, allowed in _UNSUPPORTED_UNLESS.items()
            if name in values and values[name] not in allowed
        ]
        if problems:
            raise ConfigError("config: " + "; ".join(problems))
        picked = {field.name: values[field.name] for field in fields if field.name in values}
        for name in ("lora_adaptations", "matryoshka_dimensions", "dense"):
            if isinstance(picked.get(name), list):
                picked[name] = tuple(picked[name])
        for name in ("task_instructions", "prompts"):
            if isinstance(picked.get(name), Mapping):
                picked[name] = tuple(picked[name].items())
        picked["dense"] = _parse_dense(picked.get("dense", ()))
        config = cls(**picked)
        for name in _HEAD_DIMS:
            if values.get(name) not in (None, config.head_dim):
                raise ConfigError(f"config: {name}={values[name]!r}: expected {config.head_dim}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``from_dict`` turns them into an equal config."""
        values = dataclasses.asdict(self)
        values["lora_adaptations"] = list(self.lora_adaptations)
        values["matryoshka_dimensions"] = list(self.matryoshka_dimensions)
        values["task_instructions"] = dict(self.task_instructions)
        values["prompts"] = dict(self.prompts)
        values["dense"] = list(values["dense"])
        return values

    @property
    def head_dim(self) -> int:
        """Width H of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """Most tokens of a text, ``<s>`` and ``</s>`` included."""
        return self.max_position_embeddings - self.position_offset

    @property
    def has_position_table(self) -> bool:
        """Whether positions are learned vectors, in a table."""
        return self.position_embedding_type != "rotary"

    @property
    def position_offset(self) -> int:
        """Position of a text's first token."""
        from_zero = self.position_embedding_type == "absolute_from_zero"
        return 0 if from_zero else self.pad_token_id + 1

    @property
    def output_size(self) -> int:
        """Length of a text's vector before ``truncate_dim``."""
        return self.dense[-1].out_features if self.dense else self.hidden_size

    @property
    def num_tasks(self) -> int:
        """Number K of adapters on the task axis."""
        return len(self.lora_adaptations)

    @property
    def lora_scale(self) -> float:
        """Scale of the low-rank update, ``lora_alpha / lora_rank`` (1.0 without adapters)."""
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
            known = ", ".join(map(repr, self.lora_adaptations))
            expected = f"{known}; or None" if known else "no adapters: expected None"
            raise ValueError(f"task={task!r}: this checkpoint has {expected}")
        return self.lora_adaptations.index(task)

    def prompt(self, task: str | None) -> str:
        """Return the prompt of ``task``, or the default prompt for None.

        Raises:
          ValueError: for an unknown task; the message lists the known ones.
        """
        if task is None:
            return self.default_prompt
        self.task_id(task)
        return dict(self.task_instructions)[task]

    def named_prompt(self, name: str) -> str:
        """Return a prompt by its name: one of ``prompts``, of a task, or "default".

        Raises:
          ValueError: for another name; the message lists the known ones.
        """
        known = {
            "default": self.default_prompt,
            **dict(self.task_instructions),
            **dict(self.prompts),
        }
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"prompt_name={name!r}: expected one of {', '.join(map(repr, known))}")
        return known[name]

    def only(self, tasks: Sequence[str]) -> Config:
        """Return the config of an encoder with only these adapters, in this order.

        Raises:
          ValueError: for an unknown task.
        """
        prompts = tuple((task, self.prompt(task)) for task in tasks)
        return dataclasses.replace(
            self,
            lora_adaptations=tuple(tasks),
            lora_rank=self.lora_rank if tasks else None,
            lora_alpha=self.lora_alpha if tasks else None,
            task_instructions=prompts,
        )

    def merged(self, task: str) -> Config:
        """Return the config of plain weights with ``task`` merged in; it keeps the task's prompt.

        Raises:
          ValueError: for an unknown task, or for None.
        """
        if task not in self.lora_adaptations:
            raise ValueError(f"task={task!r}: expected one of {list(self.lora_adaptations)}")
        return dataclasses.replace(
            self,
            lora_adaptations=(),
            lora_rank=None,
            lora_alpha=None,
            task_instructions=(),
            default_prompt=self.prompt(task),
        )

    def embedding_dim(self, truncate_dim: int | None) -> int:
        """Return the dimension of embeddings for ``truncate_dim`` (None or 0: the default).

        Raises:
          ValueError: for a dimension outside ``matryoshka_dimensions``.
        """
        given = 0 if truncate_dim is None else truncate_dim
        is_integer = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        dim = given or self.truncate_dim or self.output_size
        allowed = self.matryoshka_dimensions or range(1, self.output_size + 1)
        if not is_integer or (dim not in allowed and dim != self.output_size):
            wanted = ", ".join(map(str, self.matryoshka_dimensions)) or f"1 to {self.output_size}"
            raise ValueError(f"truncate_dim={truncate_dim!r}: expected one of {wanted}")
        return int(dim)

    def _broken_rules(self) -> Iterator[tuple[str, str]]:
        """Yield (field, expected value) of each rule that the config breaks."""
        for name, expected, is_value in _VALUE_RULES:
            if not is_value(getattr(self, name)):
                yield name, expected
        for name, expected, is_config in _CONFIG_RULES:
            if not is_config(self):
                yield name, expected


def _is_int(value: Any, at_least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1


def _is_tuple(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(is_item, value))


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Dense) or not isinstance(value.bias, bool):
        return False
    return _is_int(value.out_features) and value.activation in DENSE_ACTIVATIONS


def _is_named_text(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _parse_dense(values: Any) -> Any:
    """Return ``Dense`` for each dict of its fields; anything else for the rules to refuse."""
    if not isinstance(values, tuple):
        return values
    names = {field.name for field in dataclasses.fields(Dense)}
    return tuple(
        Dense(**one) if isinstance(one, Mapping) and one.keys() == names else one for one in values
    )


def _has_positions(c: Config) -> bool:
    return _is_int(c.pad_token_id, 0) and _is_int(c.max_position_embeddings, c.position_offset + 2)


def _is_rotary(c: Config) -> bool:
    return c.position_embedding_type == "rotary"


def _has_heads(c: Config) -> bool:
    sizes = (c.hidden_size, c.num_attention_heads)
    return all(map(_is_int, sizes)) and c.hidden_size % c.num_attention_heads == 0


def _has_tasks(c: Config) -> bool:
    tasks = c.lora_adaptations
    return _is_tuple(tasks, lambda task: isinstance(task, str)) and len(set(tasks)) == len(tasks)


def _is_adapted(c: Config) -> bool:
    return _has_tasks(c) and bool(c.lora_adaptations)


def _has_prompts(c: Config) -> bool:
    prompts = c.task_instructions
    has_texts = _is_tuple(prompts, lambda pair: isinstance(pair[1], str))
    return has_texts and _has_tasks(c) and sorted(dict(prompts)) == sorted(c.lora_adaptations)


def _has_dimensions(c: Config) -> bool:
    dims = c.matryoshka_dimensions
    if not _is_tuple(dims, _is_int) or list(dims) != sorted(set(dims)):
        return False
    return not dims or not _has_output_size(c) or dims[-1] <= c.output_size


def _has_output_size(c: Config) -> bool:
    return _is_tuple(c.dense, _is_dense) and _is_int(c.output_size)


def _has_truncate_dim(c: Config) -> bool:
    if c.truncate_dim is None:
        return True
    if not (_is_int(c.truncate_dim) and _has_output_size(c) and _has_dimensions(c)):
        return False
    return c.truncate_dim in (c.matryoshka_dimensions or range(1, c.output_size + 1))


def _has_max_seq_length(c: Config) -> bool:
    if c.max_seq_length is None or not _has_positions(c):
        return c.max_seq_length is None
    return _is_int(c.max_seq_length, 2) and c.max_seq_length <= c.max_length


def _one_of(names: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    return "one of " + ", ".join(map(repr, names)), lambda value: _is_in(value, names)


def _is_in(value: Any, names: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in names


# Each rule: a field, the expected value, and whether a value or a config has it. Rules do not build
# on one another, so that a message can list every field at fault.
_VALUE_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("vocab_size", "a positive integer", _is_int),
    ("hidden_size", "a positive integer", _is_int),
    (
        "num_hidden_layers",
        f"an integer from 1 to {_MOST_LAYERS}",
        lambda value: _is_int(value) and value <= _MOST_LAYERS,
    ),
    ("num_attention_heads", "a positive integer", _is_int),
    ("intermediate_size", "a positive integer", _is_int),
    ("type_vocab_size", "a positive integer", _is_int),
    ("hidden_act", *_one_of(ACTIVATIONS)),
    ("layer_norm_eps", "a positive number", _is_positive),
    ("pad_token_id", "a token id", lambda value: _is_int(value, 0)),
    ("initializer_range", "a number ≥ 0", _is_number),
    ("hidden_dropout_prob", "a number in 0 … 1", _is_share),
    ("attention_probs_dropout_prob", "a number in 0 … 1", _is_share),
    ("position_embedding_type", *_one_of(POSITION_EMBEDDING_TYPES)),
    ("add_pooling_layer", "true or false", lambda value: isinstance(value, bool)),
    ("emb_pooler", *_one_of(POOLERS)),
    ("default_prompt", "a string", lambda value: isinstance(value, str)),
    ("prompts", "a string for each name", lambda value: _is_tuple(value, _is_named_text)),
    ("include_prompt", "true or false", lambda value: isinstance(value, bool)),
    (
        "dense",
        "a list of out_features, bias and activation, 'identity' or 'tanh'",
        lambda value: _is_tuple(value, _is_dense),
    ),
    ("normalize", "true or false", lambda value: isinstance(value, bool)),
    ("similarity_fn_name", *_one_of(SIMILARITIES)),
)
_CONFIG_RULES: tuple[tuple[str, str, Callable[[Config], bool]], ...] = (
    ("num_attention_heads", "a divisor of hidden_size={c.hidden_size!r}", _has_heads),
    (
        "num_attention_heads",
        "an even head dimension with rotary positions",
        lambda c: not _is_rotary(c) or (_has_heads(c) and c.head_dim % 2 == 0),
    ),
    (
        "max_position_embeddings",
        "an integer of at least pad_token_id + 3 (2 from zero)",
        _has_positions,
    ),
    (
        "rotary_emb_base",
        "a positive number with rotary positions, null otherwise",
        lambda c: _is_positive(c.rotary_emb_base) if _is_rotary(c) else c.rotary_emb_base is None,
    ),
    ("lora_adaptations", "a list of distinct task names", _has_tasks),
    (
        "lora_rank",
        "a positive integer with adapters, null without",
        lambda c: _is_int(c.lora_rank) if _is_adapted(c) else c.lora_rank is None,
    ),
    (
        "lora_alpha",
        "a positive number with adapters, null without",
        lambda c: _is_positive(c.lora_alpha) if _is_adapted(c) else c.lora_alpha is None,
    ),
    ("task_instructions", "one prompt for each of lora_adaptations", _has_prompts),
    ("matryoshka_dimensions", "ascending integers up to the vectors' length", _has_dimensions),
    ("truncate_dim", "null or one of matryoshka_dimensions", _has_truncate_dim),
    (
        "include_prompt",
        "true with emb_pooler or pooling_mode 'weightedmean', whose weights the prompt would shift",
        lambda c: c.include_prompt is not False or c.emb_pooler != "weightedmean",
    ),
    ("max_seq_length", "null or an integer from 2 to the number of positions", _has_max_seq_length),
)
