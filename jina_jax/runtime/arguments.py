"""The arguments of ``encode`` and ``encode_chunks``, checked, as requests."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from jina_jax.checks import check_integer, check_unicode
from jina_jax.config import Config
from jina_jax.runtime.requests import Chunking, Request
from jina_jax.runtime.results import OUTPUT_VALUES
from jina_jax.tasks import AUTO, LONG_TEXT, PASSAGE, QUERY, Task, refuse_none_word
from jina_jax.text.sentences import chunk_by_sentences
from jina_jax.text.spans import chunk_by_tokens
from jina_jax.text.tokenizer import check_texts

WHOLE = object()  # no chunks
# Side → its adapter, and names of prompts that sentence-transformers uses, the first one found.
_SIDES = {"query": (QUERY, ("query",)), "document": (PASSAGE, ("document", "passage", "corpus"))}
_OVERLAP = 256


def make_requests(
    config: Config,
    texts: str | Sequence[str],
    task: Task,
    prompt: str | None,
    prompt_name: str | None,
    chunks: Any = WHOLE,
) -> list[Request]:
    """Return a request per text.

    Args:
      config: names tasks and prompts.
      texts, task, prompt, prompt_name, chunks: as ``JinaEmbeddings.encode_chunks`` takes them;
        ``WHOLE`` asks for one vector per text.

    Raises:
      ValueError: for an argument that is not one of these; the message names it.
    """
    single = isinstance(texts, str)
    checked = check_texts([texts] if isinstance(texts, str) else _plain(texts))
    tasks = _tasks(config, task, len(checked))
    prompts = _prompts(config, tasks, prompt, prompt_name)
    wanted = [None] * len(checked) if chunks is WHOLE else _chunkings(chunks, len(checked), single)
    return [
        Request(text, prompts[task], config.task_id(task), chunking, position)
        for position, (text, task, chunking) in enumerate(zip(checked, tasks, wanted, strict=True))
    ]


def pick_dim(config: Config, truncate_dim: int | None, output_value: str) -> int:
    """Return the dimension of the result, see ``Config.embedding_dim``.

    Raises:
      ValueError: for a dimension that the model does not have, or any for the vectors of tokens of
        a model with ``config.dense``, which these do not pass through.
    """
    if output_value == OUTPUT_VALUES[0] or not config.dense:
        return config.embedding_dim(truncate_dim)
    if truncate_dim:
        raise ValueError(
            f"truncate_dim={truncate_dim!r}: expected None with output_value={output_value!r} of "
            "a model with Dense modules"
        )
    return config.hidden_size


def pick_overlap(overlap: int | None, max_length: int) -> int:
    """Return the tokens that windows share, for None a quarter of ``max_length``, at most 256."""
    if overlap is None:
        return min(_OVERLAP, max_length // 4)
    overlap = check_integer("overlap", overlap, 0)
    if overlap >= max_length:
        raise ValueError(
            f"overlap={overlap}: expected an integer from 0 to max_length - 1 = {max_length - 1}"
        )
    return overlap


def pick_windows(
    config: Config, long_text: str, overlap: int | None, max_length: int, output_value: str
) -> int | None:
    """Return the tokens that windows of a long text share, or None where it is cut.

    Raises:
      ValueError: for an unknown ``long_text`` or ``output_value``, windows of token embeddings or
        of a model without the mean pooler, or an overlap without windows.
    """
    if output_value not in OUTPUT_VALUES:
        raise ValueError(f"output_value={output_value!r}: expected one of {OUTPUT_VALUES}")
    if long_text not in LONG_TEXT:
        raise ValueError(f"long_text={long_text!r}: expected one of {LONG_TEXT}")
    if long_text == "truncate":
        if overlap is not None:
            raise ValueError(f"overlap={overlap!r}: expected None with long_text='truncate'")
        return None
    if output_value != OUTPUT_VALUES[0]:
        raise ValueError(
            f"long_text='windows': expected sentence embeddings, got output_value={output_value!r}"
        )
    check_mean_pooler(config, "long_text='windows'")
    return pick_overlap(overlap, max_length)


def check_mean_pooler(config: Config, what: str) -> None:
    """Refuse means over parts of a text for a model that was not trained to be averaged."""
    if config.emb_pooler != "mean":
        raise ValueError(
            f"{what}: expected a model with the 'mean' pooler, got the pooler "
            f"{config.emb_pooler!r}, which does not average over a text's tokens"
        )


def _tasks(config: Config, task: Task, count: int) -> list[str | None]:
    """Repeat a single task for every text, or check that there is one per text."""
    if task is None or isinstance(task, str):
        _check_task(config, task)  # a wrong name is an error without any text, too
        return [task] * count
    if isinstance(task, bytes | Mapping | Set) or not isinstance(task, Iterable):
        raise ValueError(f"task={task!r}: expected None, a string, or one of these per text")
    task = list(_plain(task))
    if len(task) != count:
        raise ValueError(f"task: expected one for each of {count} texts, got {len(task)}")
    for one in set(map(_hashable, task)):
        _check_task(config, one)
    return task


def _plain(values: Any) -> Any:
    """Return a column of Arrow or pandas with strings of Python, and None for what is missing."""
    if hasattr(values, "to_pylist"):  # Arrow
        return values.to_pylist()
    return values.to_numpy(object, na_value=None) if hasattr(values, "isna") else values


def _hashable(task: Any) -> str | None:
    if task is not None and not isinstance(task, str):
        raise ValueError(f"task={task!r}: expected None or a string per text")
    return task


def _check_task(config: Config, task: str | None) -> None:
    refuse_none_word("task", task, "the base model")
    config.task_id(task)


def with_side(config: Config, side: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``encode`` for one side of retrieval.

    Args:
      config: names tasks and prompts.
      side: "query" or "document". Its adapter is used, or the prompt that sentence-transformers
        takes for it where the model has a prompt of that name and no such adapter.
      options: of the caller, which count first.
    """
    adapter, names = _SIDES[side]
    found = {"task": adapter if adapter in config.lora_adaptations else None, **options}
    named = [name for name in names if name in dict(config.prompts)]
    if found["task"] is None and named and not found.keys() & {"prompt", "prompt_name"}:
        found["prompt_name"] = named[0]
    return found


