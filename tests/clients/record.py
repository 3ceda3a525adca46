"""Write tests/golden/requests.json: the requests that released clients send.

    pip install -e ".[test,clients,clients-slow]"
    python tests/clients/record.py

Runs the tests beside this file against a server that notes each short request, once per client,
set of fields, kind of embedding and status.
``tests/test_clients_wire.py`` sends them again, without the clients.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TARGET = HERE.parent / "golden" / "requests.json"
MOST_BYTES = 1000
KINDS = ("embedding_type", "encoding_type", "encoding_format")
HEADERS = ("accept", "accept-encoding", "authorization", "content-type", "user-agent")


class Recorder:
    """A plugin of pytest that knows the test under way, and an application around another one."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._test = ""

    def pytest_sessionstart(self) -> None:
        from jina_jax.serving import server  # not before pytest has loaded its plugins

        make_app = server.make_app
        server.make_app = lambda state: self.around(make_app(state))  # type: ignore[assignment]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid.partition("[")[0].rpartition("/")[2]

    def around(self, app: Any) -> Any:
        """Return an application that notes requests, and the status of their replies."""

        async def recording(scope: Any, receive: Any, send: Any) -> None:
            content, statuses = [], []

            async def noting_receive() -> Any:
                message = await receive()
                content.append(message.get("body", b""))
                return message

            async def noting_send(message: Any) -> None:
                statuses.append(message.get("status"))
                await send(message)

            await app(scope, noting_receive, noting_send)
            self._note(scope, b"".join(content), statuses[0])

        return recording

    def _note(self, scope: Any, content: bytes, status: int) -> None:
        if len(content) > MOST_BYTES:
            return
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        headers = {name: given[name] for name in HEADERS if name in given}
        body = json.loads(content) if content else None
        row = {
            "test": self._test,
            "method": scope["method"],
            "path": scope["path"],
            "headers": headers,
            "body": body,
            "status": status,
        }
        module = self._test.partition("::")[0]
        agent, fields = headers.get("user-agent"), tuple(body or ())
        kinds = tuple((body or {}).get(name) for name in KINDS)
        key = (module, agent, scope["path"], fields, kinds, status)
        self.rows.setdefault(key, row)


def main() -> int:
    """Run the tests; write the file if they pass."""
    recorder = Recorder()
    options = ["-q", "-n", "0", "-m", "clients or clients_slow", str(HERE)]
    status = pytest.main(options, plugins=[recorder])
    if not status:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in recorder.rows.values())
        TARGET.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
