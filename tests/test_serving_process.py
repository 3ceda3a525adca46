"""``jina-jax serve`` as a process: its life from the first probe to its signals."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

# A program of one shape is compiled before the server is ready; others when they are needed.
SCRIPT = """
import os, sys, time
import jina_jax.runtime.model as model
from jina_jax.runtime.engine import Engine

def shapes(*_):
    time.sleep(float(os.environ.get("LOADS", 0)))
    return [(1, 16, 2)]

model.shapes = shapes
start = Engine._start

def hang(self, step):
    if "HANGS" in os.environ and step.batch.text_spans[0, 0, 1] == 4:  # "?"
        time.sleep(60)
    return start(self, step)

Engine._start = hang
from jina_jax.cli.main import main
main(prog_name="jina-jax")
"""


@contextlib.contextmanager
def process(directory, *options, **environment):
    """Start the command; yield the process and a client."""
    command = ["serve", "--port", "0", "--warmup-length", "16", "--model", str(directory), *options]
    found = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *command],
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **environment},
        text=True,
    )
    with found:
        try:
            lines = iter(found.stderr.readline, "")
            url = next(m[1] for line in lines if (m := re.search(r" at (http://\S+)", line)))
            threading.Thread(target=list, args=(lines,), daemon=True).start()  # reads on
            with httpx.Client(base_url=url, timeout=60, verify=False) as client:
                yield found, client
        finally:
            found.kill()


def is_ready(client):
    deadline = time.monotonic() + 60
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


def post(client, text):
    return client.post("/v1/embeddings", json={"input": text, "model": client_model(client)})


def client_model(client):
    return client.get("/v1/models").json()["data"][0]["id"]


def test_probes_while_loading_and_a_signal_that_lets_requests_finish(directory):
    with process(directory, LOADS="0.5") as (server, client):
        assert client.get("/live").status_code == 200
        reply = client.get("/ready")
        assert reply.status_code == 503
        assert "loaded" in reply.json()["detail"]
        reply = client.post("/v1/embeddings", json={"input": "a"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert is_ready(client)
        assert client_model(client) == directory.name
        found = []
        # Its program is compiled first, which takes longer than the signal.
        thread = threading.Thread(target=lambda: found.append(post(client, "long text " * 8)))
        thread.start()
        time.sleep(0.1)
        server.send_signal(signal.SIGTERM)
        thread.join(60)
        assert found[0].status_code == 200
        assert len(found[0].json()["data"]) == 1
        assert server.wait(20) == 0


def test_a_signal_while_loading_ends_at_once(directory):
    with process(directory, LOADS="60") as (server, client):
        assert client.get("/ready").status_code == 503
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


@pytest.mark.parametrize(("drain", "signals"), [("60", 2), ("1", 1)])
def test_what_hangs_is_ended_by_a_second_signal_or_the_drain(directory, drain, signals):
    with process(directory, "--drain", drain, HANGS="1") as (server, client):
        assert is_ready(client)
        found = []

        def ask():
            try:
                found.append(post(client, "?"))
            except httpx.HTTPError as error:
                found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.5)
        for _ in range(signals):
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert server.wait(10) == 0
        thread.join(10)
        # The second signal may be quicker than the reply.
        if signals == 1 or not isinstance(found[0], httpx.HTTPError):
            assert found[0].status_code == 503
            assert found[0].json()["detail"]


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jina_jax.cli", "serve", "--port", "0", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
