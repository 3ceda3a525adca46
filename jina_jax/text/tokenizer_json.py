"""Read and check tokenizer.json; cache the compiled vocabulary on disk.

Reading the 250,002 pieces of XLM-R's vocabulary and building a sentencepiece model from them takes
longer than everything else, so the result is cached under ``$JINA_JAX_CACHE`` (or
~/.cache/jina_jax) by the SHA-256 of the file. The folder may be deleted, or not be writable, at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jina_jax.cache import cache_folder
from jina_jax.text.normalizer import Charsmap, Normalizer, Replace, Strip
from jina_jax.text.sentencepiece_model import tokenizer_fields
from jina_jax.text.unigram import Vocabulary, compile_vocabulary

_T = TypeVar("_T")
_POWERS_OF_TEN = tuple(float(f"1e{n}") for n in range(309))

_CACHE_FORMAT = 2  # increase when the meaning of a cached array changes
_REPEATED_SPACES = {" {2,}", " +"}  # equal in Oniguruma and Python


class _Number(str):
    """A number with a fraction or an exponent, in the spelling of the file."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is searched in the text itself, before any segmentation."""

    id: int
    content: str
    special: bool
    normalized: bool
    single_word: bool
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True)
class Metaspace:
    """The marking of words: a ``replacement`` for the space in front of them."""

    replacement: str
    prepend: str  # always, first, never: chunks without a mark to which one is prepended
    split: bool


@dataclass(frozen=True)
class TokenizerSpec:
    """The content of tokenizer.json without the vocabulary."""

    normalizers: tuple[Normalizer, ...]
    split_white_space: bool
    metaspace: Metaspace
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    added: tuple[AddedToken, ...]
    unk_id: int
    byte_fallback: bool


def digest(content: bytes) -> str:
    """Return the name of a file's content in caches."""
    return hashlib.sha256(content).hexdigest()


def read(path: Path, content: bytes) -> tuple[TokenizerSpec, Vocabulary]:
    """Read tokenizer.json, with the vocabulary from the cache if it has one.

    Args:
      path: the file's path, for messages; a SentencePiece model by its suffix, ".model".
      content: its bytes.

    Raises:
      ValueError: if the file is malformed or unsupported; the message names the file and the
        field.
    """
    folder = cache_folder()
    entry = None if folder is None else folder / f"tokenizer-{digest(content)}-{_CACHE_FORMAT}.npz"
    try:
        cached = None if entry is None else _load_entry(entry)
        if cached is not None:
            return _spec(cached[0]), cached[1]
        if path.suffix == ".model":
            fields = tokenizer_fields(content)
        else:
            fields = _object(json.loads(content, parse_float=_Number), "the file")
        spec = _spec(fields)
        vocabulary = _vocabulary(fields, spec)
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors too
        raise ValueError(f"{path}: {error}") from error
    if entry is not None:
        _save_entry(entry, fields, vocabulary)
    return spec, vocabulary


def _spec(fields: dict[str, Any]) -> TokenizerSpec:
    model = _object(fields.get("model"), "model")
    expected = "'Unigram' (XLM-RoBERTa's vocabulary; WordPiece and BPE are not supported)"
    _expect(model.get("type", "Unigram") == "Unigram", "model.type", model.get("type"), expected)
    unk_id = _typed(model, "unk_id", int, "model")
    white_space, metaspace = _pre_tokenizer(fields.get("pre_tokenizer"))
    prefix, suffix = _template(fields.get("post_processor"))
    _check_truncation(fields.get("truncation"))
    tokens = _typed(fields, "added_tokens", list)
    added = tuple(_added_token(token, f"added_tokens[{i}]") for i, token in enumerate(tokens))
    for name in ("<s>", "</s>", "<pad>"):
        contents = [token.content for token in added]
        _expect(name in contents, "added_tokens", contents, f"{name!r} among them")
    return TokenizerSpec(
        normalizers=tuple(_normalizers(fields.get("normalizer"), "normalizer")),
        split_white_space=white_space,
        metaspace=metaspace,
        prefix=prefix,
        suffix=suffix,
        added=added,
        unk_id=unk_id,
        byte_fallback=_typed(model, "byte_fallback", bool, "model", default=False),
    )


def _check_truncation(spec: Any) -> None:
    """Refuse truncation on the left, which transformers would do; the length is set per call."""
    if spec is not None:
        side = _object(spec, "truncation").get("direction", "Right")
        _expect(side == "Right", "truncation.direction", side, "'Right'")


