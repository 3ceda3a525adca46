"""The description of the routes, in OpenAPI 3.1, from the structs of their bodies."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from jina_jax import __version__
from jina_jax.serving import bodies
from jina_jax.serving.settings import Settings


class _Post(NamedTuple):
    """A route that takes a body: its struct, the route in words, its reply, a body to try."""

    kind: type[msgspec.Struct]
    summary: str
    reply: str
    example: dict[str, Any]


_POSTS = {
    "/v1/embeddings": _Post(
        bodies.EmbeddingsBody,
        "Embed texts, as Jina's and OpenAI's APIs do; also at /embeddings.",
        '{"model": …, "object": "list", "usage": {"total_tokens": …, "prompt_tokens": …}, '
        '"data": [{"object": "embedding", "index": 0, "embedding": […]}, …]}',
        {
            "input": ["Where is my parcel?", "The parcel is at the door."],
            "task": ["retrieval.query", "retrieval.passage"],
            "dimensions": 64,
        },
    ),
    "/v1/classify": _Post(
        bodies.ClassifyBody,
        "Classify texts by labels, zero-shot: the softmax of their cosines.",
        '{"model": …, "object": "list", "usage": …, "data": [{"object": "classification", '
        '"index": 0, "prediction": …, "score": …, "predictions": [{"label": …, "score": …}, …]}, '
        "…]}; with groups, predictions per group",
        {"input": ["The striker scored twice."], "labels": ["sport", "politics", "weather"]},
    ),
    "/embed": _Post(
        bodies.EmbedBody,
        "Embed texts, as text-embeddings-inference does; also at POST /.",
        "A list of vectors.",
        {"inputs": ["Where is my parcel?"], "task": "retrieval.query"},
    ),
    "/embed_all": _Post(
        bodies.EmbedBody,
        "Return the vectors of all tokens, which are not normalised.",
        "For each text, a list of vectors.",
        {"inputs": ["Where is my parcel?"], "dimensions": 8},
    ),
    "/tokenize": _Post(
        bodies.TokenizeBody,
        "Return the tokens of texts.",
        'For each text, a list of {"id": …, "text": …, "special": …, "start": …, "stop": …}: '
        "start and stop count characters.",
        {"inputs": ["Where is my parcel?"]},
    ),
    "/decode": _Post(
        bodies.DecodeBody,
        "Return the texts of token ids.",
        "A list of texts.",
        {"ids": [[10, 20, 30]]},
    ),
}
_GETS = {
    "/v1/models": "Names for the field model: the model's, and with each task behind it.",
    "/info": "The model and the server's bounds.",
    "/live": "200 as long as the server runs; also at /ping. Needs no key.",
    "/ready": "200 when requests are taken, else 503; also at /health. Needs no key.",
    "/metrics": "Numbers for Prometheus.",
}
_STATUSES = {
    400: "The body is not JSON, the model unknown, a text too long, or there are too many.",
    401: "The key is missing or unknown; expected the header authorization: Bearer KEY.",
    404: "There is no such route or model.",
    405: "The route takes another method.",
    408: "The body did not arrive in time.",
    413: "The body has too many bytes, or its texts too many tokens.",
    415: "The body is compressed.",
    422: "A field has a value that cannot be taken; the error names it.",
    429: "Too much waits. Try again after the seconds in Retry-After.",
    431: "The request's head has too many bytes.",
    500: "The server has a fault; its log has the request's id.",
    503: "The model is being loaded, the server ends, or its device is dead.",
    504: "There was no result in time.",
}
_OF_GETS = (401, 404, 405, 500, 503)


def describe(settings: Settings) -> dict[str, Any]:
    """Return the description of a server."""
    kinds = list(dict.fromkeys(own.kind for own in _POSTS.values()))
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"post": _post(own, by_kind[own.kind])} for path, own in _POSTS.items()
    }
    paths |= {path: {"get": _operation(own, "OK", _OF_GETS)} for path, own in _GETS.items()}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"{settings.served_names[0]} by jina_jax", "version": __version__},
        "paths": paths,
        "components": {"schemas": components | {"Error": _error()}},
    }
    if settings.api_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _post(own: _Post, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": own.example}}
    body = {"required": True, "content": content}
    return {**_operation(own.summary, own.reply, tuple(_STATUSES)), "requestBody": body}


def _operation(summary: str, reply: str, statuses: tuple[int, ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {str(own): {"description": _STATUSES[own], "content": error} for own in statuses}
    return {"summary": summary, "responses": {"200": {"description": reply}, **refused}}


def _error() -> dict[str, Any]:
    """Return the schema of errors: one body that clients of every kind read."""
    text = {"type": "string"}
    field = {"type": ["string", "null"], "description": "The field at fault."}
    fields = {"message": text, "type": text, "param": field, "code": text}
    error = {"type": "object", "properties": fields, "description": "For OpenAI's and TEI's."}
    return {
        "type": "object",
        "properties": {
            "detail": text | {"description": "The error in words, for Jina's clients."},
            "code": text | {"description": "The error's name, such as INPUT_INVALID."},
            "request_id": text | {"description": "The header x-request-id."},
            "error": error,
            "errors": {"type": "array", "description": "Status 422 only: the field and its error."},
        },
        "required": ["detail", "code", "request_id", "error"],
    }
