"""Tokenisation: ``jina_jax`` compared with ``tokenizers`` in one thread, ids only, on real text.

For every file of the public data: texts per second of ``Tokenizer.encode(list)`` over those of
``tokenizers``, whose ways to encode a list are all timed. Cold is the first pass of a new
tokenizer, with an empty cache of words on both sides; warm is the pass after it. Then the time to
load.

    python benchmarks/tokenizer.py                  # needs the test extra for tokenizers
    python benchmarks/tokenizer.py --processes 0 1 2 4 8

The second form measures tokenising beside an accelerator instead: all texts, in pools as ``encode``
makes them, in so many processes beside this one (0: in a thread, as on a CPU). Seconds are of
processor time per million tokens: of this process, whose lock bounds the rate on any number of
cores; of it together with cutting and windows; and of the others together.

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
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers

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
    args = parser.parse_args()
    files = find_texts()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["JINA_JAX_CACHE"] = scratch
        path = write_dialect(Path(scratch) / "tokenizer.json", args.dialect)
        if args.processes:
            texts = [text for name, own in files.items() if args.only in name for text in own]
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
    random.Random(0).shuffle(texts)  # scripts mixed, as every block has them
    cuts = itertools.accumulate(map(len, texts))
    pools = [
        [Request(text) for text, _ in pool]
        for _, pool in itertools.groupby(zip(texts, cuts, strict=True), lambda x: x[1] // POOL)
    ]
    tokenizer = Tokenizer.from_file(path)
    print(f"{len(texts)} texts, {sum(map(len, texts)):,} characters; {os.cpu_count()} cores")
    print("| processes | tokens/s | this process, s | with cutting, s | the others, s | start, s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in counts:
        processes = TokenizerProcesses(tokenizer, count) if count else None
        start = time.perf_counter()
        while processes and len(processes.ready) < count:
            processes.start()
            time.sleep(0.001)
        started = time.perf_counter() - start
        preparation = Preparation(tokenizer, False, 8192, None, processes)
        rows = [rate(preparation, pools) for _ in range(rounds + 1)][1:]  # after a warm pass
        speed, own, prepared, others = map(statistics.median, zip(*rows, strict=True))
        cells = f"{own:.3f} | {prepared:.3f} | {others:.3f} | {started:.2f}"
        print(f"| {count} | {speed:,.0f} | {cells} |", flush=True)
        if processes:
            processes.close()


def rate(preparation: Preparation, pools: list[list[Request]]) -> tuple[float, ...]:
    """Return tokens per second, and seconds of processor time per million tokens."""
    gc.collect()
    pids = preparation.processes.ready if preparation.processes else ()
    before, start, own = processor_time(pids), time.perf_counter(), time.process_time()
    count = sum(len(tokens.ids) for pool in pools for tokens in preparation.tokenize(pool))
    seconds, own = time.perf_counter() - start, time.process_time() - own
    others = processor_time(pids) - before
    start = time.process_time()
    for pool in pools:
        preparation(pool)
    prepared = time.process_time() - start
    return count / seconds, *(1e6 * value / count for value in (own, prepared, others))


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
