"""Requests and replies: bodies within bounds, one form of errors, keys, ids and counts."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jina_jax.serving.bodies import read
from jina_jax.serving.errors import ApiError

if TYPE_CHECKING:
    from jina_jax.serving.service import Service
    from jina_jax.serving.state import State

_LOGGER = logging.getLogger("jina_jax.serving")
_ECHOED = ("traceparent",)
_MOST_CHARACTERS_OF_AN_ID = 128
_MOST_IGNORED_FIELDS = 20  # that are named
_Body = TypeVar("_Body", bound=msgspec.Struct)


class Pieces(Response):
    """A reply that is made and sent piece by piece, while others have their turns.

    Args:
      content: pieces of the body, made when they are sent.
      headers: names and values.
      seconds: in which the client must take each piece.
    """

    def __init__(self, content: Iterable[bytes], headers: dict[str, str], seconds: float):
        self._content, self._seconds = content, seconds
        self.status_code, self.background, self.media_type = 200, None, "application/json"
        self.init_headers(headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        for piece in self._content:
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            async with asyncio.timeout(self._seconds):
                await send(message)
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Call:
    """One request to a route that encodes.

    Attributes:
      request: of Starlette.
      service: the model.
      id: of the request, the client's or our own.
    """

    def __init__(self, request: Request, service: Service, request_id: str):
        self.request, self.service, self.id = request, service, request_id
        self._headers = {"x-request-id": request_id}
        self.log: dict[str, Any] = {}

    @property
    def is_bulk(self) -> bool:
        """Whether the client lets others pass."""
        return self.request.headers.get("x-priority", "").lower() == "bulk"

    async def read(self, kind: type[_Body]) -> _Body:
        """Read the body.

        Raises:
          ApiError: see ``read_bytes`` and ``jina_jax.serving.bodies.read``.
        """
        settings = self.service.settings
        content = await read_bytes(self.request, settings.max_body, settings.read_timeout)
        found = read(content, kind, strict=settings.strict)
        if found.replaced:
            self.service.metrics.replaced.inc()
        self.ignore(*found.ignored)
        return found.body

    def ignore(self, *fields: str) -> None:
        """Name fields that have no effect, in a header and the log."""
        ignored = [*self.log.get("ignored", []), *fields][:_MOST_IGNORED_FIELDS]
        if ignored:
            names = ", ".join(ignored).encode("ascii", "backslashreplace").decode()
            self._headers["x-ignored-fields"] = "".join(filter(str.isprintable, names))[:500]
            self.log["ignored"] = ignored

    def count(self, *, texts: int, tokens: int, truncated: int) -> None:
        """Note what was encoded, for headers and the log."""
        self.log |= {"texts": texts, "tokens": tokens}
        if truncated:
            self._headers["x-truncated"] = str(truncated)

    def reply(self, head: bytes, content: Iterable[bytes], tail: bytes) -> Response:
        """Return a reply of a head, pieces and a tail; in one piece if it is short."""
        pieces = iter(content)
        first = head + next(pieces, b"")
        second = next(pieces, None)
        if second is None:
            return Response(first + tail, 200, self._headers, "application/json")

        def rest() -> Iterable[bytes]:
            yield first
            yield second
            yield from pieces
            yield tail

        return Pieces(rest(), self._headers, self.service.settings.read_timeout)

    def json(self, value: Any) -> Response:
        """Return a small reply."""
        return Response(orjson.dumps(value), 200, self._headers, "application/json")


async def read_bytes(request: Request, most: int, seconds: float) -> bytes:
    """Read a body of at most ``most`` bytes, within ``seconds``.

    Raises:
      ApiError: 408 for one that is slower, 413 for one that is larger, 415 for a compressed one.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"content-encoding: expected none, got {encoding!r}")
    announced = request.headers.get("content-length", "")
    too_large = ApiError(413, f"body: expected at most {most} bytes")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"body: expected within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(499, "the client left") from None
    return b"".join(parts)


def endpoint(
    state: State, handle: Callable[[Call], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint of Starlette for a route that encodes: keys, readiness, counts."""

    async def serve(request: Request) -> Response:
        start, route = time.perf_counter(), request.scope["path"]
        call = None
        request_id = id_of(request)
        try:
            check_key(request, state.settings.api_keys)
            call = Call(request, state.service(), request_id)
            response = await handle(call)
        except ApiError as error:
            response = error_response(error, request_id)
        except asyncio.CancelledError:
            raise
        except Exception:
            _LOGGER.exception("request %s failed", request_id)
            response = error_response(ApiError(500, "internal error"), request_id)
        seconds = time.perf_counter() - start
        _echo(request, response)
        state.metrics.requests.labels(route, response.status_code).inc()
        state.metrics.request_seconds.labels(route).observe(seconds)
        if state.log_requests:
            _log(call, request_id, route, response.status_code, seconds)
        return response

    return serve


def error_response(error: ApiError, request_id: str) -> Response:
    """Return an error as a reply."""
    headers = {"x-request-id": request_id, **error.headers}
    return Response(orjson.dumps(error.body(request_id)), error.status, headers, "application/json")


def id_of(request: Request) -> str:
    """Return the client's id of a request, or a new one."""
    given = request.headers.get("x-request-id", "")
    if given and given.isascii() and given.isprintable():
        return given[:_MOST_CHARACTERS_OF_AN_ID]
    return uuid.uuid4().hex


def check_key(request: Request, keys: tuple[str, ...]) -> None:
    """Refuse a request without one of the keys, in a time that does not depend on them.

    Raises:
      ApiError: 401.
    """
    if not keys:
        return
    given = request.headers.get("authorization")
    if given is None:
        raise _unauthorized("missing; expected 'Bearer KEY'", "AUTH_MISSING_API_KEY")
    scheme, _, key = given.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("expected 'Bearer KEY'", "AUTH_INVALID_FORMAT")
    own = key.strip().encode()
    if not any([hmac.compare_digest(own, known.encode()) for known in keys]):
        raise _unauthorized("a key that is not known", "AUTH_INVALID_API_KEY")


def _unauthorized(message: str, code: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, f"authorization: {message}", None, code, headers)


def _echo(request: Request, response: Response) -> None:
    for name in _ECHOED:
        if value := request.headers.get(name):
            response.headers[name] = value


def _log(call: Call | None, request_id: str, route: str, status: int, seconds: float) -> None:
    """Log a request as a line of JSON, without its texts."""
    row = {"request_id": request_id, "route": route, "status": status, "seconds": round(seconds, 4)}
    _LOGGER.info(json.dumps(row | (call.log if call else {})))
