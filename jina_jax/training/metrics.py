"""Metrics of a run: a file of JSON lines, and the interval of steps behind each line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jina_jax.training.collate import StepInputs
from jina_jax.training.step import StepResult


class TrainingError(ValueError):
    """A run that cannot continue."""


class Metrics:
    """metrics.jsonl: one JSON object per line, appended.

    Args:
      path: of the file.
      step: steps done; lines of later steps, left by an interrupted run, are removed. At 0 all
        are.
    """

    def __init__(self, path: Path, step: int):
        self._path = path
        kept = [line for line in read_metrics(path) if step and line["step"] <= step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        partial.replace(path)

    def evaluation(self, step: int) -> dict[str, float]:
        """Return the metrics of the evaluation at a step; {} if there was none."""
        lines = [line for line in read_metrics(self._path) if line["step"] == step]
        return next((line["evaluation"] for line in lines if "evaluation" in line), {})

    def write(self, **values: Any) -> None:
        """Append a line; it is on disk on return."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(values))
            file.flush()
            os.fsync(file.fileno())


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl, without an incomplete last line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class Interval:
    """The steps since the last line of metrics."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._results: list[tuple[str, StepResult]] = []
        self._tokens = self._dropped = 0
        self._padding: list[float] = []

    def add(self, source: str, inputs: StepInputs, result: StepResult) -> None:
        """Add a step, which may still be running."""
        self._results.append((source, result))
        self._tokens += inputs.tokens
        self._dropped += inputs.dropped
        self._padding.append(inputs.micro_batches.padding)

    def _check(self, step: int) -> None:
        """Wait for the steps up to this one, and refuse a loss or gradient that is not finite.

        A non-finite gradient has already corrupted the parameters, even after a finite loss.
        """
        for number, (name, result) in enumerate(self._results, step - len(self._results) + 1):
            loss, norm = float(result.loss), float(result.grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {number}: the loss of {name} is {loss}, its gradient's norm {norm}; "
                    f"{_not_finite(result.grad_norms)}; try a lower learning rate"
                )

    def summary(self, step: int) -> dict[str, Any]:
        """Wait for the steps up to this one, and return means and rates over the interval.

        Raises:
          TrainingError: if a loss or gradient is not finite.
        """
        self._check(step)
        by_source: dict[str, list[float]] = {}
        for name, result in self._results:
            by_source.setdefault(name, []).append(float(result.loss))
        seconds = time.perf_counter() - self._start
        return {
            "loss": float(np.mean([loss for losses in by_source.values() for loss in losses])),
            "losses": {name: float(np.mean(losses)) for name, losses in by_source.items()},
            "grad_norm": float(np.mean([float(result.grad_norm) for _, result in self._results])),
            "steps_per_second": len(self._results) / seconds,
            "tokens_per_second": self._tokens / seconds,
            "padding": float(np.mean(self._padding)),
            "dropped_tokens": self._dropped,
        }


def _not_finite(grad_norms: Mapping[str, jax.Array]) -> str:
    """Name the parameters whose gradients are not finite, the first five of many."""
    paths = [path for path, norm in grad_norms.items() if not math.isfinite(norm)]
    names = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
    count = f"not finite in {len(paths)} of {len(grad_norms)} parameters"
    return f"{count}: {names}" if paths else count
