"""Bodies of requests: their fields, read strictly, and what was not understood, by name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from jina_jax.serving.errors import ApiError, invalid

EmbeddingType = Literal["float", "base64", "binary", "ubinary"]
EMBEDDING_TYPES: tuple[str, ...] = get_args(EmbeddingType)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_PLACE = re.compile(r"(.*?) - at `\$\.?([^`]*)`")
_Body = TypeVar("_Body", bound=msgspec.Struct)


def _says(description: str) -> msgspec.Meta:
    """Describe a field in OpenAPI, and on the page /docs."""
    return msgspec.Meta(description=description)


class Document(msgspec.Struct):
    """A text as an object, as Jina's clients may send it."""

    text: str


Input = str | Document
Inputs = Input | list[Input | int | list[int]]
Types = EmbeddingType | list[EmbeddingType]
Tasks = str | list[str | None]

_TEXTS = _says("A text, or a list of texts. Token ids are refused: send texts.")
_TASK = _says("A task for all texts, or a list with one task per text (null: the base model).")
_PROMPT = _says("Name of a prompt of the model, in place of the task's.")
_DIMENSIONS = _says("Return the first values only, from 1 to the model's dimension (default).")
_TRUNCATE = _says("Cut texts that are too long at their ends, instead of refusing them (400).")
_MODEL = _says("One of GET /v1/models; a task may follow: NAME/TASK. Default: the served model.")
_SAME_TYPES = _says("The same as embedding_type.")


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings: the fields of Jina's API, OpenAI's, and our own."""

    input: Annotated[Inputs, _TEXTS]
    model: Annotated[str | None, _MODEL] = None
    task: Annotated[Tasks | None, _TASK] = None
    prompt_name: Annotated[str | None, _PROMPT] = None
    dimensions: Annotated[int | None, _DIMENSIONS] = None
    late_chunking: Annotated[
        bool | None, _says("The texts are chunks of one text, which is their context.")
    ] = None
    embedding_type: Annotated[
        Types | None, _says("float (default), base64, binary or ubinary; several as a list.")
    ] = None
    encoding_type: Annotated[Types | None, _SAME_TYPES] = None
    encoding_format: Annotated[EmbeddingType | None, _SAME_TYPES] = None
    normalized: Annotated[bool | None, _says("Vectors of length 1 (default), or not.")] = None
    truncate: Annotated[bool | None, _TRUNCATE] = None
    long_text: Annotated[
        Literal["truncate", "windows"] | None,
        _says("Cut texts that are too long, or encode them in windows that overlap."),
    ] = None
    user: Annotated[str | None, _says("Read, and not used.")] = None

    def __post_init__(self) -> None:
        self.user = None  # however long it is, it would be kept while the texts wait


class ClassifyBody(msgspec.Struct, kw_only=True):
    """POST /v1/classify, zero-shot."""

    input: Annotated[Inputs, _says("A text, or a list of at most 512 texts.")]
    labels: Annotated[
        list[str] | dict[str, list[str]], _says("Labels, or groups of labels by their names.")
    ]
    model: Annotated[str | None, _MODEL] = None
    classifier_id: Annotated[str | None, _says("Refused: only zero-shot is served.")] = None


class EmbedBody(msgspec.Struct, kw_only=True):
    """POST /embed and /embed_all, as text-embeddings-inference has them."""

    inputs: Annotated[str | list[str | int | list[int]], _TEXTS]
    normalize: Annotated[
        bool | None, _says("Vectors of length 1 (default of /embed; refused by /embed_all).")
    ] = None
    truncate: Annotated[bool | None, _TRUNCATE] = None
    truncation_direction: Annotated[
        Literal["Left", "Right", "left", "right"] | None, _says("Right only.")
    ] = None
    prompt_name: Annotated[
        str | None, _says("Name of a prompt, or a task, for clients without a field for it.")
    ] = None
    dimensions: Annotated[int | None, _DIMENSIONS] = None
    task: Annotated[Tasks | None, _TASK] = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize, as text-embeddings-inference has it."""

    inputs: Annotated[str | list[str], _says("A text, or a list of texts.")]
    add_special_tokens: Annotated[bool | None, _says("With <s> and </s> (default).")] = None
    prompt_name: Annotated[str | None, _says("Name of a prompt that is put first.")] = None


class DecodeBody(msgspec.Struct, kw_only=True):
    """POST /decode, as text-embeddings-inference has it."""

    ids: Annotated[list[int | list[int]], _says("Token ids of a text, or a list per text.")]
    skip_special_tokens: Annotated[bool | None, _says("Without <s>, </s>, … (default).")] = None


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
