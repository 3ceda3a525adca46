"""Masked language modelling with whole words masked: the paper's first stage.

The head is XLM-RoBERTa's: dense, GELU, LayerNorm, and the word embeddings again as the decoder. It
is trained too and never exported. The paper leaves the rates open; these are BERT's (arXiv
1810.04805): 15 % of the words, of whose tokens 80 % become ``<mask>``, 10 % another token and 10 %
stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import regex
from flax import nnx
from jax.nn import initializers

from jina_jax.config import Config
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.layers import LayerNorm, Linear, as_wide, draw, gelu
from jina_jax.nn.matmul import einsum
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training.losses import masked_lm
from jina_jax.training.micro_batches import MicroBatches
from jina_jax.training.parameters import Arrays
from jina_jax.training.step import Encoding, Objective, over_micro_batches

MASK_RATE = 0.15
_TO_MASK, _TO_OTHER = 0.8, 0.1
# Scripts without spaces between words: each of their tokens counts as a word, and a word of another
# script begins right after them or their punctuation.
_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED = regex.compile(
    rf"[{_SCRIPTS}]|(?<=[{_SCRIPTS}、。，！？：；])[\p{{Lu}}\p{{Ll}}\p{{Lo}}\p{{N}}]"
)
_WORD_TABLE = "word_embeddings.embedding"
_HEAD = "mlm_head."


class MaskedText(NamedTuple):
    """A text of n tokens, some of them masked.

    Attributes:
      ids: n token ids to encode.
      positions: of the m tokens to predict.
      labels: the m ids before masking.
      dropped: tokens cut off before masking.
    """

    ids: list[int]
    positions: np.ndarray
    labels: np.ndarray
    dropped: int


class MaskedMicroBatches(NamedTuple):
    """``MicroBatches`` of masked texts; M tokens are predicted in a micro-batch.

    Attributes:
      input_ids, text_spans, task_ids, used, slots: as in ``MicroBatches``.
      rows, columns: int32 (C, M), where the tokens are in their micro-batch.
      labels: int32 (C, M), their ids.
      weights: float32 (C, M), 1, or 0 where there is none.
    """

    input_ids: np.ndarray
    text_spans: np.ndarray
    task_ids: np.ndarray
    used: np.ndarray
    slots: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def padding(self) -> float:
        """Share of the computed positions without a token."""
        return MicroBatches(*self[:5]).padding


def mask_id_of(tokenizer: Tokenizer) -> int:
    """Return the id of ``<mask>``. Raises ``ValueError`` for a tokenizer without it."""
    if tokenizer.mask_id is None:
        raise ValueError("tokenizer: expected one with the token <mask>, for the loss 'mlm'")
    return tokenizer.mask_id


def mask_words(
    tokenizer: Tokenizer, text: str, max_length: int, rate: float, rng: np.random.Generator
) -> MaskedText:
    """Mask a share of the words of a text, at least one, each as a whole.

    Args:
      tokenizer: of the model, with a ``<mask>``.
      text: to mask.
      max_length: tokens kept, ``<s>`` and ``</s>`` included.
      rate: share of the words.
      rng: to draw with.

    Raises:
      ValueError: without a ``<mask>``.
    """
    mask_id = mask_id_of(tokenizer)
    ids, offsets = tokenizer.encode_with_offsets(text, split_special_tokens=True)
    inner = range(1, min(len(ids), max_length) - 1)
    words: list[list[int]] = []
    for position in inner:
        start, last = offsets[position][0], offsets[position - 1][0]
        # A word's mark starts with the word, or is the space before it; all bytes of a character
        # have the offset of the first.
        if not words or (text[last:start].strip() and _begins_word(text, start)):
            words.append([])
        words[-1].append(position)
    chosen = rng.permutation(len(words))[: max(1, round(rate * len(words)))]
    positions = np.array(sorted(p for word in chosen for p in words[word]), np.int64)
    kept = np.array([*ids[: inner.stop], ids[-1]], np.int64)
    labels = kept[positions]
    draw = rng.random(len(positions))
    other = rng.integers(0, tokenizer.vocab_size, len(positions))
    hidden = np.where(draw < _TO_MASK + _TO_OTHER, other, labels)
    kept[positions] = np.where(draw < _TO_MASK, mask_id, hidden)
    return MaskedText(kept.tolist(), positions, labels, len(ids) - len(kept))


def _begins_word(text: str, start: int) -> bool:
    """Return whether a token that starts at a character is the first of a word."""
    return any(map(str.isspace, text[start - 1 : start + 1])) or bool(_UNSPACED.match(text, start))


def masked_micro_batches(
    micro_batches: MicroBatches, texts: Sequence[MaskedText]
) -> MaskedMicroBatches:
    """Add the tokens to predict to micro-batches of masked texts."""
    count, height, _ = micro_batches.input_ids.shape
    slots = micro_batches.text_spans.shape[2]
    row, start = (
        micro_batches.slots // slots,
        micro_batches.text_spans.reshape(-1, 2)[micro_batches.slots, 0],
    )
    rows = np.concatenate([np.full(len(t.positions), r) for t, r in zip(texts, row, strict=True)])
    columns = np.concatenate([t.positions + s for t, s in zip(texts, start, strict=True)])
    labels = np.concatenate([text.labels for text in texts])
    members = [np.flatnonzero(rows // height == micro_batch) for micro_batch in range(count)]
    most = 1 << (max(map(len, members)) - 1).bit_length()
    filled = np.zeros((3, count, most), np.int32)
    weights = np.zeros((count, most), np.float32)
    for micro_batch, member in enumerate(members):
        filled[:, micro_batch, : len(member)] = (
            rows[member] % height,
            columns[member],
            labels[member],
        )
        weights[micro_batch, : len(member)] = 1
    rows, columns, labels = filled
    return MaskedMicroBatches(*micro_batches, rows, columns, labels, weights)


class MlmHead(nnx.Module):
    """XLM-RoBERTa's head: dense, GELU, LayerNorm; the word embeddings again are its decoder.

    Leaves: those of ``dense`` (D, D) and ``norm`` (D,), and ``decoder_bias`` (V,).
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs | None):
        width, vocab = config.hidden_size, config.vocab_size
        options = {"dtype": jnp.float32, "rngs": rngs}
        self.dense = Linear(width, width, config.only(()), **options)
        self.norm = LayerNorm(config, **options)
        self.decoder_bias = nnx.Param(draw(rngs, initializers.zeros, (vocab,), jnp.float32))

    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Map (B, M, D) and the words (V, D), both of one dtype, to float32 logits (B, M, V)."""
        logits = einsum("bmd,vd->bmv", self.norm(gelu(self.dense(hidden))), table)
        return logits + as_wide(self.decoder_bias[...].astype(jnp.float32), logits)


def init_head(config: Config, seed: int) -> Arrays:
    """Draw the head's parameters, float32, under paths that no encoder has."""
    head = MlmHead(config, rngs=nnx.Rngs(seed))
    return {_HEAD + path: array for path, array in to_dict(nnx.state(head)).items()}


