"""The first module of a ``SentenceTransformer`` that computes in JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jina_jax.checks import check_integer
from jina_jax.embedder import JinaEmbeddings
from jina_jax.text.tokenizer import Tokenizer


class InJax(torch.nn.Module):
    """What sentence-transformers asks of a first module, without parameters of PyTorch.

    Attributes:
      embedder: the model in JAX, which other objects may share.
      anchor: an empty tensor on the device of tensors that are returned; ``to`` moves it.
    """

    anchor: torch.Tensor

    def __init__(self, embedder: JinaEmbeddings):
        super().__init__()
        self.embedder = embedder
        self._max_seq_length: int | None = None
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """That of ``jina_jax``, not one of transformers."""
        return self.embedder.tokenizer

    @property
    def max_seq_length(self) -> int:
        """The ``max_length`` of calls that name none: the embedder's, until it is set here."""
        return self._max_seq_length or self.embedder.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        most = self.embedder.config.max_length
        self._max_seq_length = check_integer("max_seq_length", value, 2, most)

    def get_embedding_dimension(self) -> int:
        """Return the dimension of embeddings without ``truncate_dim``."""
        return self.embedder.get_embedding_dimension()

    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(
        self, texts: Sequence[str], prompt: str | None = None, task: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ids and mask, int64 (B, T), cut to ``max_seq_length``; the task changes no id."""
        found = self.embedder.tokenize([(prompt or "") + text for text in texts])
        longest, device = self.max_seq_length, self.anchor.device
        ids = [own if len(own) <= longest else own[: longest - 1] + own[-1:] for own in found]
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(own, device=device) for own in ids],
            batch_first=True,
            padding_value=self.tokenizer.pad_id,
        )
        lengths = torch.tensor([len(own) for own in ids], device=device)
        mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        return {"input_ids": padded, "attention_mask": mask.long()}

    tokenize = preprocess

    def extra_repr(self) -> str:
        return repr(self.embedder)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> InJax:
        """Move the anchor; refuse ``half``, ``bfloat16`` and the like."""
        if (dtype := fn(self.anchor).dtype) != torch.float32:
            raise ValueError(
                f"{dtype}: expected a device, as the weights are in JAX: pass "
                "model_options={'dtype': …}"
            )
        super()._apply(fn, recurse)
        return self
