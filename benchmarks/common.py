"""Shared parts of the benchmarks: text, checkpoints, clocks and headers of tables.

Nothing heavy is imported here, so that a script can start workers before it touches a device.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import functools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from main_job import FULL, SHARED, prepare, sentences, version, write_published
from peers import Missing

__all__ = ["FULL", "SHARED", "sentences", "write_published"]

Cell = str | float | int | None
Reply = Any  # the requested value, or a str with the reason why there is none
BYTES_PER_TOKEN = 4.2  # UTF-8, mean over the languages of the corpus


def write_checkpoints(
    directory: Path, layers: int, *, vocab: int = FULL["vocab"], for_transformers: bool
) -> None:
    """Write a random checkpoint in bfloat16, ``published``, and its copy for ``transformers``.

    A vocabulary below the real one keeps the first pieces of the real tokenizer and its ``<mask>``.
    """
    published = directory / "published"
    if vocab != FULL["vocab"] and not (published / "config.json").exists():
        write_published(published, {**FULL, "layers": layers, "vocab": vocab}, "bfloat16")
        fields = json.loads((SHARED / "xlm-roberta" / "tokenizer.json").read_text("utf-8"))
        *pieces, mask = fields["model"]["vocab"]
        fields["model"]["vocab"] = [*pieces[: vocab - 1], mask]
        fields["added_tokens"][-1]["id"] = vocab - 1
        text = json.dumps(fields, ensure_ascii=False)
        (published / "tokenizer.json").write_text(text, encoding="utf-8")
    prepare(directory, 1, layers, for_transformers)


@functools.cache
def corpus() -> list[list[str]]:
    """Return every sentence of STS-b, one list per language."""
    languages: dict[str, list[str]] = {}
    for file in sorted((SHARED / "eval").glob("stsb-*-*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            found = [text for row in csv.reader(lines) for text in row[:2]]
        languages.setdefault(file.name.split("-")[1], []).extend(found)
    if not languages:
        sys.exit(f"needs stsb-*.csv in {SHARED / 'eval'} (or set JINA_JAX_SHARED)")
    return list(languages.values())


def log_normal_texts(
    count: int, *, median: int = 64, sigma: float = 1.2, longest: int = 8000, seed: int = 0
) -> list[str]:
    """Join sentences to texts of log-normal length: a few long ones have most of the tokens.

    Args:
      count: number of texts; languages alternate.
      median, longest: tokens, estimated from bytes.
      sigma: standard deviation of the logarithm; 1.2 makes one text in a hundred 16 medians long.
      seed: seed of the lengths and of the first sentence of each text.
    """
    draw = random.Random(seed)
    languages = corpus()
    texts = []
    for i in range(count):
        tokens = min(draw.lognormvariate(math.log(median), sigma), longest)
        texts.append(passage(languages[i % len(languages)], tokens, draw))
    return texts


def passage(language: Sequence[str], tokens: float, draw: random.Random) -> str:
    """Join consecutive sentences, at least one, to a text of about the given number of tokens."""
    start, size, chosen = draw.randrange(len(language)), 0, []
    while not chosen or size < tokens * BYTES_PER_TOKEN:
        chosen.append(language[(start + len(chosen)) % len(language)])
        size += len(chosen[-1].encode()) + 1
    return " ".join(chosen)


def flops(tokens: int, layers: int = FULL["layers"]) -> float:
    """Return the operations per token in rows of ``tokens``; a multiply-add counts as two."""
    width, inner = FULL["width"], FULL["inner"]
    return layers * (2 * (4 * width**2 + 2 * width * inner) + 4 * tokens * width)


def seconds(call: Callable[[], object], at_least: float) -> float:
    """Return the seconds of a call, repeated for at least the given time."""
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < at_least or not calls:
        call()
        calls += 1
    return passed / calls


def peak_gb() -> float:
    """Return the peak memory of this process, since ``forget_peak`` if that was called."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak * 1024 / 1e9


def forget_peak() -> None:
    """Reset ``peak_gb`` to the memory now in use."""
    Path("/proc/self/clear_refs").write_text("5")


def run_worker(script: str, *arguments: object, env: dict[str, str] | None = None) -> Any:
    """Run a script in a process of its own and return the JSON of its last line of output."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(calls: dict[Any, Callable[[], Reply]], rounds: int) -> dict[Any, Reply]:
    """Run the calls in turns; return the medians of each, or the reason why there are none."""
    replies: dict[Any, list[Reply]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if not (replies[name] and isinstance(replies[name][-1], str)):
                replies[name].append(call())
    return {name: median(found) for name, found in replies.items()}


def median(replies: list[Reply]) -> Reply:
    """Return the median of numbers, or of each number in dicts; a reason is returned unchanged."""
    last = replies[-1]
    if isinstance(last, dict):
        return {key: median([reply[key] for reply in replies]) for key in last}
    return last if isinstance(last, str) else statistics.median(replies)


class Peer:
    """A worker process that answers one question at a time (``serve``)."""

    def __init__(self, command: Sequence[str], env: dict[str, str]):
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (close)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **env},
        )

    def ask(self, call: str, **arguments: Any) -> Reply:
        """Return the answer, or a str with the reason why there is none."""
        try:
            print(json.dumps([call, arguments]), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return self._last_words()
        line = self._process.stdout.readline()
        if not line:
            return self._last_words()
        answer, reason = json.loads(line)
        return answer if reason is None else reason

    def _last_words(self) -> str:
        """Return the reason why the process ended."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        if any("Unknown flag" in line for line in lines):
            return "unknown flag"
        return f"ended with status {status}: {lines[-1][:200] if lines else 'no message'}"

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()
        self._process.stdout.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(make: Callable[[], Any]) -> None:
    """Call the methods named on standard input on the result of ``make``, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is not an answer
    worker = None
    for line in sys.stdin:
        call, arguments = json.loads(line)
        answer, reason = None, None
        try:
            worker = worker or make()
            answer = getattr(worker, call)(**arguments)
        except Exception as error:  # the reason is printed in the cell of the table
            text = str(error).strip().split("\n")[0][:200]
            reason = text if isinstance(error, Missing) else f"{type(error).__name__}: {text}"
        print(json.dumps([answer, reason]), file=answers, flush=True)


def per_call(run: Callable[[int], object], seconds: float) -> float:
    """Return the seconds of a call; ``run(n)`` makes n of them and waits for the last."""
    run(2)  # compiles, and fills the allocator's pool
    start = time.perf_counter()
    run(1)
    count = max(3, math.ceil(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    run(count)
    return (time.perf_counter() - start) / count


def machine() -> dict[str, str]:
    """Describe the processor, the memory and the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    gpus = nvidia_gpus()
    return {**found, "GPU": "; ".join(gpus)} if gpus else found


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def nvidia_gpus() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU, as nvidia-smi prints them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    command += ["--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.strip().splitlines()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of the installed packages among these."""
    return {package: found for package in packages if (found := version(package))}


def header(*packages: str) -> str:
    """Return date, machine and versions as the header of a table."""
    names = versions("jina-jax", *packages)
    told = ", ".join(f"{name} {found}" for name, found in names.items())
    return f"{datetime.date.today()}, {', '.join(machine().values())}\n{told}\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a Markdown table with the first column left-aligned; floats have 3 digits or more."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Cell) -> str:
    """Format a value for a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    elif isinstance(value, int):
        value = f"{value:,}"
    return value.replace("|", "/").replace("\n", " ")
