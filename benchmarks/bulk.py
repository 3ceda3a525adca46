"""Bulk jobs beside ``encode``, beside peers, and at scale.

    python benchmarks/bulk.py                            # tiny
    python benchmarks/bulk.py --layers 6                 # a random model of full width
    python benchmarks/bulk.py --sections peers --layers 6 --peer VENV/bin/python
    python benchmarks/bulk.py --sections memory --rows 10000000

The section ``memory`` has a stub in place of the device, which returns the same vectors for every
step: it measures reading, tokenising, packing and writing, and no network.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SECTIONS = ("rate", "overhead", "memory", "peers")
USUAL = SECTIONS[:2]
TASK = "retrieval.passage"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(USUAL))
    parser.add_argument("--layers", type=int, default=0, help="0: tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=4096, help="of the sections rate and peers")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the section memory")
    parser.add_argument("--peer", type=Path, help="Python with ray and sentence-transformers")
    parser.add_argument("--directory", type=Path, help="where to keep the checkpoint")
    parser.add_argument("--json", type=Path, help="write results to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        found = {name: getattr(bench, name)() for name in args.sections}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(common.header("jax", "jaxlib", "pyarrow", "fsspec"))
    rows = [[name, key, value] for name, own in found.items() for key, value in own.items()]
    print(common.table(["section", "figure", "value"], rows))


class Bench:
    """The sections, each of which returns figures by name."""

    def __init__(self, args: argparse.Namespace, scratch: Path):
        self.args, self.scratch = args, scratch
        self.directory = self._directory()
        self.texts = common.log_normal_texts(args.texts, longest=2000)

    def rate(self) -> dict[str, Any]:
        """Rows per second of a job from Parquet to Parquet, over ``encode`` of the same texts."""
        from jina_jax.bulk import job

        path = self._write("texts", self.texts)
        settings = job.resolve(self.directory, text=["text"], id="id", tasks=[TASK])
        model = job.load(self.directory, settings)
        ratios = []
        for turn in range(self.args.rounds + 1):
            begun = time.perf_counter()
            model.encode(self.texts, task=TASK)
            middle = time.perf_counter()
            self._job(model, settings, path)
            if turn:
                ratios.append((middle - begun) / (time.perf_counter() - middle))
        return {
            "of the rate of encode, median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "texts per second of encode, last round": len(self.texts) / (middle - begun),
        }

    def overhead(self) -> dict[str, Any]:
        """Seconds per shard beside its texts, and of a process with one small shard."""
        from jina_jax.bulk import job

        texts = self.texts[:256]
        path = self._write("few", texts)
        settings = job.resolve(self.directory, text=["text"], id="id", tasks=[TASK])
        model = job.load(self.directory, settings)
        times = {}
        for shards in (1, 64):
            run = functools.partial(self._job, model, settings, path, len(texts) // shards)
            own = [common.seconds(run, 0) for _ in range(self.args.rounds + 1)]
            times[shards] = statistics.median(own[1:])
        command = [sys.executable, "-m", "jina_jax.cli", "bulk", str(path)]
        options = ["--text", "text", "--id", "id", "--model", str(self.directory)]
        starts = []
        for turn in range(4):
            output = self.scratch / f"start-{turn}"
            begun = time.perf_counter()
            subprocess.run([*command, str(output), *options], check=True, capture_output=True)
            starts.append(time.perf_counter() - begun)
        return {
            "per further shard (ms)": 1000 * (times[64] - times[1]) / 63,
            "a process with 256 texts, start to end, warm cache (s)": statistics.median(starts[1:]),
        }

    def memory(self) -> dict[str, Any]:
        """Resident memory after all rows over that after a tenth; the device is a stub."""
        from jina_jax.bulk import job

        path = self.scratch / "short.parquet"
        _write_short(path, self.args.rows)
        settings = job.resolve(
            self.directory, text=["text"], id="id", kind="ubinary", truncate_dim=64
        )
        model = job.load(self.directory, settings)
        _without_device(model)
        sizes: dict[int, float] = {}
        done = 0

        def report(progress: Any) -> None:
            nonlocal done
            done += progress.rows
            for part in (10, 1):
                if done >= self.args.rows // part:
                    sizes.setdefault(part, _resident_mb())

        begun = time.perf_counter()
        self._job(model, settings, path, report=report)
        return {
            "rows": self.args.rows,
            "after a tenth (MB)": sizes[10],
            "ratio": sizes[1] / sizes[10],
            "rows per second, device a stub": self.args.rows / (time.perf_counter() - begun),
        }

    def peers(self) -> dict[str, Any]:
        """Rows per second over those of ``bulk_peers.py``, with the same weights."""
        if not (self.args.peer and self.args.layers):
            sys.exit("The section peers needs --peer and --layers.")
        from jina_jax.bulk import job

        path = self._write("texts", self.texts)
        script = Path(__file__).with_name("bulk_peers.py")
        theirs = self.directory.with_name("transformers")
        settings = job.resolve(self.directory, text=["text"], id="id")
        model = job.load(self.directory, settings)
        self._job(model, settings, path)
        ratios: dict[str, list[float]] = {}
        for _ in range(self.args.rounds):
            ours = common.seconds(lambda: self._job(model, settings, path), 0)
            done = subprocess.run(
                [self.args.peer, script, theirs, path, self.scratch / "peer"],
                check=True,
                capture_output=True,
                text=True,
            )
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                ratios.setdefault(name, []).append(seconds / ours)
        return {f"times {name}, median": statistics.median(own) for name, own in ratios.items()}

    def _directory(self) -> Path:
        if not self.args.layers:
            from jina_jax.checkpoints.hub import fetch

            return fetch("tiny")
        directory = self.args.directory or self.scratch
        common.write_checkpoints(directory, self.args.layers, vocab=30_000, for_transformers=True)
        return directory / "published"

    def _write(self, name: str, texts: list[str]) -> Path:
        path = self.scratch / f"{name}.parquet"
        table = pa.table({"id": [f"row-{i}" for i in range(len(texts))], "text": texts})
        pq.write_table(table, path)
        return path

    def _job(
        self, model: Any, settings: Any, path: Path, rows: int = 100_000, report: Any = None
    ) -> None:
        from jina_jax.bulk import job
        from jina_jax.bulk.stores import Store

        output = self.scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
        store = Store(str(output))
        plan = job.plan([str(path)], store, settings, self.directory, name="model", shard_rows=rows)
        job.work(model, plan, store, job.own_shards(plan, store), report or (lambda _: None))


def _write_short(path: Path, rows: int) -> None:
    """Write rows of two to five words."""
    words = [word for text in itertools.chain(*common.corpus()) for word in text.split()][:20_000]
    draw = np.random.default_rng(0)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 500_000):
            count = min(500_000, rows - start)
            picked = draw.integers(0, len(words), (count, 3))
            texts = [" ".join(words[k] for k in row) for row in picked.tolist()]
            ids = np.arange(start, start + count)
            writer.write_table(pa.table({"id": ids, "text": texts}, schema))


def _without_device(model: Any) -> None:
    """Let steps have the same vectors, of the right shape, without computing anything."""
    width = model.config.hidden_size

    def run(steps: Any, in_flight: int = 0) -> Iterator[tuple[Any, np.ndarray]]:
        for step in steps:
            if step is not None:
                rows, slots = step.batch.text_spans.shape[:2]
                yield step, np.ones((rows, slots, width), np.float32)

    model.engine.run = run


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
