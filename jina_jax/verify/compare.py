"""Compare a checkpoint's hidden states with reference values.

A model's directory may have reference values of its own, in ``gold.json``, written by
``jina_jax.verify.record``. All others are compared with the packaged ``published.json``: slices of
``last_hidden_state`` of jinaai/jina-embeddings-v3 in float32, from the integration tests of
huggingface/transformers, without adapter and with each of the five, for fixed token ids and for a
sentence, without any prompt. ``gold.json`` has the texts' vectors, too, as ``encode`` gives them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jina_jax.checkpoints.load import to_state
from jina_jax.config import Config
from jina_jax.convert import Checkpoint
from jina_jax.embedder import JinaEmbeddings
from jina_jax.files import read_json
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.runtime.compiling import jit
from jina_jax.text.tokenizer import Tokenizer

PUBLISHED = Path(__file__).with_name("published.json")
REFERENCES_FILE = "gold.json"
TOLERANCE = 1e-4  # rtol and atol of the published tests
NO_TASK = "none"
_PUBLISHED_SIZE = (24, 1024)  # layers and width of jina-embeddings-v3


class Reference(NamedTuple):
    """One input with its reference values.

    Attributes:
      name: of the input.
      text: the input, if it is to be tokenised.
      input_ids: int32 (T,), or None for those of the text.
      attention_mask: bool (T,); for a text, T is the expected number of tokens.
      tokens, dims: (start, stop) of the slice on the axes of ``last_hidden_state[0]``.
      values: task, or "none" for the base model → float64 (tokens, dims) of the slice.
      embeddings: the same → float64 (dims,) of the text's unit vector with its task's prompt; {}
        where there are none.
    """

    name: str
    text: str
    input_ids: np.ndarray | None
    attention_mask: np.ndarray
    tokens: tuple[int, int]
    dims: tuple[int, int]
    values: Mapping[str, np.ndarray]
    embeddings: Mapping[str, np.ndarray]


class Check(NamedTuple):
    """One comparison.

    Attributes:
      input: name of the input.
      subject: the task, "none" for the base model, with ", vector" for the text's vector; or
        "tokens" for the number of tokens.
      difference: largest absolute difference.
      agrees: whether all values are within rtol = atol = ``TOLERANCE``, numbers of tokens equal.
    """

    input: str
    subject: str
    difference: float
    agrees: bool


def load_references(path: str | Path | None = None) -> list[Reference]:
    """Read reference values.

    Args:
      path: a file in the form of the packaged ``published.json``, with any number of inputs by
        name; None for that file.

    Raises:
      ValueError: if the file is not of that form.
      OSError: if it cannot be read.
    """
    path = PUBLISHED if path is None else Path(path)
    raw = read_json(path)
    try:
        references = [_parse(name, fields) for name, fields in raw.items() if name != "about"]
        if not references:
            raise ValueError("expected at least one input")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not in the form of published.json ({reason})") from error
    return references


def references_of(checkpoint: Checkpoint) -> list[Reference]:
    """Read a model's own reference values, if its directory has them, else the published ones.

    Raises:
      ValueError: for a model without values of its own that is not of the published one's size.
    """
    path = checkpoint.directory / REFERENCES_FILE
    if path.exists():
        return load_references(path)
    size = (checkpoint.config.num_hidden_layers, checkpoint.config.hidden_size)
    if size != _PUBLISHED_SIZE:
        layers, width = _PUBLISHED_SIZE
        raise ValueError(
            f"model: expected reference values in {path}, or a model of {layers} layers of width "
            f"{width}, to compare with those published for jina-embeddings-v3; got {size[0]} "
            f"layers of width {size[1]}"
        )
    return load_references(None)


def verify(
    checkpoint: Checkpoint, tokenizer: Tokenizer, references: Sequence[Reference]
) -> list[Check]:
    """Compare a checkpoint's hidden states with reference values, in float32.

    All tasks of an input run as one batch of mixed tasks, as in ``encode``. A text that has another
    number of tokens than expected is not compared further.

    Args:
      checkpoint: from ``open_checkpoint``; its weights are read as float32.
      tokenizer: text to ids.
      references: from ``load_references``.

    Returns:
      A check for each input and task, in the order of the references, and one for the number of
      tokens of each text.

    Raises:
      ValueError: before any weight is read, if the checkpoint lacks the tasks, the vocabulary or
        the width that the references need; the message lists everything that is missing.
    """
    config = checkpoint.config
    _check_comparable(config, tokenizer, references)
    state = to_state(config, checkpoint.tensors, "float32")
    graph, _ = abstract_encoder(config)
    model = JinaEmbeddings(config, state, tokenizer)
    run = functools.partial(jit(_last_hidden_state, static_argnames="graph"), graph, state)
    checks: list[Check] = []
    for reference in references:
        ids = reference.input_ids
        if ids is None:
            ids = np.array(tokenizer.encode([reference.text])[0], np.int32)
            checks.append(_compare_length(reference, len(ids)))
        if len(ids) == len(reference.attention_mask):
            checks += _compare(config, run, reference, ids)
            checks += _compare_vectors(model, reference)
    return checks


def _parse(name: str, raw: Mapping[str, Any]) -> Reference:
    tokens, dims = ((int(start), int(stop)) for start, stop in raw["slice"])
    values = {task: np.array(rows, np.float64) for task, rows in raw["values"].items()}
    shape = (tokens[1] - tokens[0], dims[1] - dims[0])
    wrong = [task for task, rows in values.items() if rows.shape != shape]
    if wrong or not values:
        raise ValueError(f"{name}: expected values of shape {shape} for each task, not {wrong}")
    embeddings = {
        task: np.array(row, np.float64) for task, row in raw.get("embeddings", {}).items()
    }
    if embeddings and "text" not in raw:
        raise ValueError(f"{name}: expected a text beside the embeddings")
    if any(row.shape != shape[1:] for row in embeddings.values()):
        raise ValueError(f"{name}: expected embeddings of {shape[1]} values for each task")
    text = raw.get("text", "")
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected a text, got {text!r}")
    if "text" in raw:
        mask, ids = np.ones((1, raw["tokens"]), bool), None
    else:
        mask, ids = np.array(raw["attention_mask"], bool), np.array(raw["input_ids"], np.int32)
    if len(mask) != 1 or mask.shape[1] < tokens[1] or (ids is not None and ids.shape != mask.shape):
        raise ValueError(f"{name}: expected one row of tokens, as many as the slice needs")
    ids = None if ids is None else ids[0]
    return Reference(name, text, ids, mask[0], tokens, dims, values, embeddings)


def _check_comparable(
    config: Config, tokenizer: Tokenizer, references: Sequence[Reference]
) -> None:
    named = (task for r in references for task in (*r.values, *r.embeddings))
    tasks = set(named) - {NO_TASK}
    missing = sorted(tasks - set(config.lora_adaptations))
    width = max(reference.dims[1] for reference in references)
    top_ids = [int(r.input_ids.max()) for r in references if r.input_ids is not None]
    top_id = max([tokenizer.vocab_size - 1, *top_ids])
    length = max(len(reference.attention_mask) for reference in references)
    rules = [
        (not missing, f"it lacks the tasks {', '.join(missing)}"),
        (config.hidden_size >= width, f"hidden_size={config.hidden_size} is below {width}"),
        (config.vocab_size > top_id, f"vocab_size={config.vocab_size} has no id {top_id}"),
        (config.max_length >= length, f"max_length={config.max_length} is below {length}"),
    ]
    problems = [problem for holds, problem in rules if not holds]
    if problems:
        raise ValueError("model: not comparable with the reference values: " + "; ".join(problems))


def _compare_length(reference: Reference, length: int) -> Check:
    difference = abs(length - len(reference.attention_mask))
    return Check(reference.name, "tokens", float(difference), difference == 0)


def _compare(
    config: Config, run: Callable[..., jax.Array], reference: Reference, ids: np.ndarray
) -> Iterator[Check]:
    """Run ids (T,) under every task and compare; NaN never agrees."""
    tasks = list(reference.values)
    task_ids = [config.task_id(None if task == NO_TASK else task) for task in tasks]
    shape = (len(tasks), len(ids))
    batch = (np.broadcast_to(ids, shape), np.broadcast_to(reference.attention_mask, shape))
    hidden = np.asarray(run(*batch, np.array(task_ids, np.int32)))
    window = hidden[:, slice(*reference.tokens), slice(*reference.dims)]
    for task, actual in zip(tasks, window, strict=True):
        yield _check(reference.name, task, actual, reference.values[task])


def _compare_vectors(model: JinaEmbeddings, reference: Reference) -> Iterator[Check]:
    """Embed the text under every task whose vector is known: prompts and pooling count here."""
    tasks = list(reference.embeddings)
    wanted = [None if task == NO_TASK else task for task in tasks]
    vectors = model.encode([reference.text] * len(tasks), task=wanted)
    for task, actual in zip(tasks, vectors[:, slice(*reference.dims)], strict=True):
        yield _check(reference.name, f"{task}, vector", actual, reference.embeddings[task])


def _check(name: str, subject: str, actual: np.ndarray, expected: np.ndarray) -> Check:
    agrees = np.allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    return Check(name, subject, float(np.abs(actual - expected).max()), bool(agrees))


def _last_hidden_state(graph, state, input_ids, attention_mask, task_ids):
    """Encode int32 (B, T) under task_ids (B,); float32 (B, T, D)."""
    return nnx.merge(graph, state)(input_ids, attention_mask, task_ids).last_hidden_state
