"""HTTP/1.1 by httptools, with bounds for clients that send slowly, too much, or never read."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from jina_jax.serving.errors import ApiError
from jina_jax.serving.http import id_of

_MOST_OF_A_HEAD = 1 << 16  # bytes
_MOST_THAT_WAIT = 16  # requests behind another one, until no more is read from the connection
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections on which ``seconds`` pass in vain, or whose heads are too long.

    In vain: without a whole head, without the rest of a body that nobody reads as its reply was an
    error, or without room for what is to be sent. The application bounds the bodies that it reads.
    """

    seconds = 30.0
    _timer: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _is_in_message = _is_in_head = _is_too_long = False
    _chunk = _head = _headers = 0  # bytes: just received, of a head, and of its names and values

    @classmethod
    def within(cls, seconds: float) -> type[BoundedProtocol]:
        """Return a protocol that waits so many seconds."""
        return type(cls.__name__, (cls,), {"seconds": seconds})

    # ------------------------------------------------------------ what is read

    def connection_made(self, transport: Any) -> None:
        self._cycles: deque[RequestResponseCycle] = deque()  # requests without a whole reply
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        for cycle in self._cycles:  # uvicorn reports it to the last one only
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        if self._is_idle:
            # Java's client offers HTTP/2 so, with its first request. The parser would take that for
            # the end of HTTP, and the body for something else.
            data = _UPGRADE.sub(b"\r\nignored:", data)
        super().data_received(data)
        if self._is_in_head:
            self._head += len(data)
            if self._head > _MOST_OF_A_HEAD and not self.transport.is_closing():
                self._is_too_long = True
                self.send_400_response("")
        if self._is_idle and self.timeout_keep_alive_task is None and self._timer is None:
            self._start()  # a line break, or a part of a body, ends uvicorn's own time for idling

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_message = self._is_in_head = True
        self._head, self._headers = -self._chunk, 0  # the chunk may be another message's, mostly
        self._start()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._headers += len(name) + len(value)
        if self._headers > _MOST_OF_A_HEAD:
            self._is_too_long = True
            raise ValueError("too long")  # makes the parser refuse the request

    def on_headers_complete(self) -> None:
        self._stop()
        self._is_in_head = False
        super().on_headers_complete()
        self._cycles.append(self.cycle)
        if len(self.pipeline) < _MOST_THAT_WAIT:
            self.flow.resume_reading()  # else nobody would notice that the client leaves

    def on_message_complete(self) -> None:
        self._stop()
        self._is_in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the form of all errors."""
        error = ApiError(400, "expected a request of HTTP/1.1")
        if self._is_too_long:
            error = ApiError(431, f"expected a head of at most {_MOST_OF_A_HEAD} bytes")
        body = orjson.dumps(error.body(id_of({})))
        head = (
            f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._close()

    # ------------------------------------------------------------ what is written

    def on_response_complete(self) -> None:
        self._cycles.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        elif self._is_in_message and self._is_idle:
            self._start()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # to close would be to wait until the client has read everything

    # ------------------------------------------------------------ time

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way, as far as its reply is concerned."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _start(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self.seconds, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self._is_idle:
            self.transport.abort()
        else:  # nothing is read while a request before it is under way
            self._start()

    def _close(self) -> None:
        """Close once everything was sent, or when that takes too long."""
        self.transport.close()
        self._stop()
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)
