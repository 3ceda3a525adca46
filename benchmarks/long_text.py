"""One long text: memory and time of encoding it whole, their growth, and late chunking.

    python benchmarks/long_text.py             # 1,024 … 8,192 tokens, 24 layers, bfloat16
    python benchmarks/long_text.py --layers 2 --lengths 1024 2048

Every length is a process of its own. "first" compiles (there is no compilation cache), "again" does
not. Peaks are the resident memory that Linux counts (VmHWM), of the whole process and since the
load; the checkpoint's mapped pages count until they are dropped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import common

LENGTHS = (1024, 2048, 4096, 8192)
LIMIT_TOKENS, LIMIT_GB = 8192, 3.5  # for a whole process, at full size in bfloat16
CHUNK = 256
TASK = "retrieval.passage"
LANGUAGE = 1  # English
JOBS = ("encode", "encode_chunks")
Run = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--layers", type=int, default=common.FULL["layers"])
    parser.add_argument("--directory", type=Path, help="where to keep the checkpoint")
    parser.add_argument("--json", type=Path, help="write results to this file")
    parser.add_argument("--worker", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.directory, *args.lengths)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch)
        common.write_checkpoints(directory, args.layers, for_transformers=False)
        runs = [measure("encode", directory, length) for length in args.lengths]
        chunked = measure("encode_chunks", directory, max(args.lengths))
    report(runs, chunked, args)


def measure(job: str, directory: Path, length: int) -> Run:
    """Run a job in a process of its own, with an empty cache for compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["--worker", job, "--directory", directory, "--lengths", length]
        run = common.run_worker(__file__, *arguments, env={"JINA_JAX_CACHE": cache})
    print(f"{job}, {length} tokens: {run}", file=sys.stderr, flush=True)
    return run


def work(job: str, directory: Path, length: int) -> Run:
    """Load, make a text of exactly the given number of tokens, and embed it twice."""
    from jina_jax import JinaEmbeddings

    model = JinaEmbeddings.from_pretrained(directory / "published", compilation_cache=False)
    text = text_of(model.tokenizer, length)
    loaded = common.peak_gb()
    common.forget_peak()
    options = {"task": TASK, "prompt": None}
    start, vectors = time.perf_counter(), 1
    for again in (False, True):
        if job == "encode":
            _, info = model.encode([text], return_info=True, **options)
            assert (info.tokens[0], info.dropped[0]) == (length, 0), info
        else:
            vectors = len(model.encode_chunks(text, CHUNK, **options).spans)
        if not again:
            first = time.perf_counter()
    found: Run = {"tokens": length, "vectors": vectors}
    found |= {"first s": first - start, "again s": time.perf_counter() - first}
    peak = common.peak_gb()
    return {**found, "peak from load GB": peak, "peak GB": max(loaded, peak)}


def text_of(tokenizer, length: int) -> str:
    """Return sentences that make ``length`` tokens, ``<s>`` and ``</s>`` included."""
    english = common.corpus()[LANGUAGE]
    text = common.passage(english, 1.5 * length, random.Random(0))
    _, offsets = tokenizer.encode_with_offsets(text)
    # Cut after a token; the middle of a word may then be split in another way.
    for last in range(length - 2, 0, -1):
        shorter = text[: offsets[last][1]]
        if len(tokenizer.encode([shorter])[0]) == length:
            return shorter
    raise AssertionError(f"no cut makes {length} tokens")


def report(runs: list[Run], chunked: Run, args: argparse.Namespace) -> None:
    """Print growth, limit and late chunking, and write them."""
    packages = ("jax", "jaxlib", "flax")
    print(common.header(*packages))
    print(f"{args.layers} layers, bfloat16, one text, {TASK}\n")
    heads = ["", *runs[0], "time / the row before"]
    rows = [["encode", *run.values(), None] for run in runs]
    for row, before, run in zip(rows[1:], runs, runs[1:], strict=False):
        row[-1] = run["again s"] / before["again s"]
    rows.append([f"encode_chunks, by {CHUNK}", *chunked.values(), None])
    print(common.table(heads, rows))
    if runs[-1]["tokens"] == LIMIT_TOKENS:
        kept = "kept" if runs[-1]["peak GB"] <= LIMIT_GB else "missed"
        print(f"\n{LIMIT_TOKENS} tokens: {runs[-1]['peak GB']:.2f} GB, limit {LIMIT_GB} GB, {kept}")
    if args.json:
        found = {"machine": common.machine(), "versions": common.versions(*packages)}
        found |= {"layers": args.layers, "encode": runs, "encode_chunks": chunked}
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
