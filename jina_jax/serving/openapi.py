"""The description of the routes, in OpenAPI 3.1, from the structs of their bodies."""

from __future__ import annotations

from typing import Any

import msgspec

from jina_jax import __version__
from jina_jax.serving import bodies
from jina_jax.serving.settings import Settings

_ROUTES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/v1/embeddings": (bodies.EmbeddingsBody, "Embed texts, as Jina's and OpenAI's APIs do."),
    "/v1/classify": (bodies.ClassifyBody, "Classify texts by labels, zero-shot."),
    "/embed": (bodies.EmbedBody, "Embed texts, as text-embeddings-inference does."),
    "/embed_all": (bodies.EmbedBody, "Return the vectors of all tokens."),
    "/tokenize": (bodies.TokenizeBody, "Return the tokens of texts."),
    "/decode": (bodies.DecodeBody, "Return the texts of token ids."),
}
_GETS = {
    "/v1/models": "Names for the field model: the model's, and with a task behind it.",
    "/info": "The model and the server's bounds.",
    "/live": "200 as long as the server runs.",
    "/ready": "200 when requests are taken, else 503.",
    "/metrics": "Numbers for Prometheus.",
}


def describe(settings: Settings) -> dict[str, Any]:
    """Return the description of a server."""
    kinds = list(dict.fromkeys(kind for kind, _ in _ROUTES.values()))
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"post": _post(summary, by_kind[kind])} for path, (kind, summary) in _ROUTES.items()
    }
    paths |= {path: {"get": _get(summary)} for path, summary in _GETS.items()}
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


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {**_get(summary), "requestBody": body}


def _get(summary: str) -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    refused = {"description": "An error.", "content": {"application/json": error}}
    return {"summary": summary, "responses": {"200": {"description": "OK"}, "default": refused}}


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    fields = {"message": text, "type": text, "param": {"type": ["string", "null"]}, "code": text}
    return {
        "type": "object",
        "properties": {
            "detail": text,
            "code": text,
            "request_id": text,
            "error": {"type": "object", "properties": fields},
        },
        "required": ["detail", "code", "request_id", "error"],
    }
