"""Throughput on a CPU, compared with the common other routes (``peers.py``).

    python benchmarks/cpu.py                          # 6 of 24 layers, a table
    python benchmarks/cpu.py --layers 24 --peers transformers-bfloat16
    python benchmarks/cpu.py --sections threads --peers jina_jax-bfloat16 --rounds 15
    python benchmarks/cpu.py --plot growth.png        # growth of cost with length, batch, cores

All routes share one process and alternate in every round; a cell is the median of the rounds.
Weights are random, in the published layout, base model; texts are real (``common.py``). GF/s count
604.0 MFLOP per token and 98,304 · T for attention at 24 layers (a multiply-add is two), for tokens
that are not padding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import common
import numpy as np
import peers

OURS = ("jina_jax-bfloat16", "jina_jax-float32")
DENSE = ((8, 128), (2, 512), (32, 32))  # 1,024 tokens per step
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16)
THREADS = (2, 8)
CALLS = 16  # of all threads together
SECONDS = 0.7  # a measurement repeats a call for at least this long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*OURS, *peers.PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--texts", type=int, default=256, help="texts of mixed lengths")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to keep checkpoints")
    parser.add_argument("--plot", type=Path, help="measure growth and draw it here")
    parser.add_argument("--worker", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch)
        if args.worker:
            print(json.dumps(growth(args.worker, directory, args.layers)))
            return
        common.write_checkpoints(directory, args.layers, for_transformers=True)
        if args.plot:
            draw(args.plot, directory, args.layers)
            return
        routes = load(args.peers, directory)
        print(common.header("jax", *peers.PACKAGES))
        print(f"{args.layers} layers, medians of {args.rounds} alternating rounds\n")
        for section in args.sections:
            SECTIONS[section](routes, args)


def load(names: list[str], directory: Path) -> dict[str, peers.Peer]:
    """Load every available route; print what the others lack."""
    routes = {}
    for name in names:
        try:
            routes[name] = (
                ours(name, directory)
                if name in OURS
                else peers.PEERS[name](directory / "transformers")
            )
        except peers.Missing as reason:
            print(f"left out: {name}: {reason}")
    return routes


def ours(name: str, directory: Path) -> peers.Peer:
    """Load jina_jax as a route: ``forward`` pads, ``encode`` packs by default."""
    from jina_jax import JinaEmbeddings
    from jina_jax.runtime.engine import Step
    from jina_jax.runtime.packing import Batch

    model = JinaEmbeddings.from_pretrained(directory / "published", dtype=name.split("-")[1])

    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        rows = np.arange(len(input_ids))
        stops = attention_mask.sum(1)
        segments = np.stack([np.zeros_like(stops), stops], -1)[:, None].astype(np.int32)
        batch = Batch(rows, rows, np.zeros_like(rows), input_ids.astype(np.int32), segments)
        ((_, pooled),) = model.engine.run([Step(batch, "mean")])
        return pooled[:, 0]

    return peers.Peer(name, forward, lambda texts, batch_size: model.encode(texts))


def dense(routes: dict[str, peers.Peer], args) -> None:
    """Time the network alone on rows without padding."""
    columns = {}
    for rows, tokens in DENSE:
        ids = np.random.default_rng(0).integers(4, 2000, (rows, tokens))
        calls = {
            name: partial(route.forward, ids, np.ones_like(ids)) for name, route in routes.items()
        }
        work = common.flops(tokens, args.layers) * rows * tokens / 1e9
        seconds = alternate(calls, args.rounds)
        columns[f"{rows} x {tokens}"] = {name: work / s for name, s in seconds.items()}
    print_table("Dense, GF/s", columns)


def mixed(routes: dict[str, peers.Peer], args) -> None:
    """Time texts to vectors: mixed lengths, sentences, and one sentence alone."""
    cases = {
        "mixed lengths, texts/s": common.log_normal_texts(args.texts, longest=1024),
        "sentences, texts/s": common.sentences(3 * args.texts),
    }
    columns = {}
    for title, texts in cases.items():
        calls = {name: partial(route.encode, texts, 32) for name, route in routes.items()}
        seconds = alternate(calls, args.rounds)
        columns[title] = {name: len(texts) / s for name, s in seconds.items()}
    one = common.sentences(1)
    seconds = alternate(
        {name: partial(r.encode, one, 1) for name, r in routes.items()}, args.rounds
    )
    columns["one sentence, 1/s"] = {name: 1 / s for name, s in seconds.items()}
    print_table("Texts to vectors", columns)


def threads(routes: dict[str, peers.Peer], args) -> None:
    """Compare calls of several threads with the same calls one after the other: ratios of times."""
    sentences = common.sentences(64)
    cases = {"1 text": sentences[:1], "64 texts": sentences}
    rows: list[list[common.Cell]] = []
    for name, route in routes.items():
        row: list[common.Cell] = [name]
        for count in THREADS:
            with ThreadPoolExecutor(count) as pool:
                for texts in cases.values():
                    encode = partial(route.encode, texts, 32)
                    row.append(_slower(encode, pool, args.rounds))
        rows.append(row)
    heads = [f"{count} threads, {case}" for count in THREADS for case in cases]
    print(common.table(["Threads to none, times", *heads], rows) + "\n")


def _slower(encode: Callable[[], object], pool: ThreadPoolExecutor, rounds: int) -> float:
    """Return the time of ``CALLS`` calls in threads, relative to one after the other."""
    seconds = alternate(
        {
            "alone": lambda: [encode() for _ in range(CALLS)],
            "together": lambda: [
                done.result() for done in [pool.submit(encode) for _ in range(CALLS)]
            ],
        },
        rounds,
    )
    return seconds["together"] / seconds["alone"]


SECTIONS = {"dense": dense, "texts": mixed, "threads": threads}


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call; they alternate in every round."""
    for call in calls.values():  # compiles, and lets kernel libraries choose
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(common.seconds(call, SECONDS))
    return {name: statistics.median(found) for name, found in times.items()}


