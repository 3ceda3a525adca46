"""Bodies of requests as bytes, within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from jina_jax.serving.errors import ApiError, left_error
from jina_jax.serving.settings import Settings


class Reader:
    """Reads bodies.

    Args:
      settings: bounds of each body, of all that are being read, and of time.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._bytes = 0  # of all bodies that are being read

    async def read(self, headers: dict[bytes, bytes], receive: Any) -> bytes:
        """Read a body.

        Raises:
          ApiError: 408 for one that is slower than it may be, 413 for one that is larger, 415 for a
            compressed one, 429 beside too many others, 499 if the client left.
        """
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            got = encoding.decode("latin-1")
            raise ApiError(415, f"content-encoding: expected none, got {got!r}")
        announced = headers.get(b"content-length", b"")
        if announced.isdigit():
            self._check_size(int(announced))
        seconds = self._settings.read_timeout
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(seconds):
                await self._read(receive, parts)
        except TimeoutError:
            raise ApiError(408, f"body: expected within {seconds:g} seconds") from None
        finally:
            self._bytes -= sum(map(len, parts))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read(self, receive: Any, parts: list[bytes]) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise left_error()
            part = message.get("body", b"")
            size += len(part)
            self._check_size(size)
            self._check_all(len(part))
            parts.append(part)
            self._bytes += len(part)
            more = message.get("more_body", False)

    def _check_size(self, size: int) -> None:
        most = self._settings.max_body
        if size > most:
            raise ApiError(413, f"body: expected at most {most} bytes")

    def _check_all(self, size: int) -> None:
        most = self._settings.max_reading
        if self._bytes and self._bytes + size > most:
            message = f"body: expected at most {most} bytes of all bodies that are being sent"
            raise ApiError(429, message, headers={"Retry-After": "1"})
