"""The results of encoding, and the options that its forms share."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from jina_jax.nn.pooling import unit

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")


class EncodeInfo(NamedTuple):
    """Numbers of tokens per text.

    Attributes:
      tokens: int (n,), tokens used, prompt, ``<s>`` and ``</s>`` included.
      dropped: int (n,), tokens cut off at the end because of ``max_length``.
      padding: share of the computed positions that held no token, in 0 … 1.
    """

    tokens: np.ndarray
    dropped: np.ndarray
    padding: float


class Chunks(NamedTuple):
    """The chunks of a text.

    Attributes:
      spans: first character of each chunk and the one after its last, in the order asked for.
      embeddings: float32 (chunks, d).
    """

    spans: list[tuple[int, int]]
    embeddings: np.ndarray


class ChunkOptions(TypedDict, total=False):
    """Options of ``JinaEmbeddings.encode_chunks``, explained there."""

    task: str | Sequence[str | None] | None
    prompt: str | None
    prompt_name: str | None
    truncate_dim: int | None
    max_length: int | None
    overlap: int | None
    batch_size: int | None
    normalize_embeddings: bool
    show_progress_bar: bool | None


class EncodeOptions(ChunkOptions, total=False):
    """Options of ``JinaEmbeddings.encode``, explained there."""

    long_text: str


class FormOptions(EncodeOptions, total=False):
    """All options of ``JinaEmbeddings.encode``, those of the result's form included."""

    output_value: str
    convert_to_numpy: bool
    return_info: bool


def finish(
    vectors: np.ndarray, dtype: str, *, normalize: bool, text: int | None = None
) -> np.ndarray:
    """Check that vectors are finite, and return them, of unit length if asked.

    Args:
      vectors: float32 (n, d).
      dtype: of the weights, for the error.
      normalize: divide by the Euclidean norm (a zero vector stays zero).
      text: position of the text that all vectors belong to; None for one vector per text.

    Raises:
      ValueError: for infinities and NaN, naming the first text that has some.
    """
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=-1))
    if broken.size:
        text = int(broken[0]) if text is None else text
        cause = "is there NaN in its weights?"
        if dtype == "float16":
            cause = "float16 overflows beyond 65,504: load the model with dtype='bfloat16'"
        raise ValueError(
            f"texts[{text}]: expected a finite embedding, got NaN or infinity; {cause}"
        )
    return unit(vectors) if normalize else vectors


def warn_user(*messages: str) -> None:
    """Warn the user's line, outside of this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("jina_jax."):
        frame, level = frame.f_back, level + 1
    for message in messages:
        warnings.warn(message, stacklevel=level)


def warn_dropped(dropped: np.ndarray, max_length: int) -> None:
    """Warn of texts that were cut, int (n,) tokens."""
    if dropped.any():
        warn_user(
            f"{np.count_nonzero(dropped)} of {len(dropped)} texts were longer than "
            f"max_length={max_length} tokens; {dropped.sum()} tokens were cut off"
        )
