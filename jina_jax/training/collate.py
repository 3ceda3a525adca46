"""Turn a batch of texts into arrays: prompts, token ids, tasks, micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.config import Config
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training.micro_batches import MicroBatches, Packing, pack
from jina_jax.training.mlm import MASK_RATE, MaskedMicroBatches, mask_words, masked_micro_batches
from jina_jax.training.sampler import TextBatch
from jina_jax.training.settings import Data


class StepInputs(NamedTuple):
    """A batch, ready for a step.

    Attributes:
      micro_batches: the texts.
      targets: of the loss: "scores" float32 (B,), "labels" int32 (B,) or "teacher" float32
        (B, d).
      columns: texts per row.
      tokens: of all texts.
      dropped: tokens cut off.
    """

    micro_batches: MicroBatches | MaskedMicroBatches
    targets: dict[str, np.ndarray]
    columns: int
    tokens: int
    dropped: int


class Collator:
    """Make the inputs of steps from batches of texts.

    Args:
      config: of the encoder in training; its tasks, none to two, are those of a row's texts.
      tokenizer: text to ids.
      packing: how texts are put into micro-batches.
      max_length: most tokens per text.
      seed: of masking.

    Raises:
      ValueError: for a tokenizer with more ids than the encoder has embeddings, or a
        ``max_length`` beyond the encoder's.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, packing: Packing, max_length: int, seed: int
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most vocab_size={config.vocab_size} ids, "
                f"got {tokenizer.vocab_size}"
            )
        if max_length > config.max_length:
            raise ValueError(f"model.max_length={max_length}: expected at most {config.max_length}")
        self._config, self._tokenizer, self._packing = config, tokenizer, packing
        self._max_length, self._seed = max_length, seed

    def __call__(self, batch: TextBatch, data: Data, step: int) -> StepInputs:
        """Collate a batch of a source; ``step`` seeds the masking."""
        if data.loss.name == "mlm":
            return self._masked(batch, data, step)
        tasks = [self._task(column) for column in range(batch.columns)]
        prompts = [self._config.prompt(None if t < 0 else self._names[t]) for t in tasks]
        texts = [prompts[i % batch.columns] + text for i, text in enumerate(batch.texts)]
        whole = self._tokenizer.encode(texts)
        marked = data.form == "tuples"
        ids = [self._cut(row, text, marked) for row, text in zip(whole, texts, strict=True)]
        task_ids = tasks * (len(texts) // batch.columns)
        tokens = sum(map(len, ids))
        return StepInputs(
            pack(ids, task_ids, self._packing, self._config.pad_token_id),
            _targets(batch),
            batch.columns,
            tokens,
            sum(map(len, whole)) - tokens,
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return self._config.lora_adaptations

    def _task(self, column: int) -> int:
        """Return the task of a column: with two tasks, only the first column has the first."""
        return min(column, self._config.num_tasks - 1)

    def _cut(self, ids: Sequence[int], text: str, marked: bool) -> Sequence[int]:
        """Cut a text to its first tokens and ``</s>``; a tuple's mark, the last word, stays."""
        if len(ids) <= self._max_length:
            return ids
        kept = 1
        if marked:
            (mark,) = self._tokenizer.encode([text.rpartition(" ")[2]])
            kept = len(mark) - 1
        if marked and kept + 2 > self._max_length:
            raise ValueError(
                f"model.max_length={self._max_length}: expected at least {kept + 2}, for <s>, a "
                f"token of text, the mark of a tuple and </s>"
            )
        return [*ids[: self._max_length - kept], *ids[-kept:]]

    def _masked(self, batch: TextBatch, data: Data, step: int) -> StepInputs:
        rate = MASK_RATE if data.loss.mask_rate is None else data.loss.mask_rate
        rng = np.random.default_rng([self._seed, step])
        texts = [
            mask_words(self._tokenizer, text, self._max_length, rate, rng) for text in batch.texts
        ]
        ids = [text.ids for text in texts]
        micro_batches = pack(ids, [-1] * len(ids), self._packing, self._config.pad_token_id)
        dropped = sum(text.dropped for text in texts)
        return StepInputs(
            masked_micro_batches(micro_batches, texts), {}, 1, sum(map(len, ids)), dropped
        )


def _targets(batch: TextBatch) -> dict[str, np.ndarray]:
    """Name the targets of the loss."""
    if batch.teacher is not None:
        return {"teacher": batch.teacher}
    # Tuples are made of labelled rows; their loss does not need the labels.
    if batch.targets is None or batch.columns > 2:
        return {}
    return {"scores" if batch.targets.dtype == np.float32 else "labels": batch.targets}
