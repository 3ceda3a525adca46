"""Small training runs: a tiny model, data of every kind, settings with few steps."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import write_tiny

from jina_jax.training.metrics import read_metrics
from jina_jax.training.run import METRICS
from jina_jax.training.settings import Settings
from jina_jax.training.trainer import Trainer

ROWS = 8
RATES = ("steps_per_second", "tokens_per_second")
PAIRS = {"paths": ["pairs.jsonl"], "kind": "pairs", "loss": {"name": "info_nce"}}


@pytest.fixture(scope="module", autouse=True)
def quick_compiling():
    """Compile in half the time, programs that take longer to run; for files that import this."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write_data(directory: Path) -> Path:
    """Write a model and ROWS rows of each kind; all texts are of one length, so of one shape."""
    write_tiny(directory / "model")
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(rng.choice(list("abcdefghij"), 12))

    def rows(name: str, lines) -> None:
        (directory / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    pairs = [{"anchor": text(), "positive": text()} for _ in range(ROWS)]
    rows("pairs.jsonl", map(json.dumps, pairs))
    rows("triplets.jsonl", (json.dumps({**p, "negative": [text(), text()]}) for p in pairs))
    scores = rng.permutation(ROWS)
    rows("scored.csv", (f"{p['anchor']},{p['positive']},{scores[i]}" for i, p in enumerate(pairs)))
    rows("labelled.csv", ["text,label", *(f"{text()},{'xyzw'[i % 4]}" for i in range(4 * ROWS))])
    rows("texts.txt", (text() for _ in range(ROWS)))
    np.save(directory / "teacher.npy", rng.standard_normal((ROWS, 80)).astype(np.float32))
    return directory


def settings(root: Path, output: str, data=(PAIRS,), *, steps: int = 4, **sections) -> Settings:
    """Make settings; paths are relative to ``root``, sections are joined with the usual ones."""
    data = [{**source, "paths": [str(root / path) for path in source["paths"]]} for source in data]
    for source in data:
        if "teacher" in source:
            source["teacher"] = str(root / source["teacher"])
    usual = {
        "model": {"name": str(root / "model"), "tasks": ["text-matching"], "max_length": 128},
        "optimizer": {"learning_rate": 1e-2, "steps": steps},
        "batches": {"size": ROWS},
        "log": {"every": 1, "save_every": 2},
    }
    joined = {
        name: {**usual.get(name, {}), **fields} if isinstance(fields, dict) else fields
        for name, fields in {**usual, **sections}.items()
    }
    return Settings.from_dict({"output": str(root / output), "data": data, **joined})


def train(wanted: Settings, **options) -> Trainer:
    """Train to the end."""
    trainer = Trainer(wanted, **options)
    trainer.fit()
    return trainer


def reported(run: Path) -> list[dict]:
    """Read the metrics, without what depends on the clock."""
    lines = read_metrics(run / METRICS)
    return [{key: line[key] for key in line if key not in RATES} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in reported(run) if "loss" in line]
