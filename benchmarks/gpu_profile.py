"""Where a device's time goes: kernels of a step, and the time between steps.

Kernels are those of a trace of ``jax.profiler``, by name and in groups. A GPU's trace has a plane
per device, with a line per stream and an event per kernel. A CPU's has no such plane: the
operations that its threads record are read instead, whose times overlap.
"""

from __future__ import annotations

import collections
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# The first group whose pattern is found in a kernel's name is its group; the rest are named.
GROUPS = {
    "attention": r"sdpa|flash|fmha|mha|attention",
    "matmuls": r"nvjet|gemm|cublas|cutlass|xmma|wgmma|matmul|dot|ynn",
    "transposes and copies": r"transpose|copy|memcpy|memset",
}
_NUMBERS = re.compile(r"([._]\d+)+$")


class Trace(NamedTuple):
    """Kernels of the traced steps.

    Attributes:
      source: the planes that were read.
      nanoseconds, counts: sums over all events of a name.
      span: nanoseconds from the first kernel's start to the last one's end.
    """

    source: str
    nanoseconds: collections.Counter[str]
    counts: collections.Counter[str]
    span: float


def trace(run: Callable[[], object], directory: Path) -> Trace:
    """Run under the profiler, and return the kernels that it saw."""
    import jax

    with jax.profiler.trace(directory):
        run()
    files = sorted(directory.glob("**/*.xplane.pb"))
    return read(jax.profiler.ProfileData.from_file(str(files[-1])))


def read(data: Any) -> Trace:
    """Add up the events of the device planes, or of the host's threads if there is none."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    source = ", ".join(plane.name for plane in devices) or "host threads (no device plane)"
    nanoseconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    first, last = float("inf"), 0.0
    for event in _kernels(devices) if devices else _operations(planes):
        nanoseconds[event.name] += event.duration_ns
        counts[event.name] += 1
        first, last = min(first, event.start_ns), max(last, event.end_ns)
    return Trace(source, nanoseconds, counts, max(0.0, last - first))


def _kernels(planes: list[Any]) -> Iterator[Any]:
    for plane in planes:
        for line in plane.lines:
            if "Stream" in line.name:
                yield from line.events


def _operations(planes: list[Any]) -> Iterator[Any]:
    """Yield the operations of compiled programs among the events of a CPU's threads."""
    for plane in planes:
        for line in plane.lines:
            if line.name.startswith("tf_XLA"):
                yield from (e for e in line.events if any(name == "hlo_op" for name, _ in e.stats))


def group(name: str) -> str:
    """Return the group of a kernel; of other ones the name without its numbers."""
    for found, pattern in GROUPS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return _NUMBERS.sub("", name)


def summary(found: Trace, steps: int, top: int = 12) -> dict[str, Any]:
    """Return milliseconds and kernels per step: in all, by group, and of the longest kernels."""
    groups: dict[str, list[float]] = {}
    for name, spent in found.nanoseconds.items():
        own = groups.setdefault(group(name), [0.0, 0.0])
        own[0] += spent / steps / 1e6
        own[1] += found.counts[name] / steps
    longest = [
        [name, spent / steps / 1e6, found.counts[name] / steps]
        for name, spent in found.nanoseconds.most_common(top)
    ]
    return {
        "planes": found.source,
        "kernels, ms": found.nanoseconds.total() / steps / 1e6,
        "span, ms": found.span / steps / 1e6,
        "groups": dict(sorted(groups.items(), key=lambda pair: -pair[1][0])),
        "longest": longest,
    }


def print_summary(case: str, result: dict[str, Any] | str, most: int = 10) -> None:
    """Print the groups of a step as a table, and the longest kernels below it."""
    if isinstance(result, str):
        print(f"\n{case}: {result}", flush=True)
        return
    total = result["kernels, ms"]
    print(f"\n{case}, attention {result['attention']}, from {result['planes']}: kernels ", end="")
    print(f"{total:.2f} ms per step, {result['span, ms']:.2f} from first to last\n")
    rows = [
        [name, ms, f"{ms / total:.1%}", count]
        for name, (ms, count) in list(result["groups"].items())[:most]
    ]
    others = list(result["groups"].values())[most:]
    if others:
        ms, count = map(sum, zip(*others, strict=True))
        rows.append([f"{len(others)} more", ms, f"{ms / total:.1%}", count])
    import common  # not for the tests, which have a module of the name of one that it imports

    print(common.table(["kernels", "ms per step", "share", "per step"], rows))
    print(
        "\nLongest: " + "; ".join(f"{name[:60]} {ms:.3f} ms" for name, ms, _ in result["longest"])
    )
    print(end="", flush=True)


class Flights:
    """Time in which an engine had no step in flight, while this context is entered.

    A step is in flight from its dispatch, inputs included, until its result is on the device; a
    thread waits for each. What a GPU idles between two kernels of a step does not count.

    Attributes:
      seconds: between entering and leaving.
      idle: share of them in which no step was in flight: the device waited for the host.
    """

    def __init__(self, engine):
        self._engine, self._start = engine, engine._start
        self._pool = ThreadPoolExecutor(1)
        self._spans: list[Future] = []
        self.seconds = self.idle = math.nan

    def _watched(self, step, pooling):
        begin = time.perf_counter()
        output = self._start(step, pooling)
        self._spans.append(self._pool.submit(self._landed, begin, output))
        return output

    def _landed(self, begin: float, output) -> tuple[float, float]:
        output.block_until_ready()
        return begin, time.perf_counter()

    def __enter__(self) -> Flights:
        self._engine._start = self._watched
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._entered
        del self._engine._start
        busy, until = 0.0, self._entered
        for begin, end in (span.result() for span in self._spans):
            busy += max(0.0, end - max(begin, until))
            until = max(until, end)
        self.idle = max(0.0, 1 - busy / self.seconds)
        self._pool.shutdown()
