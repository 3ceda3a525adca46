"""Files of transformers beside a tokenizer.json, which can add tokens to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jina_jax.files import read_json

SETTINGS_FILE = "tokenizer_config.json"
ADDED_FILE = "added_tokens.json"
_MAP_FILE = "special_tokens_map.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip")  # those that decide where a token is found


class _Added(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def content(self) -> str: ...


def check_added_tokens(path: Path, added: Sequence[_Added]) -> None:
    """Refuse files beside a tokenizer.json that add tokens, as transformers would, or change some.

    Args:
      path: of tokenizer.json.
      added: its ``added_tokens``.

    Raises:
      ValueError: naming the file and the field.
    """
    known = {token.content: token for token in added}
    for file, field, token, token_id in _named_tokens(path):
        content = content_of(token)
        if not isinstance(content, str) or content not in known:
            raise _error(path, file, f"{field}: {content!r}", "one of its added_tokens")
        own = known[content]
        if token_id is not None and str(own.id) != str(token_id):
            raise _error(path, file, f"{field}: {content!r} has the id {token_id}", f"{own.id}")
        for flag in _FLAGS if token_id is not None and isinstance(token, dict) else ():
            if flag in token and token[flag] != getattr(own, flag):
                given = f"{field}: {content!r} has {flag}={token[flag]!r}"
                raise _error(path, file, given, f"{getattr(own, flag)!r}")


def _named_tokens(path: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield file, field, token and its id (None where the file has none) of all added tokens."""
    for file in (SETTINGS_FILE, _MAP_FILE):
        fields = fields_beside(path, file)
        for name in _LISTS:
            for token in _values(path, file, name, fields.get(name)):
                yield file, name, token, None
    decoder = fields_beside(path, SETTINGS_FILE).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise _error(path, SETTINGS_FILE, f"added_tokens_decoder={decoder!r}", "an object")
    for token_id, token in decoder.items():
        yield SETTINGS_FILE, "added_tokens_decoder", token, token_id
    for content, token_id in fields_beside(path, ADDED_FILE).items():
        yield ADDED_FILE, content, content, token_id


def _values(path: Path, file: str, name: str, value: Any) -> Sequence[Any]:
    """Return the tokens of a list of them, or of an object from a name to each."""
    if not isinstance(value, list | dict | None):
        raise _error(path, file, f"{name}={value!r}", "a list of tokens")
    return [*value.values()] if isinstance(value, dict) else value or []


def _error(path: Path, file: str, given: str, expected: str) -> ValueError:
    return ValueError(f"{path.with_name(file)}: {given}: expected {expected}, as in {path.name}")


def fields_beside(path: Path, name: str) -> dict[str, Any]:
    """Read a file in the same folder; a missing one has no fields."""
    other = path.with_name(name)
    return read_json(other) if other.exists() or other.is_symlink() else {}


def content_of(token: Any) -> Any:
    """Return the text of a token, which can be an object that has it."""
    return token.get("content") if isinstance(token, dict) else token
