"""The settings of a training run: one TOML file, one pydantic model per section."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jina_jax.data.kinds import ROWS
from jina_jax.tasks import EVALUATIONS, from_word
from jina_jax.training.vocabulary import DISTILLATIONS, LOSSES, TRAINABLE

Paths = Annotated[tuple[Path, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class SettingsError(ValueError):
    """Invalid settings; the message names every field at fault."""


class Section(BaseModel):
    """A section of the file; unknown fields are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NewTask(Section):
    """A task that the checkpoint lacks."""

    name: str = Field(description="name of the new task")
    copy_of: str | None = Field(None, description="task to copy; else its update starts at zero")
    prompt: str | None = Field(None, description="its prompt; else that of copy_of, or none")


class Model(Section):
    """The model, and the part of it that is trained."""

    name: str = Field(
        "tiny", description="directory or Hub id to start from; tiny: the model in the package"
    )
    revision: str | None = Field(None, description="revision on the Hub")
    tasks: tuple[str, ...] = Field(
        (),
        max_length=2,
        description="adapters in use: none, one for all texts, or two: the first text of a row "
        "uses the first, the others the second (retrieval.query, retrieval.passage)",
    )
    train: Literal[TRAINABLE] = Field(  # type: ignore[valid-type]
        "adapters",
        description="the adapters of tasks, the whole network, or all but embedding tables",
    )
    new_tasks: tuple[NewTask, ...] = Field((), description="tasks to add before training")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of computation; the checkpoint's. Trained weights are float32"
    )
    rotary_emb_base: Positive | None = Field(
        None,
        description="base of the rotary angles in training (the paper: 10000); the "
        "checkpoint's own. Evaluation and export keep the checkpoint's (published: 20000)",
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        512, description="most tokens per text; longer ones are cut, and the log counts the rest"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate of hidden states"
    )
    scan_layers: bool | None = Field(
        None,
        description="compile one layer and run it over all: compiles in a fraction of the time, "
        "runs slower on CPU; a resumed run may change it; only on TPU",
    )


class Optimizer(Section):
    """AdamW with warm-up and linear decay."""

    learning_rate: Positive = Field(description="highest rate, after warm-up")
    steps: Count = Field(description="total number of steps; the rate falls to 0 at the end")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear rise from 0")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="decoupled decay; not for biases and norms"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="decay of Adam's first moment"
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay of Adam's second moment"
    )
    epsilon: Positive = Field(1e-8, description="Adam's epsilon")
    max_grad_norm: Positive | None = Field(
        1.0, description="gradients of a larger norm are scaled down to it"
    )

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> Optimizer:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: expected fewer than steps={self.steps}"
            )
        return self


class Batches(Section):
    """Batch size, and tokens in memory at once."""

    size: Count = Field(description="rows per step; every other row serves as a negative")
    micro_batch_tokens: Annotated[int, Field(ge=16)] = Field(
        8192, description="tokens per device at once; bounds memory, not the batch"
    )


class Matryoshka(Section):
    """Loss on the first values of each vector as well."""

    dims: tuple[Count, ...] = Field(min_length=1, description="numbers of first values")
    weights: tuple[float, ...] | None = Field(None, description="weight of each of dims; 1")
    reduction: Literal["mean", "sum"] = Field("mean", description="reduction over dims")


class Loss(Section):
    """The loss (``jina_jax.training.losses``)."""

    name: Literal[tuple(LOSSES)] = Field(description="name of the loss")  # type: ignore[valid-type]
    temperature: Positive | None = Field(None, description="divides similarities; 0.05")
    bidirectional: bool | None = Field(
        None, description="info_nce: also from documents to queries; true"
    )
    reduction: Literal["mean", "sum"] | None = Field(
        None, description="info_nce, triplet: reduction over rows; mean"
    )
    mask_rate: Share | None = Field(None, description="mlm: share of words masked; 0.15")
    matryoshka: Matryoshka | None = Field(None, description="further dims to train")

    @model_validator(mode="after")
    def _has_its_own_fields(self) -> Loss:
        given = {k for k in type(self).model_fields if k != "name" and getattr(self, k) is not None}
        taken = LOSSES[self.name].fields
        wrong = given - taken
        if wrong:
            takes = ", ".join(sorted(taken))
            raise ValueError(f"{', '.join(sorted(wrong))}: {self.name} takes {takes}")
        return self


class Data(Section):
    """One source of rows; with several, each batch comes from one, chosen by weight."""

    paths: Paths = Field(description="files: .jsonl, .csv, .tsv, .parquet, .txt")
    kind: Literal[ROWS] = Field(description="type of rows")  # type: ignore[valid-type]
    loss: Loss = Field(description="section [data.loss]")
    columns: tuple[str | int, ...] | None = Field(
        None, description="names, or positions in CSV without a header; the usual names"
    )
    weight: Positive = Field(1.0, description="share of the batches, relative to other sources")
    batch_size: Count | None = Field(
        None, description="rows per batch of this source; batches.size"
    )
    negatives: Count | None = Field(None, description="triplets: negatives used per row; all")
    teacher: Path | None = Field(None, description="distillation: .npy with a vector for each row")
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="stop at invalid rows, or skip and list them"
    )
    drop_overlap: bool = Field(
        False, description="pairs: drop those whose one text repeats the other (paper)"
    )

    @model_validator(mode="after")
    def _fits_its_loss(self) -> Data:
        loss = LOSSES[self.loss.name]
        if self.kind not in loss.rows:
            raise ValueError(f"kind={self.kind!r}: loss {self.loss.name!r} takes {loss.rows}")
        if (self.teacher is not None) != loss.needs_teacher:
            raise ValueError(f"teacher={self.teacher}: expected for the losses {DISTILLATIONS}")
        return self

    @property
    def form(self) -> str:
        """How rows become batches (``Sampler``)."""
        return "tuples" if (self.kind, self.loss.name) == ("labelled", "triplet") else "rows"


