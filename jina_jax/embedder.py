"""JinaEmbeddings: texts in, vectors out."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jina_jax.batching import Batch, make_batches
from jina_jax.checkpoint import to_state
from jina_jax.config import Config
from jina_jax.convert import open_checkpoint
from jina_jax.encoder import abstract_encoder
from jina_jax.hub import fetch
from jina_jax.pooling import pool, truncate
from jina_jax.tokenizer import Tokenizer, check_texts

_LOGGER = logging.getLogger("jina_jax")
OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")

# Steps that may be under way at once: the host pads and fetches while the device computes.
_STEPS_IN_FLIGHT = 2


class EncodeInfo(NamedTuple):
    """What became of the tokens of each text.

    Attributes:
      tokens: int (n,), tokens used, prompt, ``<s>`` and ``</s>`` included.
      dropped: int (n,), tokens cut off at the end because of ``max_length``.
    """

    tokens: np.ndarray
    dropped: np.ndarray


class JinaEmbeddings:
    """An encoder with its weights and its tokenizer.

    Usually made by ``from_pretrained``.

    Attributes:
      config: the architecture, tasks, prompts and dimensions.
      state: the encoder's weights, an ``nnx.State``.
      tokenizer: text to ids.
      split_special_tokens: whether "<s>", "<mask>" and their like inside a text are plain text
        (True), or the special tokens of that name (False, what other libraries do).
    """

    def __init__(
        self,
        config: Config,
        state: nnx.State,
        tokenizer: Tokenizer,
        *,
        split_special_tokens: bool = False,
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most vocab_size={config.vocab_size} ids, "
                f"got {tokenizer.vocab_size}"
            )
        self.config = config
        self.state = state
        self.tokenizer = tokenizer
        self.split_special_tokens = split_special_tokens
        self._graph, _ = abstract_encoder(config)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | None = None,
        split_special_tokens: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> JinaEmbeddings:
        """Load a checkpoint of any layout that ``jina_jax.convert`` knows, converting nothing.

        Args:
          name_or_path: a directory, or a Hugging Face Hub id.
          dtype: of weights and activations, "float32", "bfloat16" or "float16"; None for the
            file's own.
          split_special_tokens: treat special tokens inside a text as plain text; set it where texts
            come from strangers.
          revision, token, cache_dir, local_files_only: as in huggingface_hub.

        Raises:
          ValueError: for an unknown dtype, or files that cannot be used (``ConfigError``,
            ``CheckpointError``).
          FileNotFoundError: if there is no such checkpoint.
        """
        directory = fetch(
            name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        checkpoint = open_checkpoint(directory)
        tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        state = to_state(checkpoint.config, checkpoint.tensors, dtype)
        return cls(checkpoint.config, state, tokenizer, split_special_tokens=split_special_tokens)

    def tokenize(self, texts: str | Sequence[str]) -> Any:
        """Return the ids of each text, ``<s>`` and ``</s>`` included, without prompt or truncation.

        Args:
          texts: a list of strings; a single string gives a single list.
        """
        if isinstance(texts, str):
            return self.tokenize([texts])[0]
        return self.tokenizer.encode(texts, split_special_tokens=self.split_special_tokens)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | Sequence[str | None] | None = None,
        prompt: str | None = "auto",
        truncate_dim: int | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        output_value: str = "sentence_embedding",
        show_progress_bar: bool | None = None,
        return_info: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
          texts: a string or a sequence of n strings.
          task: adapter to use, one of ``config.lora_adaptations``, or None for the base model; or
            a sequence with one of these for each text.
          prompt: "auto" for the prompt that belongs to each text's task, None for no prompt, or a
            string to put in front of every text.
          truncate_dim: Matryoshka dimension d to cut to before normalising; None or 0 for the
            checkpoint's own.
          max_length: most tokens of a text, prompt, ``<s>`` and ``</s>`` included; None for the
            model's limit. What is longer is cut at the end, with a warning.
          batch_size: most texts in one step.
          normalize_embeddings: scale embeddings to unit length (token embeddings never are).
          output_value: "sentence_embedding", or "token_embeddings" for the last hidden states.
          show_progress_bar: None shows it if the logger "jina_jax" is at INFO or below.
          return_info: also return an ``EncodeInfo``, which tells what was cut from which text.

        Returns:
          float32 (n, d), or (d,) for a string. With "token_embeddings" a list of float32
          (tokens, d), or one for a string. With ``return_info`` a pair of that and an
          ``EncodeInfo``.

        Raises:
          ValueError: for an argument out of range, or a text that is not a valid string; the
            message names it.
        """
        single = isinstance(texts, str)
        texts = check_texts([texts] if isinstance(texts, str) else texts)
        tasks = self._tasks(task, len(texts))
        task_ids = np.array([self.config.task_id(task) for task in tasks], np.int32)
        dim = self.config.embedding_dim(truncate_dim)
        max_length = self._max_length(max_length)
        if output_value not in OUTPUT_VALUES:
            raise ValueError(f"output_value={output_value!r}: expected one of {OUTPUT_VALUES}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected an integer of at least 1")

        ids, info = self._token_ids(self._with_prompts(texts, tasks, prompt), max_length)
        results: list[np.ndarray] = [np.empty(0)] * len(texts)
        tokens_wanted = output_value == "token_embeddings"
        progress = tqdm(
            total=len(texts), desc="encode", unit="text", disable=not _shown(show_progress_bar)
        )
        with progress:
            batches = make_batches(ids, batch_size, max_length, self.tokenizer.pad_id)
            for batch, output in self._run(batches, task_ids, tokens_wanted):
                for row, index in enumerate(batch.indices):
                    result = output[row, : len(ids[index])] if tokens_wanted else output[row]
                    results[index] = result[..., :dim]
                progress.update(len(batch.indices))
        embeddings: Any = results
        if not tokens_wanted:
            stacked = np.stack(results) if results else np.zeros((0, dim), np.float32)
            embeddings = truncate(stacked, dim, normalize=normalize_embeddings)
        embeddings = embeddings[0] if single else embeddings
        return (embeddings, info) if return_info else embeddings

    def _tasks(self, task: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        """Spread one task over all texts, or check that there is one for each."""
        if task is None or isinstance(task, str):
            self.config.task_id(task)  # a wrong name is an error without any text, too
            return [task] * count
        if not isinstance(task, Sequence):
            raise ValueError(f"task={task!r}: expected None, a string, or one of these a text")
        if len(task) != count:
            raise ValueError(f"task: expected one for each of {count} texts, got {len(task)}")
        return list(task)

    def _max_length(self, max_length: int | None) -> int:
        limit = self.config.max_length
        max_length = limit if max_length is None else max_length
        if type(max_length) is not int or not 2 <= max_length <= limit:
            raise ValueError(f"max_length={max_length!r}: expected an integer from 2 to {limit}")
        return max_length

    def _with_prompts(
        self, texts: list[str], tasks: list[str | None], prompt: str | None
    ) -> list[str]:
        if prompt is None:
            return texts
        if not isinstance(prompt, str):
            raise ValueError(f"prompt={prompt!r}: expected 'auto', None or a string")
        if prompt != "auto":
            return [prompt + text for text in texts]
        prompts = {task: self.config.prompt(task) for task in set(tasks)}
        return [prompts[task] + text for task, text in zip(tasks, texts, strict=True)]

    def _token_ids(self, texts: list[str], max_length: int) -> tuple[list[list[int]], EncodeInfo]:
        """Tokenise, and cut what is too long, keeping ``</s>`` at the end."""
        full = self.tokenize(texts)
        ids = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in full]
        tokens = np.array([len(row) for row in ids], np.int64)
        dropped = np.array([len(row) for row in full], np.int64) - tokens
        if dropped.any():
            warnings.warn(
                f"{np.count_nonzero(dropped)} of {len(texts)} texts were longer than "
                f"max_length={max_length} tokens; {dropped.sum()} tokens were cut off",
                stacklevel=3,
            )
        return ids, EncodeInfo(tokens, dropped)

    def _run(
        self, batches: list[Batch], task_ids: np.ndarray, tokens_wanted: bool
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Run batches with a few steps in flight; yield float32 (B, D) or (B, T, D) in order."""
        waiting: list[tuple[Batch, jax.Array]] = []
        for batch in batches:
            rows = np.full(len(batch.input_ids), -1, np.int32)
            rows[: len(batch.indices)] = task_ids[batch.indices]
            output = _step(
                self._graph,
                self.state,
                batch.input_ids,
                batch.attention_mask,
                rows if (rows >= 0).any() else None,
                tokens_wanted,
            )
            waiting.append((batch, output))
            if len(waiting) > _STEPS_IN_FLIGHT:
                done, output = waiting.pop(0)
                yield done, np.asarray(output)
        for done, output in waiting:
            yield done, np.asarray(output)


@functools.partial(jax.jit, static_argnames=("graph", "tokens_wanted"))
def _step(graph, state, input_ids, attention_mask, task_ids, tokens_wanted):
    """Encode one batch: pooled float32 (B, D), or all tokens' float32 (B, T, D)."""
    encoder = nnx.merge(graph, state)
    hidden = encoder(input_ids, attention_mask, task_ids).last_hidden_state
    if tokens_wanted:
        return hidden.astype(jnp.float32)
    return pool(hidden, attention_mask, encoder.config.emb_pooler)


def _shown(show_progress_bar: bool | None) -> bool:
    if show_progress_bar is None:
        return _LOGGER.getEffectiveLevel() <= logging.INFO
    return show_progress_bar
