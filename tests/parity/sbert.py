"""Checkpoints that sentence-transformers and transformers wrote themselves, as small as can be."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 16
TEXTS = [
    "hello world",
    "",
    "The train to the sea is late again today, because of snow.",
    "a b c d",
    "Ünïcode ist auch dabei",
]


@functools.cache
def encoder_files(directory: Path, kind: str = "XLMRoberta") -> Path:
    """Let transformers write a random encoder and its tokenizer, whose tokens are characters."""
    import torch
    import transformers

    torch.manual_seed(0)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -2.0), *((c, -5.0) for c in string.printable if c.isprintable() and c != " ")]
    pieces += [(piece, -1.5) for piece in ("▁hello", "▁the", "▁query", "world", "se", "▁se")]
    pieces.append(("<mask>", 0.0))
    fields = {
        "vocab_size": len(pieces),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.5,
    }
    config = getattr(transformers, f"{kind}Config")(**fields)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(directory)
    tokenizer = transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=64)
    tokenizer.save_pretrained(directory)
    return directory


def write_sbert(
    directory: Path,
    encoder: Path,
    *,
    pooling: dict[str, Any] | None = None,
    dense: Sequence[tuple[int, str, bool]] = (),
    normalize: bool = True,
    max_seq_length: int | None = None,
    **settings: Any,
) -> Path:
    """Let sentence-transformers write a model.

    Args:
      directory: to write.
      encoder: from ``encoder_files``.
      pooling: arguments of Pooling.
      dense: (out_features, class of torch.nn, bias) of each module Dense.
      normalize: whether there is a module Normalize.
      max_seq_length: of the module Transformer.
      settings: prompts, default_prompt_name, truncate_dim, similarity_fn_name.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(1)
    options = {} if max_seq_length is None else {"max_seq_length": max_seq_length}
    listed = [modules.Transformer(str(encoder), **options)]
    listed.append(modules.Pooling(WIDTH, **(pooling or {})))
    size = WIDTH
    for out_features, activation, bias in dense:
        function = getattr(torch.nn, activation)()
        listed.append(modules.Dense(size, out_features, bias, function))
        size = out_features
    if normalize:
        listed.append(modules.Normalize())
    SentenceTransformer(modules=listed, device="cpu", **settings).save(str(directory))
    return directory


def theirs(directory: Path, texts: Sequence[str] = TEXTS, **options: Any) -> np.ndarray:
    """Encode as users of sentence-transformers do, without an argument of their own."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(directory), device="cpu").encode(list(texts), **options)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1: what theirs has without a module Normalize, ours always has."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(1e-12))