def _normalizers(spec: Any, where: str) -> list[Normalizer]:
    if spec is None:
        return []
    kind = _object(spec, where).get("type")
    if kind == "Sequence":
        steps = _typed(spec, "normalizers", list, where)
        parts = [_normalizers(s, f"{where}.normalizers[{i}]") for i, s in enumerate(steps)]
        return [normalizer for part in parts for normalizer in part]
    if kind == "Precompiled":
        blob = _typed(spec, "precompiled_charsmap", str, where)
        return [_named(f"{where}.precompiled_charsmap", Charsmap.from_base64, blob)]
    if kind == "Replace":
        return [Replace(_pattern(spec.get("pattern"), where), _typed(spec, "content", str, where))]
    if kind == "Strip":
        left, right = (_typed(spec, f"strip_{side}", bool, where) for side in ("left", "right"))
        return [Strip(left, right)]
    raise _unexpected(f"{where}.type", kind, "null, Precompiled, Replace, Strip or Sequence")


def _pattern(spec: Any, where: str) -> re.Pattern[str]:
    pattern = _object(spec, f"{where}.pattern")
    literal, expression = pattern.get("String"), pattern.get("Regex")
    if isinstance(literal, str) and literal:
        return re.compile(re.escape(literal))
    if expression in _REPEATED_SPACES:
        return re.compile(expression)
    expected = f"a String, or a Regex out of {sorted(_REPEATED_SPACES)}"
    raise _unexpected(f"{where}.pattern", spec, expected)


def _pre_tokenizer(spec: Any) -> tuple[bool, Metaspace]:
    """Return whether to split at white space first, and the Metaspace step."""
    where = "pre_tokenizer"
    steps = [_object(spec, where)]
    if steps[0].get("type") == "Sequence":
        steps = [
            _object(step, f"{where}.pretokenizers[{i}]")
            for i, step in enumerate(_typed(steps[0], "pretokenizers", list, where))
        ]
    kinds = [step.get("type") for step in steps]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise _unexpected(f"{where}.type", kinds, "Metaspace, with or without WhitespaceSplit")
    return len(kinds) == 2, _metaspace(steps[-1], where)


def _metaspace(spec: dict[str, Any], where: str) -> Metaspace:
    replacement = _typed(spec, "replacement", str, where)
    is_mark = len(replacement) == 1 and replacement != " "
    _expect(is_mark, f"{where}.replacement", replacement, "one character other than a space")
    # Older files have add_prefix_space in place of prepend_scheme.
    prefixed = _typed(spec, "add_prefix_space", bool, where, default=True)
    prepend = spec.get("prepend_scheme", "always" if prefixed else "never")
    allowed = ("always", "first", "never") if prefixed else ("never",)
    _expect(prepend in allowed, f"{where}.prepend_scheme", prepend, f"one of {allowed}")
    return Metaspace(replacement, prepend, _typed(spec, "split", bool, where, default=True))


