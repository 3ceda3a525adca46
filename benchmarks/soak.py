"""A soak: random requests, clients that leave, and kills, against the vectors of ``encode``."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import load
import numpy as np

_CLIENTS = 24
_TASKS = (
    None,
    "retrieval.query",
    "retrieval.passage",
    "separation",
    "classification",
    "text-matching",
)
_COSINE = 0.999  # in bfloat16 a vector depends on the shape of its step by rounding
_BAD: tuple[bytes, ...] = (
    b"{",
    b'{"input": []}',
    b'{"input": [1, 2]}',
    b'{"input": "\\ud800"}',
    b'{"input": "a", "task": "x"}',
    b'{"input": "a", "dimensions": 0}',
    b'{"input": ' + b"[" * 5000,
)


def run(server: Any, model: Any, texts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Send random requests for so many seconds; return what came back."""
    expected = {task: model.encode(list(texts), task=task) for task in _TASKS}
    return load.run(_run(server, texts, expected, seconds))


async def _run(server: Any, texts: Any, expected: Any, seconds: float) -> dict[str, Any]:
    end = time.perf_counter() + seconds
    found: Counter[str] = Counter()
    worst, sizes = [1.0], []

    async def work(number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end:
            await _one(server.url, draw, texts, expected, found, worst)

    async def watch() -> None:
        while time.perf_counter() < end:
            await asyncio.sleep(min(10.0, seconds / 20))
            sizes.append(server.resident_mb())

    await asyncio.gather(watch(), *(work(k) for k in range(_CLIENTS)))
    early, late = sizes[len(sizes) // 10 :][:3], sizes[-3:]
    return {
        **dict(sorted(found.items())),
        "lowest cosine with encode": worst[0],
        "memory, end over a tenth": float(np.median(late) / np.median(early)),
        "memory at the end (MB)": late[-1],
    }


async def _one(
    url: str, draw: random.Random, texts: Any, expected: Any, found: Counter, worst: list[float]
) -> None:
    """Make one connection, and send requests on it until it is closed or given up."""
    client = await load.connect(url)
    for _ in range(draw.randint(1, 20)):
        kind = draw.random()
        if kind < 0.1:
            status, _ = await client.send(load.raw_post(draw.choice(_BAD)))
            found[f"bad, status {status}"] += 1
            continue
        picked = [draw.randrange(len(texts)) for _ in range(_count(draw))]
        tasks = [draw.choice(_TASKS) for _ in picked]
        body = {"input": [texts[i] for i in picked], "task": tasks}
        reply = client.send(load.post(body))
        if kind < 0.25:  # leaves before, while or after its texts are computed
            await asyncio.sleep(draw.random() * 0.1)
            client.transport.abort()
            found["left"] += 1
            reply.add_done_callback(lambda own: own.cancelled() or own.exception())
            return
        status, content = await reply
        found[f"status {status}"] += 1
        if status == 200:
            rows = [row["embedding"] for row in json.loads(content)["data"]]
            wanted = [expected[task][i] for task, i in zip(tasks, picked, strict=True)]
            cosine = np.sum(np.array(rows, np.float32) * np.stack(wanted), axis=-1).min()
            found["wrong vectors"] += int(cosine < _COSINE)
            worst[0] = min(worst[0], float(cosine))
    client.transport.close()


def _count(draw: random.Random) -> int:
    return draw.choice((1, 1, 1, 1, 2, 5, 20)) if draw.random() < 0.97 else draw.randint(50, 300)
