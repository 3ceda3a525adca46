"""Requests and replies: bodies within bounds, one form of errors, keys, ids and counts.

Routes that encode are ASGI applications under Starlette's router: a request costs a third of what
it costs through Starlette's own ``Request`` and ``Response``.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import orjson

from jina_jax.serving.bodies import read
from jina_jax.serving.errors import ApiError
from jina_jax.serving.state import Phase

if TYPE_CHECKING:
    from jina_jax.serving.service import Service
    from jina_jax.serving.state import State

_LOGGER = logging.getLogger("jina_jax.serving")
_MOST_CHARACTERS_OF_AN_ID = 128
_MOST_IGNORED_FIELDS = 20  # that are named
_MOST_CHARACTERS_OF_A_FIELD = 100  # that is named
_LEAST_PIECE = 1 << 16  # bytes
_Body = TypeVar("_Body", bound=msgspec.Struct)


class Reply(NamedTuple):
    """A reply in JSON.

    Attributes:
      status: of HTTP.
      headers: names in lower case, and values.
      content: the body; or its pieces, which are made when they are sent, while others have their
        turns in between. The protocol ends connections of clients that do not take them in time.
    """

    status: int
    headers: dict[str, str]
    content: bytes | Iterable[bytes]

    async def send(self, scope: Any, send: Any) -> None:
        """Send it."""
        content = self.content
        if not isinstance(content, bytes) and scope.get("http_version") == "1.0":
            content = b"".join([piece async for piece in _in_turns(content)])  # it has no pieces
        headers = [(b"content-type", b"application/json")]
        headers += [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self.headers.items()]
        if isinstance(content, bytes):
            headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if isinstance(content, bytes):
            await send({"type": "http.response.body", "body": content})
            return
        async for piece in _in_turns(content):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Call:
    """One request to a route that encodes.

    Attributes:
      service: the model.
      receive: of ASGI; once the body was read, its next message says that the client left.
      log: what is logged of the request.
    """

    def __init__(self, service: Service, headers: dict[bytes, bytes], receive: Any, own_id: str):
        self.service, self.receive = service, receive
        self._given, self._headers = headers, {"x-request-id": own_id}
        self.log: dict[str, Any] = {}

    @property
    def is_bulk(self) -> bool:
        """Whether the client lets others pass."""
        return self._given.get(b"x-priority", b"").lower() == b"bulk"

    async def read(self, kind: type[_Body]) -> _Body:
        """Read the body.

        Raises:
          ApiError: see ``Reader.read`` and ``jina_jax.serving.bodies.read``.
        """
        content = await self.service.reader.read(self._given, self.receive)
        found = read(content, kind, strict=self.service.settings.strict)
        if found.replaced:
            self.service.metrics.replaced.inc()
        self.ignore(*found.ignored)
        return found.body

    def ignore(self, *fields: str) -> None:
        """Name fields that have no effect, in a header and the log."""
        named = (own[:_MOST_CHARACTERS_OF_A_FIELD] for own in fields[:_MOST_IGNORED_FIELDS])
        ignored = [*self.log.get("ignored", []), *named][:_MOST_IGNORED_FIELDS]
        if ignored:
            names = ", ".join(ignored).encode("ascii", "backslashreplace").decode()
            self._headers["x-ignored-fields"] = "".join(filter(str.isprintable, names))[:500]
            self.log["ignored"] = ignored

    def count(self, *, texts: int, tokens: int, truncated: int) -> None:
        """Note what was encoded, for headers and the log."""
        self.log |= {"texts": texts, "tokens": tokens}
        if truncated:
            self._headers["x-truncated"] = str(truncated)

    def reply(self, head: bytes, content: Iterable[bytes], tail: bytes) -> Reply:
        """Return a reply of a head, pieces and a tail; in one piece if it is short."""
        pieces = _joined(itertools.chain([head], content))
        first, second = next(pieces), next(pieces, None)
        if second is None:
            return Reply(200, self._headers, first + tail)
        return Reply(200, self._headers, itertools.chain([first, second], pieces, [tail]))

    def json(self, value: Any) -> Reply:
        """Return a small reply."""
        return Reply(200, self._headers, orjson.dumps(value))


class Endpoint:
    """A route that encodes: checks the key and readiness, counts, and answers errors.

    Args:
      state: what the routes share.
      path: of the route.
      handle: from a call to its reply.
    """

    def __init__(self, state: State, path: str, handle: Callable[[Call], Awaitable[Reply]]):
        self._state, self._path, self._handle = state, path, handle
        self._seconds = state.metrics.request_seconds.labels(path)
        self._succeeded = state.metrics.requests.labels(path, 200)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start, call = time.perf_counter(), None
        headers = dict(scope["headers"])
        own_id = id_of(headers)
        try:
            check_key(headers, self._state.settings.api_keys)
            call = Call(self._state.service(), headers, receive, own_id)
            reply = await self._handle(call)
        except ApiError as error:
            reply = error_reply(error, own_id)
        except asyncio.CancelledError:
            if self._state.phase is not Phase.DRAINING:
                raise
            reply = error_reply(ApiError(503, self._state.phase.value), own_id)
        except Exception:
            _LOGGER.exception("request %s failed", own_id)
            reply = error_reply(ApiError(500, "internal error"), own_id)
        if traceparent := headers.get(b"traceparent"):
            reply.headers["traceparent"] = traceparent.decode("latin-1")
        self._count(reply.status, time.perf_counter() - start, call, own_id)
        await reply.send(scope, send)

    def _count(self, status: int, seconds: float, call: Call | None, own_id: str) -> None:
        if status == 200:
            self._succeeded.inc()
        else:
            self._state.metrics.requests.labels(self._path, status).inc()
        self._seconds.observe(seconds)
        if self._state.log_requests:
            row = {"request_id": own_id, "route": self._path, "status": status}
            row |= {"seconds": round(seconds, 4), **(call.log if call else {})}
            _LOGGER.info(json.dumps(row))


async def _in_turns(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield pieces; others have their turns between them."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces, short ones joined."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _LEAST_PIECE:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def error_reply(error: ApiError, request_id: str) -> Reply:
    """Return an error as a reply."""
    headers = {"x-request-id": request_id, **error.headers}
    return Reply(error.status, headers, orjson.dumps(error.body(request_id)))


def id_of(headers: dict[bytes, bytes]) -> str:
    """Return the client's id of a request, or a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if given and given.isascii() and given.isprintable():
        return given[:_MOST_CHARACTERS_OF_AN_ID]
    return os.urandom(16).hex()


def check_key(headers: dict[bytes, bytes], keys: tuple[str, ...]) -> None:
    """Refuse a request without one of the keys, in a time that does not depend on them.

    Raises:
      ApiError: 401.
    """
    if not keys:
        return
    given = headers.get(b"authorization")
    if given is None:
        raise _unauthorized("missing; expected 'Bearer KEY'", "AUTH_MISSING_API_KEY")
    scheme, _, key = given.partition(b" ")
    if scheme.lower() != b"bearer":
        raise _unauthorized("expected 'Bearer KEY'", "AUTH_INVALID_FORMAT")
    own = key.strip()
    if not sum(hmac.compare_digest(own, known.encode()) for known in keys):  # each, always
        raise _unauthorized("a key that is not known", "AUTH_INVALID_API_KEY")


def _unauthorized(message: str, code: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, f"authorization: {message}", None, code, headers)