def mlm_objective(encoding: Encoding) -> Objective:
    """Make the objective of masked language modelling: the mean over all masked tokens."""
    network = encoding.network
    graph, abstract = nnx.split(MlmHead(network.config, rngs=None))

    def head_parameters(trained):
        own = {path: array for path, array in trained.items() if path.startswith(_HEAD)}
        return {path.removeprefix(_HEAD): a.astype(network.dtype) for path, a in own.items()}

    def one_micro_batch(trained, frozen, micro_batch, dropout):
        hidden = encode_batch(
            network.graph,
            network.state(trained, frozen),
            Inputs(micro_batch.input_ids, micro_batch.text_spans),
            pooling=None,
            kernels=encoding.kernels,
            dropout=dropout,
        )
        head = nnx.merge(graph, from_dict(abstract, head_parameters(trained)))
        table = trained[_WORD_TABLE] if _WORD_TABLE in trained else frozen[_WORD_TABLE]
        masked = hidden[micro_batch.rows, micro_batch.columns].astype(network.dtype)
        logits = head(masked[None], table.astype(network.dtype))[0]
        return masked_lm(logits, labels=micro_batch.labels, weights=micro_batch.weights)

    def objective(trained, frozen, micro_batches, targets, key):
        sums = over_micro_batches(encoding, one_micro_batch, trained, frozen, micro_batches, key)
        return sums.sum() / jnp.maximum(micro_batches.weights.sum(), 1.0)

    return objective
