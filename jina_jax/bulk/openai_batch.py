"""OpenAI's batch format: lines of requests to ``/v1/embeddings``, and lines of answers.

A request is {"custom_id", "method": "POST", "url": "/v1/embeddings", "body"}, an answer {"id",
"custom_id", "response": {"status_code", "request_id", "body"}, "error"}, as in OpenAI's reference
(developers.openai.com/api/reference, "The request input object", "The request output object").
Answers are in the order of the requests. Requests that are wrong have answers of their own, for
the file of errors: ``response`` is null, and ``error`` is {"code", "message"}.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jina_jax.checks import check_integer
from jina_jax.data.lines import check_string, json_object, type_name
from jina_jax.nn.pooling import unit

URL = "/v1/embeddings"
MOST_TEXTS = 2048  # of a request, as OpenAI's; their vectors are in memory together
_LONGEST_SHOWN = 100  # characters
_FORMATS = ("float", "base64")
_FIELDS = ("custom_id", "method", "url", "body")
_BODY = ("input", "model", "dimensions", "encoding_format", "task", "user")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What requests may ask for.

    Attributes:
      dim: most dimensions, and those of a request that names none.
      tasks: adapters of the model.
      task: adapter of requests that name none.
      models: names that requests may have for the model; empty for any.
    """

    dim: int
    tasks: tuple[str, ...] = ()
    task: str | None = None
    models: tuple[str, ...] = ()


class BatchRequest(NamedTuple):
    """A request.

    Attributes:
      row: where its line is in the input.
      custom_id: the user's name for it.
      texts: to be encoded.
      model: as the request names it.
      task: adapter; None for the base model.
      dim: dimension of its vectors.
      encoding_format: "float" or "base64".
    """

    row: int
    custom_id: str
    texts: tuple[str, ...]
    model: str
    task: str | None
    dim: int
    encoding_format: str


class BadRequest(NamedTuple):
    """A request that is wrong.

    Attributes:
      row: where its line is in the input.
      custom_id: None if it has none.
      code: for programs.
      message: for people; names the field.
    """

    row: int
    custom_id: str | None
    code: str
    message: str


class _RequestError(ValueError):
    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def read_batch(
    lines: Iterable[tuple[int, str]], rules: Rules, seen: set[str]
) -> tuple[list[BatchRequest], list[BadRequest]]:
    """Read lines of requests.

    Args:
      lines: (row, line); blank lines are none.
      rules: what they may ask for.
      seen: custom_ids of the lines before; those of these lines are added.

    Returns:
      the requests, and those that are wrong: also each whose custom_id was there before.
    """
    requests: list[BatchRequest] = []
    bad: list[BadRequest] = []
    for row, line in lines:
        if not line.strip():
            continue
        custom_id = None
        try:
            values = _parse(line)
            custom_id = _custom_id(values)
            if custom_id in seen:
                message = f"custom_id: expected each once, got {_shown(custom_id)} again"
                raise _RequestError("duplicate_custom_id", message)
            seen.add(custom_id)
            requests.append(_request(row, custom_id, values, rules))
        except ValueError as error:
            code = error.code if isinstance(error, _RequestError) else "invalid_request"
            bad.append(BadRequest(row, custom_id, code, str(error)))
    return requests, bad


def write_batch(
    request: BatchRequest, vectors: np.ndarray, tokens: int, *, normalize: bool = True
) -> bytes:
    """Return the line of an answer.

    Args:
      request: as ``read_batch`` returns it.
      vectors: of its texts, complete, float32 (texts, D).
      tokens: of all its texts.
      normalize: scale vectors to unit length, after they are cut to the request's dimension.

    Raises:
      ValueError: if the vectors are of another shape, or not finite, which is no JSON.
    """
    if vectors.ndim != 2 or len(vectors) != len(request.texts) or vectors.shape[1] < request.dim:
        wanted = f"({len(request.texts)}, at least {request.dim})"
        raise ValueError(f"vectors: expected {wanted}, got {vectors.shape}")
    vectors = np.ascontiguousarray(vectors[:, : request.dim], np.float32)
    vectors = unit(vectors) if normalize else vectors
    if not np.isfinite(vectors).all():
        raise ValueError("its vector is not finite")
    as_json = _floats if request.encoding_format == "float" else _base64
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{own}}}'
        for index, own in enumerate(as_json(vectors))
    )
    usage = _json({"prompt_tokens": tokens, "total_tokens": tokens})
    digest = _digest(request.custom_id)
    body = f'{{"object":"list","data":[{data}],"model":{_json(request.model)},"usage":{usage}}}'
    response = f'{{"status_code":200,"request_id":"req_{digest[24:48]}","body":{body}}}'
    head = f'"id":"batch_req_{digest[:24]}","custom_id":{_json(request.custom_id)}'
    return f'{{{head},"response":{response},"error":null}}\n'.encode()