def _prompts(
    config: Config, tasks: list[str | None], prompt: str | None, prompt_name: str | None
) -> dict[str | None, str]:
    """Map each task to the prompt of its texts."""
    if prompt_name is not None:
        if prompt != AUTO:
            raise ValueError(f"prompt_name={prompt_name!r}: expected None beside prompt={prompt!r}")
        return dict.fromkeys(tasks, config.named_prompt(prompt_name))
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r}: expected 'auto', None or a string")
    refuse_none_word("prompt", prompt, "no prompt")
    if prompt == AUTO:
        return {task: config.prompt(task) for task in set(tasks)}
    check_unicode(prompt or "", "prompt")
    return dict.fromkeys(tasks, prompt or "")


def _chunkings(chunks: Any, count: int, single: bool) -> Sequence[Chunking]:
    """Return a function (text, its tokens' offsets) → spans for each text."""
    if isinstance(chunks, numbers.Integral):
        tokens = check_integer("chunks", chunks, 1)
        return [lambda text, offsets: chunk_by_tokens(offsets, tokens)] * count
    if isinstance(chunks, str) and chunks == "sentences":
        return [lambda text, offsets: chunk_by_sentences(text)] * count
    if callable(chunks):
        return [lambda text, offsets: chunks(text)] * count
    if isinstance(chunks, str) or not isinstance(chunks, Sequence | np.ndarray):
        raise ValueError(
            f"chunks={chunks!r}: expected a number of tokens, 'sentences', a function or spans"
        )
    spans: Any = [chunks] if single else chunks
    if len(spans) != count:
        raise ValueError(f"chunks: expected spans for each of {count} texts, got {len(spans)}")
    return [functools.partial(_given, own) for own in spans]


def _given(spans: Any, text: str, offsets: Any) -> Any:
    return spans
