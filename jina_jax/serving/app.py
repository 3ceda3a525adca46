"""The routes of a server, as an ASGI application."""

from __future__ import annotations

import time
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from jina_jax.serving import tei
from jina_jax.serving.classify import classify
from jina_jax.serving.embeddings import embeddings
from jina_jax.serving.errors import ApiError
from jina_jax.serving.http import Endpoint, check_key, error_reply, id_of
from jina_jax.serving.openapi import describe
from jina_jax.serving.state import Phase, State

# Nothing on a page may come from another host, or be sent to one.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)


def make_app(state: State) -> Starlette:
    """Return the application of a server."""
    posts = {
        "/v1/embeddings": embeddings,
        "/embeddings": embeddings,
        "/v1/classify": classify,
        "/embed": tei.embed,
        "/embed_all": tei.embed_all,
        "/tokenize": tei.tokenize,
        "/decode": tei.decode,
    }
    routes = [
        Route(path, Endpoint(state, path, own), methods=["POST"]) for path, own in posts.items()
    ]
    routes += [
        Route("/", Endpoint(state, "/", tei.embed), methods=["POST"]),
        Route("/", _page("page.html"), methods=["GET"]),
        Route("/docs", _page("docs.html"), methods=["GET"]),
        Route("/openapi.json", _openapi(state), methods=["GET"]),
        Route("/info", Endpoint(state, "/info", tei.info), methods=["GET"]),
        Route("/v1/models", _models(state), methods=["GET"]),
        Route("/v1/models/{name:path}", _models(state), methods=["GET"]),
        Route("/live", _live, methods=["GET"]),
        Route("/ping", _live, methods=["GET"]),
        Route("/ready", _ready(state), methods=["GET"]),
        Route("/health", _ready(state), methods=["GET"]),
        Route("/metrics", _metrics(state), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False  # to a host that the client names, for clients that post
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, headers = request.scope["path"], dict(error.headers or {})
    message = f"{request.method} {path}: no such route"
    if error.status_code == 405:
        message = f"{path}: expected {headers.get('Allow', 'another method')}, got {request.method}"
    return _refused(request, ApiError(error.status_code, message, headers=headers))


def _refused(request: Request, error: ApiError) -> Response:
    reply = error_reply(error, id_of(dict(request.headers.raw)))
    return Response(reply.content, reply.status, reply.headers, "application/json")


def _models(state: State) -> Any:
    created = int(time.time())

    async def models(request: Request) -> Response:
        try:
            check_key(dict(request.headers.raw), state.settings.api_keys)
            service = state.service()
            name = request.path_params.get("name")
            names = service.names if name is None else [service.pick_model(name)[0]]
        except ApiError as error:
            if error.code == "INPUT_MODEL_NOT_FOUND":
                error = ApiError(404, error.message, "model")
            return _refused(request, error)
        found = [
            {"id": own, "object": "model", "created": created, "owned_by": "jina_jax"}
            for own in names
        ]
        return JSONResponse({"object": "list", "data": found} if name is None else found[0])

    return models


async def _live(_: Request) -> Response:
    return JSONResponse({"status": "live"})


def _ready(state: State) -> Any:
    async def ready(request: Request) -> Response:
        if state.phase is Phase.READY and state.loaded and state.loaded.scheduler.is_stalled:
            message = f"the device has had no result for {state.settings.stall:g} seconds"
            return _refused(request, ApiError(503, message))
        if state.phase is Phase.READY:
            return JSONResponse({"status": "ready"})
        return _refused(request, ApiError(503, state.phase.value))

    return ready


def _metrics(state: State) -> Any:
    async def metrics(request: Request) -> Response:
        try:
            check_key(dict(request.headers.raw), state.settings.api_keys)
        except ApiError as error:
            return _refused(request, error)
        service = state.loaded
        state.metrics.ready.set(state.phase is Phase.READY)
        state.metrics.waiting_tokens.set(service.scheduler.waiting_tokens if service else 0)
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    return metrics


def _openapi(state: State) -> Any:
    async def openapi(_: Request) -> Response:
        return JSONResponse(describe(state.settings))

    return openapi


def _page(name: str) -> Any:
    text = resources.files("jina_jax.serving").joinpath(name).read_text(encoding="utf-8")
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}

    async def page(_: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return page