def write_bad(bad: BadRequest) -> bytes:
    """Return the line of the answer to a request that is wrong."""
    line = {
        "id": f"batch_req_{_digest(f'{bad.row} {bad.custom_id}')[:24]}",
        "custom_id": bad.custom_id,
        "response": None,
        "error": {"code": bad.code, "message": bad.message},
    }
    return f"{_json(line)}\n".encode()


# ------------------------------------------------------------ requests


def _parse(line: str) -> dict[str, Any]:
    try:
        return json_object(line)
    except ValueError as error:
        raise _RequestError("invalid_json_line", str(error)) from None


def _custom_id(values: dict[str, Any]) -> str:
    if "custom_id" not in values:
        raise ValueError("custom_id: expected a text, got no such field")
    custom_id = check_string(values["custom_id"], "custom_id")
    if not custom_id:
        raise ValueError("custom_id: expected a text, got an empty one")
    return custom_id


def _request(row: int, custom_id: str, values: dict[str, Any], rules: Rules) -> BatchRequest:
    _check_fields("", values, _FIELDS)
    for name, wanted, code in (("method", "POST", "invalid_request"), ("url", URL, "url_mismatch")):
        if values.get(name) != wanted:
            raise _RequestError(
                code, f"{name}: expected {wanted!r}, got {_shown(values.get(name))}"
            )
    body = values.get("body")
    if not isinstance(body, dict):
        raise ValueError(f"body: expected a JSON object, got {type_name(body)}")
    _check_fields("body.", body, _BODY)
    if body.get("user") is not None:  # read, and not used
        check_string(body["user"], "body.user")
    return BatchRequest(
        row,
        custom_id,
        _texts(body.get("input")),
        _model(body.get("model"), rules),
        _task(body.get("task"), rules),
        _dim(body.get("dimensions"), rules),
        _format(body.get("encoding_format")),
    )


def _check_fields(prefix: str, values: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in values:
        if name not in known:
            expected = ", ".join(f"{prefix}{own}" for own in known)
            raise ValueError(f"{_shown(prefix + name)}: unknown field; expected {expected}")


def _shown(value: Any) -> str:
    """Return a value as Python writes it, which is Unicode, and not its whole length."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _texts(given: Any) -> tuple[str, ...]:
    texts = given if isinstance(given, list) else [given]
    if not texts or len(texts) > MOST_TEXTS:
        raise ValueError(f"body.input: expected 1 to {MOST_TEXTS:,} texts, got {len(texts):,}")
    first = texts[0]
    if isinstance(given, list) and isinstance(first, int | list) and not isinstance(first, bool):
        raise ValueError(
            "body.input: expected a text or a list of texts, got token ids; those of another "
            "tokenizer mean nothing here"
        )
    named = isinstance(given, list)
    return tuple(
        check_string(text, f"body.input[{i}]" if named else "body.input")
        for i, text in enumerate(texts)
    )


def _model(given: Any, rules: Rules) -> str:
    model = check_string(given, "body.model")
    if rules.models and model not in rules.models:
        expected = ", ".join(map(repr, rules.models))
        raise _RequestError(
            "model_not_found", f"body.model: expected one of {expected}, got {_shown(model)}"
        )
    return model


def _task(given: Any, rules: Rules) -> str | None:
    if given is None:
        return rules.task
    if given not in rules.tasks:
        expected = ", ".join(map(repr, rules.tasks)) or "none, as the model has no adapters"
        raise ValueError(f"body.task: expected one of {expected}, got {_shown(given)}")
    return given


def _dim(given: Any, rules: Rules) -> int:
    return rules.dim if given is None else check_integer("body.dimensions", given, 1, rules.dim)


def _format(given: Any) -> str:
    if given is not None and given not in _FORMATS:
        raise ValueError(f"body.encoding_format: expected 'float' or 'base64', got {_shown(given)}")
    return given or _FORMATS[0]


# ------------------------------------------------------------ answers


def _floats(vectors: np.ndarray) -> list[str]:
    """Return vectors as lists in JSON: the shortest decimals that give each float32 back."""
    count, dim = vectors.shape
    decimals = pa.array(vectors.reshape(-1)).cast(pa.string())
    starts = pa.array(np.arange(count + 1) * dim, pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(starts, decimals), ",")
    return [f"[{own}]" for own in joined.to_pylist()]


def _base64(vectors: np.ndarray) -> list[str]:
    """Return vectors as strings in JSON: little-endian float32 in base64."""
    return [f'"{base64.b64encode(own).decode()}"' for own in vectors.astype("<f4")]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(text: str) -> str:
    """Return hexadecimal digits for ids: the same for the same request."""
    return hashlib.sha256(text.encode()).hexdigest()
