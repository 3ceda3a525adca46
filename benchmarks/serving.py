"""The server beside ``encode``: rates, latencies, memory, start, and a soak.

    python benchmarks/serving.py                         # tiny
    python benchmarks/serving.py --layers 6              # a random model of full width
    python benchmarks/serving.py --sections soak --minutes 30
    python benchmarks/serving.py --sections infinity --layers 6 --infinity VENV/bin/python

The server is a process of its own, its clients are in another one, and ``encode`` is in this one;
they take turns where they are compared, and share the machine's cores all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import load
import numpy as np

SECTIONS = ("throughput", "latency", "flood", "json", "start", "memory", "soak", "infinity")
USUAL = SECTIONS[:6]
CLIENTS = 64
BULK = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(USUAL))
    parser.add_argument("--layers", type=int, default=0, help="0: tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=2048, help="of the throughput")
    parser.add_argument("--requests", type=int, default=100_000, help="of the section memory")
    parser.add_argument("--minutes", type=float, default=30, help="of the section soak")
    parser.add_argument("--infinity", type=Path, help="Python of an environment that has it")
    parser.add_argument("--directory", type=Path, help="where to keep the checkpoint")
    parser.add_argument("--json", type=Path, help="write results to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, _model(args, Path(scratch)))
        found = {name: getattr(bench, name)() for name in args.sections}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(common.header("jax", "jaxlib", "starlette", "uvicorn", "orjson", "msgspec"))
    rows = [[name, key, value] for name, own in found.items() for key, value in own.items()]
    print(common.table(["section", "figure", "value"], rows))


def _model(args: argparse.Namespace, scratch: Path) -> str:
    if not args.layers:
        return "tiny"
    directory = args.directory or scratch
    common.write_checkpoints(directory, args.layers, vocab=30_000, for_transformers=False)
    return str(directory / "published")


class Process:
    """A server in a process of its own."""

    def __init__(self, model: str, *options: str):
        self.start = time.perf_counter()
        command = [sys.executable, "-m", "jina_jax.cli", "serve", "--model", model, "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--served-model-name", "m", *options], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if match := re.search(r" at (http://\S+)", line):
                self.url = match[1]
                break
        for line in self._process.stderr:
            if line.startswith("ready"):
                break
        self.seconds_to_ready = time.perf_counter() - self.start
        self._reader = subprocess.Popen(
            ["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL
        )

    def resident_mb(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> int:
        """End it; return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


