"""The tokenizer of a ``sentencepiece.bpe.model``, for checkpoints without a tokenizer.json.

The fields of a tokenizer.json are made from it as transformers' ``XLMRobertaTokenizer`` makes its
tokenizer: the ids of fairseq's dictionary (<s>, <pad>, </s>, <unk>, then every piece but the first
three, then <mask>), SentencePiece's own rewriting rules, and words split at white space.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from jina_jax.text.beside import ADDED_FILE, SETTINGS_FILE, content_of, fields_beside

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
_OWN_FIRST = ["<unk>", "<s>", "</s>"]  # of SentencePiece, replaced by those above
_UNIGRAM = 1  # TrainerSpec.ModelType
_CLASSES = (None, "XLMRobertaTokenizer", "XLMRobertaTokenizerFast")
_TOKENS = dict(
    zip(
        ("bos_token", "eos_token", "sep_token", "cls_token", "unk_token", "pad_token"),
        ("<s>", "</s>", "</s>", "<s>", "<unk>", "<pad>"),
        strict=True,
    ),
    mask_token=_MASK,
)
_MODEL_TYPES = (None, "jina_jax", "xlm-roberta", "jina_embeddings_v3", "bert")
_PIECE = 0x0A  # the key of ModelProto.pieces
_SPEC = {"TrainerSpec": 2, "NormalizerSpec": 3}  # fields of ModelProto
_MODEL_TYPE, _CHARSMAP = 3, 2  # their fields


def tokenizer_fields(content: bytes) -> dict[str, Any]:
    """Return the fields of the tokenizer.json that a SentencePiece model stands for.

    Args:
      content: of ``sentencepiece.bpe.model``.

    Raises:
      ValueError: if it is not a Unigram model with the first three pieces of XLM-R's.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        specs, symbols = dict(_model_specs(content)), _user_defined(content)
    except (RuntimeError, IndexError) as error:
        raise ValueError("not a SentencePiece model, or truncated") from error
    if (kind := specs.get("TrainerSpec", {}).get(_MODEL_TYPE, _UNIGRAM)) != _UNIGRAM:
        raise ValueError(f"trainer_spec.model_type: expected {_UNIGRAM} (Unigram), got {kind!r}")
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids]
    if pieces[:3] != _OWN_FIRST:
        raise ValueError(f"pieces: expected {_OWN_FIRST} first, got {pieces[:3]}")
    vocab = [[piece, 0.0] for piece in _FIRST]
    vocab += [[pieces[i], processor.get_score(i)] for i in ids[3:]]
    vocab.append([_MASK, 0.0])
    added = {piece: i for i, piece in enumerate(_FIRST)} | {_MASK: len(vocab) - 1}
    added |= {pieces[i]: i + 1 for i in ids[3:] if i in symbols or processor.is_control(i)}
    symbols_of_users = {pieces[i] for i in symbols}
    charsmap = specs.get("NormalizerSpec", {}).get(_CHARSMAP, b"")
    if isinstance(charsmap, int):
        raise ValueError(f"normalizer_spec.precompiled_charsmap: expected bytes, got {charsmap}")
    return {
        "added_tokens": [
            _added_token(i, text, is_special=text not in symbols_of_users)
            for text, i in added.items()
        ],
        "normalizer": _normalizer(charsmap) if charsmap else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "cls": ["<s>", 0],
            "sep": ["</s>", 2],
            "trim_offsets": False,
        },
        "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": False, "vocab": vocab},
    }


def check_siblings(path: Path) -> None:
    """Refuse files beside a SentencePiece model that ask for another tokenizer than XLM-R's.

    Raises:
      ValueError: naming the file and the field.
    """
    config = fields_beside(path, "config.json")
    if config.get("model_type") not in _MODEL_TYPES:
        raise ValueError(
            f"{path}: the tokenizer of model_type={config['model_type']!r} cannot be built from "
            "it; expected a tokenizer.json"
        )
    settings = fields_beside(path, SETTINGS_FILE)
    wrong = [
        f"{name}={settings[name]!r}"
        for name, usual in {**_TOKENS, "add_prefix_space": True}.items()
        if name in settings and content_of(settings[name]) not in (usual, None)
    ]
    if settings.get("tokenizer_class") not in _CLASSES:
        wrong.append(f"tokenizer_class={settings['tokenizer_class']!r}")
    known = {*_FIRST, _MASK}
    more = [content_of(token) for token in (settings.get("added_tokens_decoder") or {}).values()]
    more += map(content_of, settings.get("additional_special_tokens") or [])
    more += fields_beside(path, ADDED_FILE)
    if unknown := sorted({str(token) for token in more if token not in known}):
        wrong.append(f"added tokens {unknown}")
    if wrong:
        raise ValueError(
            f"{path}: a tokenizer with {', '.join(wrong)} (tokenizer_config.json, "
            "added_tokens.json) cannot be built from it; expected a tokenizer.json"
        )


def _added_token(token_id: int, content: str, *, is_special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": is_special}


def _normalizer(charsmap: bytes) -> dict[str, Any]:
    blob = base64.b64encode(charsmap).decode()
    return {"type": "Precompiled", "precompiled_charsmap": blob}


def _pieces(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each piece's message; they are the first fields of a ModelProto."""
    at = 0
    while at < len(content) and content[at] == _PIECE:
        size, start = _varint(content, at + 1)
        at = start + size
        yield start, at


def _user_defined(content: bytes) -> set[int]:
    """Return the ids of pieces of type USER_DEFINED; the type is the last field of a piece."""
    bounds = enumerate(_pieces(content))
    return {i for i, (start, end) in bounds if content[max(start, end - 2) : end] == b"\x18\x04"}


def _model_specs(content: bytes) -> Iterator[tuple[str, dict[int, int | bytes]]]:
    """Yield the settings in a ModelProto, which are behind its pieces."""
    end = max((end for _, end in _pieces(content)), default=0)
    names = {number: name for name, number in _SPEC.items()}
    for number, value in _wire_fields(content[end:]):
        if number in names and isinstance(value, bytes):
            yield names[number], dict(_wire_fields(value))


def _wire_fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a protobuf message; fixed ones as bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, at = _varint(content, at)
        if key & 7 not in (1, 2, 5) or at + size > len(content):
            raise IndexError(f"field {key >> 3} reaches beyond its message")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Read an unsigned number; return it and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
