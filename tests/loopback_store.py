"""An object store over HTTP on this machine, in a process of its own, and its fsspec file system.

Jobs of several processes can be killed while they work with it: an object is there as a whole or
not at all, and ``If-None-Match: *`` decides who is first. Use:

  with loopback_store.running(fail_every=10):   # sets $LOOPBACK_STORE for subprocesses, too
    Store("loop://bucket/out")

Importing this file registers the protocol "loop"; a subprocess imports it as well.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fsspec

ADDRESS = "LOOPBACK_STORE"  # environment variable: host:port


class LoopbackFileSystem(fsspec.AbstractFileSystem):
    """Objects of the store at ``$LOOPBACK_STORE``."""

    protocol = "loop"

    def _ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """Send a request and return (headers, content); its connection is for it alone."""
        connection = http.client.HTTPConnection(os.environ[ADDRESS], timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status == 404:
            raise FileNotFoundError(unquote(path))
        if response.status == 412:
            raise FileExistsError(unquote(path))
        if response.status >= 400:
            raise OSError(f"{method} {path}: status {response.status}")
        return response.headers, content

    def _key(self, path: str) -> str:
        return "/" + quote(self._strip_protocol(path).strip("/"))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        prefix = self._strip_protocol(path).strip("/")
        listed = json.loads(self._ask("GET", "/?prefix=" + quote(prefix))[1])
        found = {}
        for name, size, etag in listed:
            below = name[len(prefix) :].strip("/")
            if not below:
                found[name] = {"name": name, "size": size, "type": "file", "ETag": etag}
                continue
            first, more, _ = below.partition("/")
            own = f"{prefix}/{first}".strip("/")
            found[own] = {"name": own, "size": 0, "type": "directory"}
            if not more:
                found[own] = {"name": own, "size": size, "type": "file", "ETag": etag}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name = self._strip_protocol(path).strip("/")
        try:
            headers, _ = self._ask("HEAD", self._key(path))
        except FileNotFoundError:
            self.ls(path)
            return {"name": name, "size": 0, "type": "directory"}
        size = int(headers["X-Size"])
        return {"name": name, "size": size, "type": "file", "ETag": headers["ETag"]}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        headers = {} if end is None else {"Range": f"bytes={start or 0}-{end - 1}"}
        return self._ask("GET", self._key(path), **headers)[1]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        headers = {"If-None-Match": "*"} if mode == "create" else {}
        self._ask("PUT", self._key(path), value, **headers)

    def rm_file(self, path: str) -> None:
        self._ask("DELETE", self._key(path))


fsspec.register_implementation("loop", LoopbackFileSystem, clobber=True)


@contextlib.contextmanager
def running(fail_every: int = 0) -> Iterator[str]:
    """Run a store in a process of its own; yield its address, which is set in the environment."""
    command = [sys.executable, __file__, "--fail-every", str(fail_every)]
    before = os.environ.get(ADDRESS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            os.environ[ADDRESS] = process.stdout.readline().strip()
            yield os.environ[ADDRESS]
        finally:
            process.kill()
            os.environ.pop(ADDRESS)
            if before is not None:
                os.environ[ADDRESS] = before


class _Handler(BaseHTTPRequestHandler):
    """Requests; the objects, their lock and the count of requests are the class's."""

    objects: dict[str, bytes] = {}  # noqa: RUF012
    lock = threading.Lock()
    count = 0
    fail_every = 0

    def _answer(self, status: int, body: bytes = b"", size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if size is not None:
            self.send_header("X-Size", str(size))
        if status in (200, 206):
            self.send_header("ETag", _etag(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fails(self) -> bool:
        """Answer 503 to every Nth request: after its work where the count of failures is even."""
        with self.lock:
            type(self).count += 1
            return bool(self.fail_every) and self.count % self.fail_every == 0

    def do_GET(self) -> None:
        if self._fails():
            return self._answer(503)
        split = urlsplit(self.path)
        if split.path == "/":
            return self._list(parse_qs(split.query).get("prefix", [""])[0])
        content = self.objects.get(unquote(self.path)[1:])
        if content is None:
            return self._answer(404)
        if self.command == "HEAD":
            self.send_response(200)
            self.send_header("X-Size", str(len(content)))
            self.send_header("ETag", _etag(content))
            return self.end_headers()
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            return self._answer(206, content[int(first) : int(last) + 1])
        return self._answer(200, content)

    do_HEAD = do_GET  # noqa: N815

    def _list(self, prefix: str) -> None:
        with self.lock:
            found = [
                (name, len(content), _etag(content))
                for name, content in self.objects.items()
                if not prefix or name == prefix or name.startswith(prefix + "/")
            ]
        self._answer(200, json.dumps(found).encode())

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size)
        if len(content) != size:  # the client was killed
            return
        fails = self._fails()
        if fails and (self.count // self.fail_every) % 2:
            return self._answer(503)
        name = unquote(self.path)[1:]
        with self.lock:
            taken = self.headers.get("If-None-Match") == "*" and name in self.objects
            if not taken:
                self.objects[name] = content
        self._answer(503 if fails else 412 if taken else 200)

    def do_DELETE(self) -> None:
        if self._fails():
            return self._answer(503)
        with self.lock:
            found = self.objects.pop(unquote(self.path)[1:], None)
        self._answer(404 if found is None else 200)

    def log_message(self, *args: Any) -> None:
        pass


def _etag(content: bytes) -> str:
    return '"' + hashlib.md5(content, usedforsecurity=False).hexdigest() + '"'


def main() -> None:
    """Serve until killed; the first line printed is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fail-every", type=int, default=0)
    _Handler.fail_every = parser.parse_args().fail_every
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(f"127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