class Bench:
    """The sections, each of which returns figures by name."""

    def __init__(self, args: argparse.Namespace, model: str):
        self.args, self.model = args, model
        languages = common.corpus()
        draw = random.Random(0)
        self.texts = [draw.choice(languages[k % len(languages)]) for k in range(args.texts)]

    def throughput(self) -> dict[str, Any]:
        """64 clients with one short text each, over ``encode`` of the same texts in one call."""
        model = self._loaded()
        requests = [load.post({"input": own, "encoding_format": "base64"}) for own in self.texts]
        expected = model.encode(self.texts)
        ratios, differences = [], []
        with self._server() as server:
            for turn in range(self.args.rounds + 1):
                result = load.run(load.closed_loop(server.url, requests, CLIENTS, keep=not turn))
                assert set(result.statuses) == {200}, set(result.statuses)
                begun = time.perf_counter()
                model.encode(self.texts)
                alone = time.perf_counter() - begun
                if turn:
                    ratios.append(alone / result.seconds)
                else:
                    differences = _difference(result.bodies, expected)
        return {
            "of the rate of encode, median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "largest difference of a vector": differences,
            "texts per second of encode, last round": len(self.texts) / alone,
        }

    def latency(self) -> dict[str, Any]:
        """A lone short request over ``encode`` of its text."""
        model, text = self._loaded(), "How do I renew my passport?"
        request = load.post({"input": text, "task": "retrieval.query"})
        ours, theirs = [], []
        with self._server() as server:

            async def measure() -> None:
                client = await load.connect(server.url)
                for turn in range(220):
                    begun = time.perf_counter()
                    await client.send(request)
                    middle = time.perf_counter()
                    model.encode(text, task="retrieval.query")
                    if turn >= 20:
                        ours.append(middle - begun)
                        theirs.append(time.perf_counter() - middle)

            load.run(measure())
        added = 1000 * (statistics.median(ours) - statistics.median(theirs))
        return {
            "added, median (ms)": added,
            "request, median (ms)": 1000 * statistics.median(ours),
            "request, P99 (ms)": 1000 * float(np.quantile(ours, 0.99)),
        }

    def flood(self) -> dict[str, Any]:
        """Lone queries while two clients send requests of 512 texts, in steps of the device."""
        bulk = load.post({"input": self.texts[:BULK], "encoding_format": "base64"})
        query = load.post({"input": "How do I renew my passport?", "task": "retrieval.query"})
        with self._server() as server:

            async def queries(count: int, pause: float) -> list[float]:
                client, found = await load.connect(server.url), []
                for _ in range(count):
                    begun = time.perf_counter()
                    await client.send(query)
                    found.append(time.perf_counter() - begun)
                    await asyncio.sleep(pause)
                return found

            async def measure() -> Any:
                await queries(20, 0)
                idle = await queries(200, 0.01)
                await (await load.connect(server.url)).send(bulk)
                before = await _counts(server.url)
                begun = time.perf_counter()
                busy, done = await load.beside(server.url, bulk, 2, lambda: queries(300, 0.02))
                seconds = time.perf_counter() - begun
                after = await _counts(server.url)
                return idle, busy, done, seconds / (after - before)

            idle, busy, done, step = load.run(measure())
        return {
            "query on an idle server, P99 (ms)": 1000 * float(np.quantile(idle, 0.99)),
            "query beside the flood, median (ms)": 1000 * statistics.median(busy),
            "query beside the flood, P99 (ms)": 1000 * float(np.quantile(busy, 0.99)),
            "a step (ms)": 1000 * step,
            "P99 in steps": float(np.quantile(busy, 0.99)) / step,
            "requests of 512 texts that were answered": done,
        }

    def json(self) -> dict[str, Any]:
        """512 vectors of 1,024 as JSON: time in the event loop, and orjson's alone."""
        import orjson

        from jina_jax.serving import vectors

        values = np.random.default_rng(0).normal(0, 0.03, (BULK, 1024)).astype(np.float32)
        alone = [
            common.seconds(lambda: orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY), 0)
            for _ in range(20)
        ]
        found = {"float, orjson of all at once (ms)": 1000 * statistics.median(alone)}
        for kind in ("float", "base64", "ubinary"):
            totals, longest = [], []
            for _ in range(20):
                own, begun = [], time.perf_counter()
                for _ in vectors.data(values, [kind], several=False):
                    now = time.perf_counter()
                    own.append(now - begun)
                    begun = now
                totals.append(sum(own))
                longest.append(max(own))
            found[f"{kind}, all (ms)"] = 1000 * statistics.median(totals)
            found[f"{kind}, longest piece (ms)"] = 1000 * statistics.median(longest)
        return found

    def start(self) -> dict[str, Any]:
        """From the start of the process to ready, with a warm cache."""
        found = {}
        for name, options in (("all programs", ()), ("--lazy", ("--lazy",))):
            times = []
            for _ in range(4):
                with self._server(*options) as server:
                    times.append(server.seconds_to_ready)
            found[f"to ready (s), {name}, median"] = statistics.median(times[1:])
        return found

    def memory(self) -> dict[str, Any]:
        """Resident memory after many requests over that after 1,000."""
        requests = [load.post({"input": own}) for own in self.texts]
        with self._server() as server:
            done, sizes = 0, {}
            for most in (1000, self.args.requests):
                while done < most:
                    own = requests[: most - done]
                    result = load.run(load.closed_loop(server.url, own, CLIENTS))
                    assert set(result.statuses) == {200}
                    done += len(own)
                sizes[most] = server.resident_mb()
        first, last = sizes.values()
        return {"requests": done, "after 1,000 (MB)": first, "ratio": last / first}

    def soak(self) -> dict[str, Any]:
        """Random requests, cancellations and killed clients: statuses, memory and vectors."""
        import soak

        with self._server() as server:
            return soak.run(server, self._loaded(), self.texts, self.args.minutes * 60)

    def infinity(self) -> dict[str, Any]:
        """The rate of 64 clients over that of infinity, on the same plain XLM-R."""
        import serving_peers

        bodies = [{"model": "m", "input": own} for own in self.texts]
        ours = [load.post(own) for own in bodies]
        theirs = [load.post(own, "/embeddings") for own in bodies]
        found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
            directory = Path(scratch) / "model"
            serving_peers.write(self.args.infinity, directory, self.args.layers)
            url = stack.enter_context(serving_peers.infinity(self.args.infinity, directory))
            servers = {own: self._server("--dtype", own, model=str(directory)) for own in found}
            own_urls = {name: stack.enter_context(own).url for name, own in servers.items()}
            for turn in range(self.args.rounds + 1):
                peer = load.run(load.closed_loop(url, theirs, CLIENTS))
                assert set(peer.statuses) == {200}, set(peer.statuses)
                for name, own_url in own_urls.items():
                    own = load.run(load.closed_loop(own_url, ours, CLIENTS))
                    assert set(own.statuses) == {200}
                    found[name] += [peer.seconds / own.seconds] if turn else []
        return {
            f"times infinity's rate, {name}": statistics.median(own) for name, own in found.items()
        }

    @contextlib.contextmanager
    def _server(self, *options: str, model: str | None = None) -> Iterator[Process]:
        server = Process(model or self.model, *options)
        try:
            yield server
        finally:
            status = server.stop()
            assert status == 0, status

    def _loaded(self) -> Any:
        from jina_jax import JinaEmbeddings

        if not hasattr(self, "_own"):
            self._own = JinaEmbeddings.from_pretrained(self.model)
            self._own.warmup()
        return self._own


def _difference(bodies: list[bytes], expected: np.ndarray) -> float:
    import base64

    rows = [json.loads(body)["data"][0]["embedding"] for body in bodies]
    found = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    return float(np.abs(np.stack(found) - expected).max())


async def _counts(url: str) -> float:
    """Return the number of steps that a server has computed."""
    client = await load.connect(url)
    _, body = await client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    client.transport.close()
    return float(body.decode().split("\njina_jax_steps_total ")[1].split()[0])


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
