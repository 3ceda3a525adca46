"""Job → adapters: the task adapters of each job, and the words that options of jobs take.

The one place for both, and it imports nothing, since the command line's help lists these words.
Absence is ``None`` everywhere in Python; the command line and TOML, which have no ``None``, write
"none".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

Task = str | None | Sequence[str | None]

AUTO, NONE = "auto", "none"
LONG_TEXT = ("truncate", "windows")  # of ``JinaEmbeddings.encode``
UNITS = ("line", "paragraph")  # of ``jina_jax.search.split``
SAMPLING_STRATEGIES = ("top", "random")  # of ``jina_jax.search.Rules``
QUERY, PASSAGE = RETRIEVAL = ("retrieval.query", "retrieval.passage")

# arXiv 2409.10173, section 5. It names no adapter for bitext mining: the one for symmetric pairs.
EVALUATIONS: dict[str, tuple[str, ...]] = {
    "sts": ("text-matching",),
    "bitext": ("text-matching",),
    "classification": ("classification",),
    "clustering": ("separation",),
    "retrieval": RETRIEVAL,
}
JOBS: dict[str, tuple[str, ...]] = {
    **EVALUATIONS,
    "hard negatives": RETRIEVAL,
    "late chunking": (PASSAGE,),  # arXiv 2409.04701
}

# By type of mteb's tasks, those that may have texts alone. Types that the paper does not cover are
# as in mteb's own entry for jina-embeddings-v3, None for those without an adapter there. A pair
# is (queries, all else).
MTEB_TYPES: dict[str, str | tuple[str, str] | None] = {
    "Any2AnyRetrieval": None,
    "BitextMining": "text-matching",
    "Classification": "classification",
    "Clustering": "separation",
    "InstructionReranking": None,
    "InstructionRetrieval": None,
    "MultilabelClassification": "classification",
    "PairClassification": "classification",
    "Regression": None,
    "Reranking": "separation",
    "Retrieval": RETRIEVAL,
    "STS": "text-matching",
    "Summarization": "text-matching",
    "ZeroShotClassification": None,
}
# Retrieval tasks whose two sides are alike, and LongEmbed, by parts of their names.
MTEB_TEXT_MATCHING = ("ArguAna", "CQADupstack", "Quora", "LEMB")


class TextEncoder(Protocol):
    """A model that jobs can use: ``JinaEmbeddings``, or anything that encodes as it does.

    Its ``config``, if it has one as ``JinaEmbeddings`` does, gives its adapters and dimensions;
    without one it counts as a model without adapters.
    """

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        max_length: int | None,
        normalize_embeddings: bool,
    ) -> np.ndarray:
        """Return float32 (n, d), see ``JinaEmbeddings.encode``."""
        ...


def usual_tasks(model: Any, job: str) -> tuple[str | None, ...]:
    """Return the adapters that a job uses, None in place of those that the model lacks.

    Args:
      model: a ``TextEncoder``.
      job: a key of ``JOBS``.
    """
    known = getattr(getattr(model, "config", None), "lora_adaptations", ())
    return tuple(task if task in known else None for task in JOBS[job])


def pick_tasks(model: Any, job: str, task: Task = AUTO) -> tuple[str | None, ...]:
    """Choose the adapters of a job, for retrieval those of queries and of passages.

    Args:
      model: a ``TextEncoder``.
      job: a key of ``JOBS``.
      task: adapter, or None for the base model; "auto" for the adapter that this job uses, if the
        model has it, else None. For a job with two sides also a pair of these.

    Returns:
      An adapter or None for each side of the job.

    Raises:
      ValueError: if ``task`` is none of these.
    """
    usual = usual_tasks(model, job)
    tasks: Sequence[Any] = task if isinstance(task, list | tuple) else (task,) * len(usual)
    if len(tasks) != len(usual) or not all(isinstance(own, str | None) for own in tasks):
        wanted = "None, a string or a pair of these" if len(usual) > 1 else "None or a string"
        raise ValueError(f"task={task!r}: expected {wanted} for {job}")
    for own in tasks:
        refuse_none_word("task", own, "the base model")
    return tuple(own if task == AUTO else task for own, task in zip(usual, tasks, strict=True))


def refuse_none_word(argument: str, value: Any, meaning: str) -> None:
    """Refuse the string "none" where None is meant.

    Args:
      argument: its name.
      value: its value.
      meaning: of None.

    Raises:
      ValueError: if the value is "none".
    """
    if isinstance(value, str) and value == NONE:
        raise ValueError(f"{argument}={value!r}: expected None (without quotes) for {meaning}")


def from_word(word: Any) -> Any:
    """Return None for the word "none" of the command line and of TOML; in a tuple for each of it.

    Anything else is returned unchanged.
    """
    if isinstance(word, tuple):
        return tuple(map(from_word, word))
    return None if word == NONE else word
