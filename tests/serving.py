"""Servers of a tiny model, and clients that do as they please."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jax

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.serving import Server, run

# Few programs: those of one row of 16, 24 or 32 tokens.
BATCHING = Batching(token_budget=32, row_lengths=(32,))
NAMES = ("tiny", "other")


def load(directory: Path, **options: Any) -> JinaEmbeddings:
    """Load a model with few programs, on one device unless told otherwise."""
    options = {"mesh": make_mesh(1, jax.devices()[:1]), "batching": BATCHING, **options}
    return JinaEmbeddings.from_pretrained(directory, **options)


@contextlib.contextmanager
def serve(model: JinaEmbeddings, **settings: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """Serve a model; yield the server and a client of it."""
    settings = {"warmup_length": 16, "served_names": NAMES, "drain": 1.0, **settings}
    with run(model, **settings) as server, client_of(server) as client:
        yield server, client


def client_of(server: Server, **options: Any) -> httpx.Client:
    """Return a client of a server; threads may share it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.Client(base_url=server.url, timeout=30, limits=limits, verify=False, **options)


class Reply(NamedTuple):
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection on which anything can be sent."""

    def __init__(self, server: Server, seconds: float = 20.0):
        self.socket = socket.create_connection((server.host, server.port), seconds)
        self._rest = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes | str) -> None:
        self.socket.sendall(content.encode() if isinstance(content, str) else content)

    def post(self, path: str, body: bytes, *headers: str, version: str = "1.1") -> None:
        lines = (f"POST {path} HTTP/{version}", "Host: here", f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, *headers, "", ""]).encode() + body)

    def reply(self) -> Reply:
        """Read one reply whose length is announced."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Reply(int(first.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Wait for the end of the connection; what comes before it is dropped."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 16):
                pass
        return True

    def _more(self) -> None:
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._rest += part


def metric(client: httpx.Client, name: str) -> float:
    """Return a number of /metrics, summed over its labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{"))
    )


def is_error(reply: Any) -> bool:
    """Return whether a reply of an error has the one form of errors."""
    body = reply.json if isinstance(reply, Reply) else reply.json()
    error = body["error"]
    status = getattr(reply, "status", getattr(reply, "status_code", 0))
    return (
        400 <= status < 600
        and ("errors" in body) is (status == 422)
        and body["detail"] == error["message"]
        and body["code"] == error["code"]
        and isinstance(body["request_id"], str)
        and error.keys() == {"message", "type", "param", "code"}
    )
