"""Checkpoints of a run, written by Orbax: trained parameters, optimizer, position in the data.

A checkpoint appears under its name when it is complete. The base model is not copied: a run keeps
its name and a hash of its files. Parameters are saved layer by layer, so that a run whose layers
are stacked (``scan_layers``) can be resumed without, and the reverse.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.nn.parameters import is_stacked, stack_layers, unstack_layers
from jina_jax.training.state import TrainState

_T = TypeVar("_T")
_SCORE = "score"
_STRAGGLERS_SECONDS = 0.5


class RunCheckpoints:
    """The checkpoints of one run: the latest, and the best by the score of its evaluation.

    Args:
      directory: created if missing.
      keep: how many of the latest to keep.
      read_only: neither create nor remove anything, since another process may be saving.

    Raises:
      CheckpointError: if a score cannot be read.
    """

    def __init__(self, directory: Path, keep: int = 2, *, read_only: bool = False):
        self.directory = directory.resolve()
        self._check_scores()
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[_SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(
                        [policies.LatestN(keep), best]
                    ),
                    best_fn=lambda metrics: metrics[_SCORE],
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,
                    read_only=read_only,  # neither creates nor cleans up anything
                ),
            )

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        with _quiet():
            self._manager.reload()
            return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The last of ``steps``."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the highest score; None if none was evaluated."""
        with _quiet():
            return self._manager.best_step()

    def save(self, state: TrainState, score: float | None) -> None:
        """Save a checkpoint.

        Args:
          state: of the run.
          score: of an evaluation at this step, which may make it the best.

        Raises:
          CheckpointError: if it cannot be written, for instance to a full disk; earlier ones stay.
        """
        # To the host first: Orbax would cut arrays on several devices into slices, by programs of
        # their own that wait for the same threads as the step before.
        host = jax.device_get((state.trained, state.opt_state))
        trained, opt_state = _over_layers(unstack_layers, host)
        items = ocp.args.Composite(
            trained=ocp.args.StandardSave(trained),
            optimizer=ocp.args.StandardSave(opt_state),
            sampler=ocp.args.JsonSave(state.sampler),
        )
        before = self.latest
        metrics = None if score is None else {_SCORE: score}
        _attempt(
            lambda: self._manager.save(state.step, args=items, metrics=metrics, force=True),
            lambda error: self._unwritten(state.step, before, error),
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Read a checkpoint.

        Args:
          step: one of ``steps``.
          like: a state whose arrays have the shapes, dtypes and devices to read into.

        Raises:
          CheckpointError: if it is damaged or of another run.
        """
        target = (like.trained, like.opt_state)
        empty = jax.tree.map(lambda array: np.empty(array.shape, array.dtype), target)
        trained, opt_state = _over_layers(unstack_layers, empty)
        found = self._read(
            step,
            trained=ocp.args.StandardRestore(trained),
            optimizer=ocp.args.StandardRestore(opt_state),
            sampler=ocp.args.JsonRestore(),
        )
        host = (found["trained"], found["optimizer"])
        if jax.tree.map(np.shape, host) != jax.tree.map(np.shape, (trained, opt_state)):
            raise self._damaged(step, ValueError("expected arrays of the shapes of this run"))
        if any(map(is_stacked, like.trained)):
            host = _over_layers(stack_layers, host)
        placed = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), host, target)
        return like._replace(
            step=step, trained=placed[0], opt_state=placed[1], sampler=found["sampler"]
        )

    def trained(self, step: int) -> dict[str, np.ndarray]:
        """Read the trained parameters by path, those of layers one by one.

        Raises:
          CheckpointError: if the checkpoint is damaged.
        """
        folder = self.directory / str(step) / "trained"

        def empty() -> dict[str, np.ndarray]:
            saved = ocp.StandardCheckpointHandler().metadata(folder).tree
            return {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in saved.items()}

        # Without arrays to read into, Orbax asks for the devices of the run.
        arrays = _attempt(empty, lambda error: self._damaged(step, error))
        return self._read(step, trained=ocp.args.StandardRestore(arrays))["trained"]

    def _read(self, step: int, **items: Any) -> Any:
        return _attempt(
            lambda: self._manager.restore(step, args=ocp.args.Composite(**items)),
            lambda error: self._damaged(step, error),
        )

    def _unwritten(self, step: int, before: int | None, error: Exception) -> CheckpointError:
        for partial in self.directory.glob(f"{step}.*tmp*"):
            shutil.rmtree(partial, ignore_errors=True)
        last = "there is none before" if before is None else f"the last good one is of {before}"
        return CheckpointError(
            f"{self.directory}: the checkpoint of step {step} could not be written; {last} "
            f"({_first_line(error)})"
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
        """Release Orbax's resources."""
        with _quiet():
            self._manager.close()


def _numbers(directory: Path) -> list[int]:
    """List the steps that have a directory."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def _over_layers(change: Callable[[dict], dict], tree: _T) -> _T:
    """Apply a function to each dict by path in a tree."""
    return jax.tree.map(
        lambda part: change(part) if isinstance(part, dict) else part,
        tree,
        is_leaf=lambda part: isinstance(part, dict),
    )


def _attempt(work: Callable[[], _T], describe: Callable[[Exception], CheckpointError]) -> _T:
    """Call Orbax, and make one error of the many kinds that it raises."""
    with _quiet() as dropped:
        try:
            return work()
        except Exception as error:
            failed = describe(error)
        _wait_for_stragglers(dropped)  # once the error, which holds their coroutines, is freed
    raise failed


def _wait_for_stragglers(dropped: list[str]) -> None:
    """Let the other reads or writes of a failed call fail while their errors are dropped.

    Orbax raises at the first error, without a handle to wait for the rest: TensorStore's threads
    then report to an event loop that is closed, and unfinished coroutines complain when freed. All
    is over when a while has passed without a further error.
    """
    known = -1
    while len(dropped) > known:
        known = len(dropped)
        time.sleep(_STRAGGLERS_SECONDS)
        gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Drop what Orbax logs and what its threads print, and leave the process as it was.

    Orbax logs each of its steps, and each error once per thread; errors in threads and finalisers
    cannot be caught, and Python would print them.
    """

    dropped: list[str] = []

    def drop(event: Any) -> None:
        if issubclass(event.exc_type, KeyboardInterrupt):
            previous(event)
        dropped.append(event.exc_type.__name__)

    def passes(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "never retrieved" not in record.getMessage()

    previous, sys.unraisablehook = sys.unraisablehook, drop
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield dropped
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
        sys.unraisablehook = previous


def _first_line(error: Exception) -> str:
    """Shorten a message to what is wrong, without TensorStore's page of details in brackets."""
    line = next(iter(str(error).strip().splitlines()), "")
    line = line.partition(" [")[0]
    # The reason is at its end, behind the names of all files concerned.
    shown = line if len(line) <= 500 else f"{line[:200]} … {line[-250:]}"
    return f"{type(error).__name__}: {shown}"