class EvaluationSection(Section):
    """One evaluation; the mean of the primary metrics of all of them chooses the best."""

    kind: Literal[tuple(EVALUATIONS)] = Field(description="type of evaluation")  # type: ignore[valid-type]
    paths: Paths = Field(description="its files, as for `jina-jax eval`")
    name: str | None = Field(None, description="name in the log; that of the file")
    task: str | tuple[str, ...] = Field(
        "auto", description="adapter, or a pair; 'none' for the base; auto: the paper's"
    )
    dims: tuple[Count, ...] | None = Field(None, description="further Matryoshka dims to score")
    columns: tuple[str | int, ...] | None = Field(None, description="columns of its files")
    split: str | None = Field(None, description="retrieval: split of the judgements; test")
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="most tokens per text; the model's limit"
    )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``jina_jax.evaluation.Evaluation``."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return fields | {"task": from_word(self.task)}


class Log(Section):
    """Logging, evaluation and checkpoint intervals."""

    every: Count = Field(
        10, description="steps between lines of metrics.jsonl; also at each checkpoint"
    )
    evaluate_every: Count | None = Field(
        None, description="steps between evaluations; only at the end"
    )
    save_every: Count = Field(100, description="steps between checkpoints; and at the end")
    keep: Count = Field(2, description="latest checkpoints kept, besides the best")


class Settings(Section):
    """A training run.

    Relative paths start from the working directory, as on any command line.
    """

    output: Path = Field(description="directory of the run: checkpoints, metrics, settings")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="seed of row order, dropout and new weights"
    )
    model: Model
    optimizer: Optimizer
    batches: Batches
    data: tuple[Data, ...] = Field(description="sections [[data]]")
    evaluation: tuple[EvaluationSection, ...] = Field((), description="sections [[evaluation]]")
    log: Log = Log.model_validate({})

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if not self.data:
            raise ValueError("data: expected at least one section [[data]]")
        if self.model.train == "adapters" and not self.model.tasks:
            raise ValueError("model.tasks: expected the adapters to train, got none")
        if any(d.loss.name == "mlm" for d in self.data) and self.model.train == "adapters":
            raise ValueError("model.train: the loss 'mlm' trains 'all' or 'all-but-embeddings'")
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> Settings:
        """Read a file.

        Raises:
          SettingsError: naming the file and every field at fault.
          OSError: if it cannot be read.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not valid TOML ({error})") from error
        return cls.from_dict(values, source=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "settings") -> Settings:
        """Check values as TOML or JSON has them. Raises ``SettingsError``."""
        try:
            # Through JSON: lists may be tuples and strings paths, but "8" is not a number.
            return cls.model_validate_json(json.dumps(values, default=_plain))
        except ValidationError as error:
            problems = [_problem(detail) for detail in error.errors()]
            count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise SettingsError("\n  ".join([f"{source}: {count}:", *problems])) from None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, from which ``from_dict`` makes equal settings."""
        return self.model_dump(mode="json")


def _plain(value: Any) -> Any:
    """Return a value that is none of JSON's as one: NumPy's numbers and arrays, paths."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _problem(detail: Any) -> str:
    """Name the field at fault and the reason, in one line."""
    path = ""
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if detail["type"] == "missing":
        return f"{path}: is missing"
    if detail["type"] == "extra_forbidden":
        return f"{path}: is not a field"
    text = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] == "value_error" else f", got {detail['input']!r}"
    return f"{path + ': ' if path else ''}{text}{given}"


def describe() -> str:
    """Explain every field of the file, section by section."""
    return "\n".join(_described(Settings, "")) + "\n"


def _described(section: type[Section], heading: str) -> Iterator[str]:
    nested = []
    if heading:
        yield f"\n{heading}  # {(section.__doc__ or '').splitlines()[0].replace('`', '')}"
    for name, field in section.model_fields.items():
        inner, is_list = _section_of(field.annotation)
        if inner is not None:
            path = f"{heading.strip('[]')}.{name}".strip(".")
            nested.append((inner, f"[[{path}]]" if is_list else f"[{path}]"))
            continue
        default = "required" if field.is_required() else f"default {_toml(field.default)}"
        yield f"{name:<16} {field.description} ({default})"
    for inner, title in nested:
        yield from _described(inner, title)


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Find the section in a field's type, and whether it may be repeated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for part in typing.get_args(annotation):
        inner, _ = _section_of(part)
        if inner is not None:
            return inner, typing.get_origin(annotation) is tuple
    return None, False


def _toml(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value) if value == () else value)
