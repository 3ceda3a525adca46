"""Tokenisation: ``jina_jax`` compared with ``tokenizers`` in one thread, ids only, on real text.

For every file of the public data: texts per second of ``Tokenizer.encode(list)`` over those of
``tokenizers``, whose ways to encode a list are all timed. Cold is the first pass of a new
tokenizer, with an empty cache of words on both sides; warm is the pass after it. Then the time to
load.

    python benchmarks/tokenizer.py                  # needs the test extra for tokenizers
    python benchmarks/tokenizer.py --processes 0 1 2 4 8

The second form measures tokenising beside an accelerator: half of the texts, after the other half,
in pools as ``encode`` makes them on a GPU, in so many processes beside this one (0: in a thread).
Seconds are processor time per million tokens: of this process, whose lock bounds the rate on any
number of cores, to tokenise, to cut and to pack; and of the others together.

Text and vocabulary are those of the public data in ../shared (or $JINA_JAX_SHARED).
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.metadata
import itertools
import json
import os
import pickle
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tokenizers

from jina_jax.runtime.batching import Batching
from jina_jax.runtime.packing import make_batches
from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.tokenizing import TokenizerProcesses
from jina_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("JINA_JAX_SHARED", ROOT.parent / "shared"))
POOL = 32 * 32768 * 4  # characters that ``encode`` tokenises at once on a GPU
LANGUAGES = ("en", "zh", "ja", "ru", "fr", "de")

STATES = ("cold", "warm")
WAYS: dict[str, Callable[[Any, list[str]], list[list[int]]]] = {
    "jina_jax": lambda tokenizer, texts: tokenizer.encode(texts),
    "encode_batch": lambda tokenizer, texts: [e.ids for e in tokenizer.encode_batch(texts)],
    "_fast": lambda tokenizer, texts: [e.ids for e in tokenizer.encode_batch_fast(texts)],
    "encode": lambda tokenizer, texts: [tokenizer.encode(text).ids for text in texts],
}
Row = dict[str, list[float]]  # seconds cold and warm, by way to encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dialect", choices=("older", "newer"), default="older")
    parser.add_argument("--only", default="", help="part of the names of the files to measure")
    parser.add_argument("--rounds", type=int, default=3, help="number of alternating measurements")
    parser.add_argument("--processes", type=int, nargs="+", help="numbers of processes to measure")
    parser.add_argument("--join", type=int, default=1, help="sentences per text, with --processes")
    args = parser.parse_args()
    files = find_texts()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JINA_JAX_CACHE"] = scratch
        path = write_dialect(Path(scratch) / "tokenizer.json", args.dialect)
        if args.processes:
            texts = [text for name, own in files.items() if args.only in name for text in own]
            random.Random(0).shuffle(texts)  # languages mixed, in every block
            texts = [" ".join(own) for own in zip(*[iter(texts)] * args.join, strict=False)]
            report_processes(path, texts, args.processes, args.rounds)
            return
        loads = load_times(path, args.rounds)
        rows = {
            name: compare(path, texts, args.rounds)
            for name, texts in files.items()
            if args.only in name
        }
    report(files, loads, rows)


def find_texts() -> dict[str, list[str]]:
    """Return the texts of every file: one column of the STS-b training sets, Tatoeba's lines."""
    names = [f"stsb-{language}-train.csv" for language in LANGUAGES]
    missing = [name for name in names if not (SHARED / "eval" / name).exists()]
    if missing:
        sys.exit(f"needs {', '.join(missing)} in {SHARED / 'eval'} (or set JINA_JAX_SHARED)")
    files = {}
    for name in names:
        with (SHARED / "eval" / name).open(encoding="utf-8", newline="") as lines:
            files[name] = [text for row in csv.reader(lines) for text in row[:2]]
    for path in sorted((SHARED / "eval").glob("tatoeba.*-eng.*")):
        if not path.name.endswith(".eng"):
            files[path.name] = path.read_text(encoding="utf-8").splitlines()
    return files


def write_dialect(path: Path, dialect: str) -> Path:
    """Write tokenizer.json in the form of older or newer exports."""
    source = (SHARED / "xlm-roberta" / "tokenizer.json").read_text(encoding="utf-8")
    if dialect == "newer":
        fields = json.loads(source)
        spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        steps = [fields["normalizer"], spaces]
        fields["normalizer"] = {"type": "Sequence", "normalizers": steps}
        fields["pre_tokenizer"] = fields["pre_tokenizer"]["pretokenizers"][-1]
        source = json.dumps(fields, ensure_ascii=False)
    path.write_text(source, encoding="utf-8")
    return path


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Load the file with ``tokenizers``."""
    return tokenizers.Tokenizer.from_file(str(path))


def compare(path: Path, texts: list[str], rounds: int) -> Row:
    """Check the ids, then return the median seconds (cold, warm) of each way to encode."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        results = []
        for way, encode in WAYS.items():
            tokenizer = Tokenizer.from_file(path) if way == "jina_jax" else read_tokenizer(path)
            times[way].append(tuple(timed(encode, tokenizer, texts) for _ in range(2)))
            results.append(encode(tokenizer, texts))
            del tokenizer  # otherwise the next round would use the same one
        if any(result != results[0] for result in results):
            sys.exit("the ids differ")
    return {
        way: [statistics.median(column) for column in zip(*times[way], strict=True)] for way in WAYS
    }