def print_table(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Print each route's rates, and their ratios to the best other route of the same precision."""
    heads = [title]
    for column in columns:
        heads += [column, "x float32", "x bfloat16"]
    rows = []
    for name in next(iter(columns.values())):
        row: list[common.Cell] = [name]
        for rates in columns.values():
            row.append(rates[name])
            for precision in ("float32", "bfloat16"):
                others = [r for n, r in rates.items() if precision in n and n not in OURS]
                row.append(rates[name] / max(others) if others else None)
        rows.append(row)
    print(common.table(heads, rows) + "\n")


def growth(name: str, directory: Path, layers: int) -> dict[str, list[float]]:
    """Measure one route: milliseconds per token by length, and per call by batch."""
    route = load([name], directory)[name]

    def milliseconds(rows: int, tokens: int) -> float:
        ids = np.random.default_rng(0).integers(4, 2000, (rows, tokens))
        call = partial(route.forward, ids, np.ones_like(ids))
        return 1000 * alternate({name: call}, 1)[name]

    return {
        "length": [milliseconds(max(1, 1024 // t), t) / (max(1024, t)) for t in LENGTHS],
        "batch": [milliseconds(rows, 128) for rows in BATCHES],
    }


def draw(path: Path, directory: Path, layers: int) -> None:
    """Measure and draw the growth of cost, one process per route, on one core and on all."""
    cores = sorted({1, len(os.sched_getaffinity(0))})
    found = {
        (name, count): on_cores(count, name, directory, layers)
        for name in ("jina_jax-bfloat16", "transformers-bfloat16")
        for count in cores
    }
    print(json.dumps({f"{name}, {count}": result for (name, count), result in found.items()}))
    plot(found, path, layers)


def plot(found: dict[tuple[str, int], dict[str, list[float]]], path: Path, layers: int) -> None:
    """Draw the results of ``growth``, by route and cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cores = [count for _, count in found]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (name, count), result in found.items():
        style = {"marker": "o", "linestyle": "-" if count == max(cores) else "--"}
        style |= {"color": "C0" if name.startswith("jina") else "C1"}
        label = f"{name}, {count} core" + "s" * (count > 1)
        axes[0].plot(LENGTHS, result["length"], label=label, **style)
        axes[1].plot(BATCHES, result["batch"], label=label, **style)
    for axis, ticks, label in zip(
        axes,
        (LENGTHS, BATCHES),
        ("tokens of a text (1,024 or more a step)", "texts of 128 tokens"),
        strict=True,
    ):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, ticks)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[1].set_yscale("log", base=2)
    axes[0].set_ylabel("ms per token")
    axes[1].set_ylabel("ms per step")
    axes[0].legend()
    figure.suptitle(f"{layers} layers, bfloat16, {common.processor()}")
    figure.savefig(path, dpi=130)


def on_cores(count: int, name: str, directory: Path, layers: int) -> dict[str, list[float]]:
    """Run ``growth`` in a process with the given number of cores."""
    command = [sys.executable, __file__, "--worker", name, "--layers", str(layers)]
    command += ["--directory", str(directory)]
    chosen = sorted(os.sched_getaffinity(0))[:count]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