def _template(spec: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids in front of a text and the ids behind it."""
    where = "post_processor"
    if spec is None:
        return (), ()
    kind = _object(spec, where).get("type")
    if kind == "RobertaProcessing":
        trims = spec.get("trim_offsets")
        _expect(trims is False, f"{where}.trim_offsets", trims, "false")
        return (_pair_id(spec, "cls", where),), (_pair_id(spec, "sep", where),)
    if kind != "TemplateProcessing":
        raise _unexpected(f"{where}.type", kind, "null, TemplateProcessing or RobertaProcessing")
    sides: tuple[list[int], list[int]] = ([], [])
    sequences = 0
    for i, item in enumerate(_typed(spec, "single", list, where)):
        kind = next(iter(_object(item, f"{where}.single[{i}]").values()), None)
        type_id = kind.get("type_id", 0) if isinstance(kind, dict) else 0
        _expect(type_id == 0, f"{where}.single[{i}].type_id", type_id, "0")
        if "Sequence" in item:
            sequences += 1
        else:
            sides[min(sequences, 1)].extend(_template_ids(spec, item, f"{where}.single[{i}]"))
    _expect(sequences == 1, f"{where}.single", f"{sequences} sequences", "exactly one")
    return tuple(sides[0]), tuple(sides[1])


def _template_ids(spec: dict[str, Any], item: dict[str, Any], where: str) -> list[int]:
    name = _typed(_object(item.get("SpecialToken"), where), "id", str, where)
    tokens = _object(spec.get("special_tokens"), "post_processor.special_tokens")
    where = f"post_processor.special_tokens.{name}"
    ids = _typed(_object(tokens.get(name), where), "ids", list, where)
    _expect(all(isinstance(i, int) for i in ids), f"{where}.ids", ids, "numbers")
    return ids


def _pair_id(spec: dict[str, Any], key: str, where: str) -> int:
    pair = _typed(spec, key, list, where)
    _expect(len(pair) == 2 and isinstance(pair[1], int), f"{where}.{key}", pair, "[text, id]")
    return pair[1]


def _added_token(spec: Any, where: str) -> AddedToken:
    fields = _object(spec, where)
    flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
    content = _typed(fields, "content", str, where)
    _expect(content != "", f"{where}.content", content, "at least one character")
    return AddedToken(
        id=_typed(fields, "id", int, where),
        content=content,
        **{flag: _typed(fields, flag, bool, where) for flag in flags},
    )


def _vocabulary(fields: dict[str, Any], spec: TokenizerSpec) -> Vocabulary:
    entries = _typed(fields["model"], "vocab", list, "model")
    for i, entry in enumerate(entries):
        if not (type(entry) is list and len(entry) == 2 and type(entry[0]) is str):
            raise _unexpected(f"model.vocab[{i}]", entry, "[piece, score]")
        if type(entry[1]) not in (_Number, int, float):
            raise _unexpected(f"model.vocab[{i}]", entry, "[piece, score]")
    pieces = [entry[0] for entry in entries]
    scores = [_parsed(entry[1]) for entry in entries]
    vocabulary = _named("model.vocab", lambda: compile_vocabulary(pieces, scores))
    known = range(len(pieces))
    _expect(spec.unk_id in known, "model.unk_id", spec.unk_id, f"an id below {len(pieces)}")
    _check_added_ids(spec, pieces)
    return vocabulary


def _parsed(number: _Number | float) -> float:
    """Return the value that ``tokenizers`` reads, whose last bit is not always right.

    Its JSON reader (serde_json without ``float_roundtrip``) reads the digits as one whole number
    and then multiplies or divides by a power of ten: two roundings, one more than Python. The last
    bits decide between segmentations of otherwise equal score. (Numbers of more than 19 digits,
    which no writer of doubles produces, are read as in Python.)
    """
    if isinstance(number, float):  # of a SentencePiece model
        return number
    mantissa, _, power = str(number).lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, exponent = int(whole + fraction), int(power or 0) - len(fraction)
    if abs(digits) >= 1 << 64 or exponent > 308:
        return float(number)
    value = float(digits)
    while exponent < -308:
        value, exponent = value / 1e308, exponent + 308
    return value / _POWERS_OF_TEN[-exponent] if exponent < 0 else value * _POWERS_OF_TEN[exponent]


def _check_added_ids(spec: TokenizerSpec, pieces: Sequence[str]) -> None:
    """Check that added tokens have the ids of their pieces, or the next free ones."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    for i, token in enumerate(spec.added):
        expected = ids.setdefault(token.content, len(ids))
        _expect(token.id == expected, f"added_tokens[{i}].id", token.id, str(expected))
    for token_id in (*spec.prefix, *spec.suffix):
        known = 0 <= token_id < len(ids)
        _expect(known, "post_processor", f"token id {token_id}", f"an id below {len(ids)}")


def _object(value: Any, where: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), where, value, "an object")
    return value


def _typed(
    fields: dict[str, Any], key: str, kind: type, where: str = "", default: Any = None
) -> Any:
    value = fields.get(key)
    value = default if value is None else value
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    _expect(fits, f"{where}.{key}".lstrip("."), value, f"a value of type {kind.__name__}")
    return value


def _expect(is_met: bool, where: str, got: Any, expected: str) -> None:
    if not is_met:
        raise _unexpected(where, got, expected)


def _unexpected(where: str, got: Any, expected: str) -> ValueError:
    shown = repr(got) if len(repr(got)) <= 80 else f"{repr(got)[:80]}…"
    return ValueError(f"{where}: expected {expected}, got {shown}")


def _named(where: str, make: Callable[..., _T], *args: Any) -> _T:
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _load_entry(path: Path) -> tuple[dict[str, Any], Vocabulary] | None:
    """Return a file's fields without the vocabulary, and the vocabulary; None if not cached."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # checks CRCs
            fields = json.loads(arrays["fields"].tobytes())
            pairs = arrays["pairs"].tobytes().decode()
            model, scores, longest = arrays["model"], arrays["scores"], int(arrays["longest"])
            return fields, Vocabulary(model.tobytes(), scores, pairs, longest)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # a damaged zip header raises any of these


def _save_entry(path: Path, fields: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write a cache entry in one step; failing to write it is not an error."""
    kept = {**fields, "model": {**fields["model"], "vocab": None}}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(
                    file,
                    fields=np.frombuffer(json.dumps(kept).encode(), np.uint8),
                    model=np.frombuffer(vocabulary.model, np.uint8),
                    scores=vocabulary.scores,
                    pairs=np.frombuffer(vocabulary.pairs.encode(), np.uint8),
                    longest=vocabulary.longest,
                )
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
