"""Clients for a server under test: HTTP/1.1 on sockets, with as little work as Python allows."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = self._needed = 0
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the future has status and body of its reply."""
        self._reply = asyncio.get_running_loop().create_future()
        self._parts, self._size, self._needed = [], 0, 0
        self.transport.write(request)
        return self._reply

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._needed and self._size < self._needed:
            return
        content = b"".join(self._parts)
        self._parts = [content]
        if not self._needed:
            self._needed = _length(content)
        if self._needed == -1:  # chunked
            if content.endswith(b"0\r\n\r\n"):
                self._finish(content, _unchunked(content.partition(b"\r\n\r\n")[2]))
            self._needed = 0
        elif 0 < self._needed <= self._size:
            self._finish(content, content[-int(_header(content, b"content-length")) :])

    def connection_lost(self, error: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error or ConnectionError("closed"))

    def _finish(self, content: bytes, body: bytes) -> None:
        assert self._reply is not None
        if not self._reply.done():
            self._reply.set_result((int(content[9:12]), body))


def _header(content: bytes, name: bytes) -> bytes:
    head = content.partition(b"\r\n\r\n")[0].lower()
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()


def _length(content: bytes) -> int:
    """Return the bytes of the whole reply; -1 if it is chunked, 0 if its head is not there."""
    head, end, _ = content.partition(b"\r\n\r\n")
    if not end:
        return 0
    length = _header(content, b"content-length")
    return len(head) + 4 + int(length) if length else -1


def _unchunked(body: bytes) -> bytes:
    parts = []
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return b"".join(parts)
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]


def post(body: dict[str, Any], path: str = "/v1/embeddings") -> bytes:
    """Return the bytes of a request."""
    return raw_post(json.dumps(body).encode(), path)


def raw_post(content: bytes, path: str = "/v1/embeddings") -> bytes:
    """Return the bytes of a request with any body."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@dataclasses.dataclass
class Load:
    """What clients measured.

    Attributes:
      seconds: from the first request to the last reply.
      latencies: seconds of each request.
      statuses: of each request.
      bodies: of each reply, in the order of the requests, if they are kept.
    """

    seconds: float
    latencies: list[float]
    statuses: list[int]
    bodies: list[bytes]


def run(coroutine: Any) -> Any:
    """Run a coroutine on uvloop, as the server does."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def connect(url: str) -> Client:
    """Connect to a server."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, parts.hostname, parts.port)
    return client


async def closed_loop(
    url: str, requests: Sequence[bytes], clients: int, *, keep: bool = False
) -> Load:
    """Send requests from so many clients, each of which waits for its reply."""
    connections = [await connect(url) for _ in range(clients)]
    waiting = iter(enumerate(requests))
    latencies = [0.0] * len(requests)
    statuses, bodies = [0] * len(requests), [b""] * len(requests)

    async def work(client: Client) -> None:
        for index, request in waiting:
            begun = time.perf_counter()
            statuses[index], body = await client.send(request)
            latencies[index] = time.perf_counter() - begun
            if keep:
                bodies[index] = body

    start = time.perf_counter()
    await asyncio.gather(*map(work, connections))
    seconds = time.perf_counter() - start
    for client in connections:
        client.transport.close()
    return Load(seconds, latencies, statuses, bodies)


async def beside(
    url: str, request: bytes, clients: int, measure: Callable[[], Any]
) -> tuple[Any, int]:
    """Return what a coroutine measures while clients repeat a request, and their requests."""
    connections = [await connect(url) for _ in range(clients)]
    count, stopped = 0, False

    async def flood(client: Client) -> None:
        nonlocal count
        while not stopped:
            status, _ = await client.send(request)
            count += status == 200

    tasks = [asyncio.create_task(flood(client)) for client in connections]
    found = await measure()
    stopped = True
    for task in tasks:
        task.cancel()
    for client in connections:
        client.transport.close()
    return found, count