def timed(work: Callable[..., object], *args: Any) -> float:
    """Return the seconds of processor time of a call, independent of other processes."""
    gc.collect()
    start = time.process_time()
    work(*args)
    return time.process_time() - start


def load_times(path: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds to load the file."""
    times: dict[str, list[float]] = {"without cache": [], "with cache": [], "tokenizers": []}
    for _ in range(rounds):
        for entry in path.parent.glob("*.npz"):
            entry.unlink()
        times["without cache"].append(timed(Tokenizer.from_file, path))
        times["with cache"].append(timed(Tokenizer.from_file, path))
        times["tokenizers"].append(timed(read_tokenizer, path))
    return {name: statistics.median(column) for name, column in times.items()}


def report_processes(path: Path, texts: list[str], counts: list[int], rounds: int) -> None:
    """Print rates and processor time by number of processes."""
    requests = [Request(text) for text in texts]
    half = len(requests) // 2
    heads = ("tokens/s", "tokenising, s", "cutting, s", "packing, s", "the others, s", "start, s")
    print(f"{len(texts)} texts, {sum(map(len, texts)):,} characters; {os.cpu_count()} cores")
    print("| processes | " + " | ".join(heads) + " |")
    print("|---:" * (len(heads) + 1) + "|")
    content = pickle.dumps(Tokenizer.from_file(path))
    for count in counts:
        rows = []
        for _ in range(rounds):
            tokenizer = pickle.loads(content)  # that knows no words yet
            processes = TokenizerProcesses(tokenizer, count) if count else None
            seconds = wait_for(processes, count)
            preparation = Preparation(tokenizer, False, 8192, None, processes)
            rate(preparation, requests[:half])
            rows.append((*rate(preparation, requests[half:]), seconds))
            if processes:
                processes.close()
        speed, *values = map(statistics.median, zip(*rows, strict=True))
        cells = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {count} | {speed:,.0f} | {cells} |", flush=True)


def wait_for(processes: TokenizerProcesses | None, count: int) -> float:
    """Start processes; return the seconds until all have loaded the tokenizer."""
    start = time.perf_counter()
    if processes is not None:
        processes.start()
        while len(processes.ready) < count:
            time.sleep(0.001)
    return time.perf_counter() - start


def rate(preparation: Preparation, requests: list[Request]) -> tuple[float, ...]:
    """Return tokens per second, and seconds of processor time per million tokens."""
    pids = preparation.processes.ready if preparation.processes else ()
    batching = Batching().on("gpu")
    count, seconds, others, times = 0, 0.0, 0.0, np.zeros(3)
    for pool in pools(requests):
        gc.collect()
        before, start, marks = processor_time(pids), time.perf_counter(), [time.process_time()]
        tokens = preparation.tokenize(pool)
        seconds += time.perf_counter() - start
        others += processor_time(pids) - before
        marks.append(time.process_time())
        prepared = list(map(preparation.prepare, pool, tokens))
        marks.append(time.process_time())
        make_batches([item.ids for own in prepared for item in own.items], batching, 1)
        times += np.diff([*marks, time.process_time()])
        count += sum(own.tokens for own in prepared)
    return count / seconds, *(1e6 * value / count for value in (*times, others))


def pools(requests: list[Request]) -> Iterator[list[Request]]:
    """Yield requests as ``encode`` tokenises them at once."""
    sizes = itertools.accumulate(len(request.text) for request in requests)
    pairs = zip(requests, sizes, strict=True)
    for _, pool in itertools.groupby(pairs, lambda pair: pair[1] // POOL):
        yield [request for request, _ in pool]


def processor_time(pids: Iterable[int]) -> float:
    """Return the seconds of processor time that processes have taken (Linux)."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def report(files: dict[str, list[str]], loads: dict[str, float], rows: dict[str, Row]) -> None:
    """Print the versions and the table."""
    packages = ("sentencepiece", "regex", "tokenizers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    print(f"{versions}; one thread; medians of processor time")
    print("load:", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in loads.items()))
    print("\nspeed of jina_jax over each way of tokenizers:\n")
    theirs = list(WAYS)[1:]
    heads = [f"{head} {state}" for state in STATES for head in ("texts/s", *theirs)]
    print("| file | texts | " + " | ".join(heads) + " |")
    print("|---" + "|---:" * (len(heads) + 1) + "|")
    for name, row in rows.items():
        cells = [str(len(files[name]))]
        for state, ours in enumerate(row["jina_jax"]):
            cells.append(f"{len(files[name]) / ours:.0f}")
            cells += [f"{row[way][state] / ours:.2f}" for way in theirs]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
