"""Checkpoints of a run, by Orbax: what is trained, the optimizer, and where the data stand.

A checkpoint appears under its name when it is complete. The base model is not copied: a run keeps
its name and a hash of its files.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jina_jax.checkpoints.tensors import CheckpointError

_T = TypeVar("_T")
_SCORE = "score"
_HASHED = (".json", ".safetensors", ".bin")


class RunCheckpoints:
    """The checkpoints of one run: the latest, and the best by the score of its evaluation.

    Args:
      directory: made if it is not there.
      keep: how many of the latest to keep.
      read_only: make and remove nothing: another process may be saving.

    Raises:
      CheckpointError: if a score cannot be read.
    """

    def __init__(self, directory: Path, keep: int = 2, *, read_only: bool = False):
        self.directory = directory.resolve()
        self._check_scores()
        # Orbax tells each of its steps, and what goes wrong once for each thread.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[_SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                best_fn=lambda metrics: metrics[_SCORE],
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                read_only=read_only,  # neither makes nor cleans up anything
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that there are complete checkpoints of, ascending."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The last of ``steps``."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the highest score; None if none was evaluated."""
        return self._manager.best_step()

    def save(
        self, step: int, trained: Any, opt_state: Any, state: Mapping[str, Any], score: float | None
    ) -> None:
        """Save a checkpoint.

        Args:
          step: steps done.
          trained: parameters by path.
          opt_state: of the optimizer.
          state: JSON values: where the data stand.
          score: of an evaluation at this step, which may make it the best.

        Raises:
          CheckpointError: if it cannot be written, for instance to a full disk; those before stay.
        """
        # To the host first: Orbax would cut arrays on several devices into slices, by programs of
        # their own that wait for the same threads as the step before.
        trained, opt_state = jax.device_get((trained, opt_state))
        items = ocp.args.Composite(
            trained=ocp.args.StandardSave(trained),
            optimizer=ocp.args.StandardSave(opt_state),
            state=ocp.args.JsonSave(dict(state)),
        )
        before = self.latest
        metrics = None if score is None else {_SCORE: score}

        def unwritten(error: Exception) -> CheckpointError:
            for partial in self.directory.glob(f"{step}.*tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            last = "there is none before" if before is None else f"the last good one is of {before}"
            return CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written; {last} "
                f"({_first_line(error)})"
            )

        _attempt(
            lambda: self._manager.save(step, args=items, metrics=metrics, force=True), unwritten
        )

    def restore(self, step: int, trained: Any, opt_state: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Read a checkpoint.

        Args:
          step: one of ``steps``.
          trained, opt_state: arrays of the shapes, dtypes and places to read into.

        Returns:
          Trained parameters, optimizer state, and the JSON values.

        Raises:
          CheckpointError: if it is damaged or of another run.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (trained, opt_state))
        found = self._read(
            step,
            trained=ocp.args.StandardRestore(abstract[0]),
            optimizer=ocp.args.StandardRestore(abstract[1]),
            state=ocp.args.JsonRestore(),
        )
        return found["trained"], found["optimizer"], found["state"]

    def trained(self, step: int) -> dict[str, np.ndarray]:
        """Read what was trained on whatever devices. Raises ``CheckpointError`` if damaged."""
        folder = self.directory / str(step) / "trained"

        def places() -> dict[str, np.ndarray]:
            saved = ocp.StandardCheckpointHandler().metadata(folder).tree
            return {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in saved.items()}

        # Without arrays to read into, Orbax asks for the devices of the run.
        arrays = _attempt(places, lambda error: self._damaged(step, error))
        return self._read(step, trained=ocp.args.StandardRestore(arrays))["trained"]

    def _read(self, step: int, **items: Any) -> Any:
        return _attempt(
            lambda: self._manager.restore(step, args=ocp.args.Composite(**items)),
            lambda error: self._damaged(step, error),
        )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        others = [other for other in _numbers(self.directory) if other != step]
        hint = f"; remove it to go on from {others[-1]}" if others else ""
        return CheckpointError(
            f"{self.directory / str(step)}: the checkpoint cannot be read{hint} "
            f"({_first_line(error)})"
        )

    def _check_scores(self) -> None:
        """Refuse a score that Orbax would stumble over."""
        for step in _numbers(self.directory):
            path = self.directory / str(step) / "metrics" / "metrics"
            try:
                if path.exists():
                    json.loads(path.read_bytes())
            except ValueError as error:
                raise self._damaged(step, error) from error

    def close(self) -> None:
        """Let go of the directory."""
        self._manager.close()


def _numbers(directory: Path) -> list[int]:
    """List the steps that there are directories of."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def _attempt(work: Callable[[], _T], describe: Callable[[Exception], CheckpointError]) -> _T:
    """Call Orbax, which raises many kinds of errors and lets its threads print some more."""
    with _quiet():
        try:
            return work()
        except Exception as error:
            failed = describe(error)
        # Here, where they are not heard: other arrays that fail, and errors that nobody asked for.
        time.sleep(0.2)
        gc.collect()
    raise failed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop errors that Python would print, since nobody can catch them."""

    def drop(event: Any) -> None:
        if issubclass(event.exc_type, KeyboardInterrupt):
            previous(event)

    previous, sys.unraisablehook = sys.unraisablehook, drop
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _first_line(error: Exception) -> str:
    """Say what is wrong, without the page of details that TensorStore puts in brackets."""
    line = next(iter(str(error).strip().splitlines()), "")
    line = line.partition(" [")[0]
    # What is wrong stands at its end, behind the names of all files that are concerned.
    shown = line if len(line) <= 500 else f"{line[:200]} … {line[-250:]}"
    return f"{type(error).__name__}: {shown}"


def hash_of(directory: Path) -> str:
    """Return the SHA-256 of a model's config, weights, adapters and tokenizer."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in _HASHED and p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()} {digest}\n".encode())
    return total.hexdigest()
