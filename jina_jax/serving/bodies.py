"""Bodies of requests: their fields, read strictly, and what was not understood, by name."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, TypeVar, get_args

import msgspec

from jina_jax.serving.errors import ApiError, invalid

EmbeddingType = Literal["float", "base64", "binary", "ubinary"]
EMBEDDING_TYPES: tuple[str, ...] = get_args(EmbeddingType)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_PLACE = re.compile(r"(.*?) - at `\$\.?([^`]*)`")
_Body = TypeVar("_Body", bound=msgspec.Struct)


class Document(msgspec.Struct):
    """A text as an object, as Jina's clients may send it."""

    text: str


Input = str | Document
Inputs = Input | list[Input | int | list[int]]


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings: the fields of Jina's API, OpenAI's, and our own."""

    input: Inputs
    model: str | None = None
    task: str | list[str | None] | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    late_chunking: bool | None = None
    embedding_type: EmbeddingType | list[EmbeddingType] | None = None
    encoding_type: EmbeddingType | list[EmbeddingType] | None = None
    encoding_format: EmbeddingType | None = None
    normalized: bool | None = None
    truncate: bool | None = None
    long_text: Literal["truncate", "windows"] | None = None
    user: str | None = None


class ClassifyBody(msgspec.Struct, kw_only=True):
    """POST /v1/classify, zero-shot."""

    input: Inputs
    labels: list[str] | dict[str, list[str]]
    model: str | None = None
    classifier_id: str | None = None


class EmbedBody(msgspec.Struct, kw_only=True):
    """POST /embed and /embed_all, as text-embeddings-inference has them."""

    inputs: str | list[str | int | list[int]]
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    task: str | list[str | None] | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize, as text-embeddings-inference has it."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeBody(msgspec.Struct, kw_only=True):
    """POST /decode, as text-embeddings-inference has it."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None


class Read(msgspec.Struct):
    """A body as it was read.

    Attributes:
      body: the fields.
      ignored: names of fields that are not known.
      replaced: whether lone surrogates were replaced by U+FFFD.
    """

    body: Any
    ignored: list[str]
    replaced: bool


def read(content: bytes, kind: type[_Body], *, strict: bool) -> Read:
    """Read a JSON body.

    Args:
      content: UTF-8.
      kind: the struct of the route.
      strict: refuse unknown fields.

    Raises:
      ApiError: 400 for what is not JSON, 422 for a field of another type, naming it.
    """
    found, replaced = _parse(content)
    if not isinstance(found, dict):
        raise ApiError(422, f"body: expected a JSON object, got {_json_name(found)}", "body")
    ignored = [name for name in found if name not in kind.__struct_fields__]
    if ignored and strict:
        raise invalid(ignored[0], f"unknown; expected one of {', '.join(kind.__struct_fields__)}")
    try:
        return Read(msgspec.convert(found, kind), ignored, replaced)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _parse(content: bytes) -> tuple[Any, bool]:
    try:
        try:
            return msgspec.json.decode(content), False
        except msgspec.DecodeError:
            if not _SURROGATE.search(content):
                raise
            text = content.decode()
            return _replace(json.loads(text, parse_constant=_refuse_constant)), True
    except UnicodeDecodeError as error:
        reason = f"byte 0x{content[error.start]:02x} at {error.start} is not UTF-8"
    except RecursionError:
        reason = "nested too deeply"
    except (msgspec.DecodeError, ValueError) as error:
        reason = str(error)
    raise ApiError(400, f"body: expected JSON in UTF-8: {reason}", "body", "INPUT_INVALID_JSON")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _replace(value: Any) -> Any:
    """Replace lone surrogates, which no tokenizer can take, by U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace(own) for own in value]
    if isinstance(value, dict):
        return {_replace(name): _replace(own) for name, own in value.items()}
    return value


def _refusal(message: str) -> ApiError:
    """Turn a message of msgspec, "Expected … - at `$.field`", into ours."""
    if match := _PLACE.fullmatch(message):
        rule, field = match[1], match[2] or "body"
    else:
        rule, field = message, "body"
        if missing := re.search(r"missing required field `(\w+)`", message):
            return invalid(missing[1], "missing; it is required")
    return invalid(field, rule[:1].lower() + rule[1:])


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
