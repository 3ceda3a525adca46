"""A run's directory: settings, the base model's reference, metrics, checkpoints.

settings.json   the settings, checked
base.json       name, revision and hash of the base model
bad_rows.txt    skipped rows, by file and line
metrics.jsonl   losses of each interval and results of each evaluation
checkpoints/    by step
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jina_jax.checkpoints.hashing import hash_of
from jina_jax.checkpoints.hub import fetch
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.convert import Checkpoint, add_task, open_checkpoint, with_adapters, with_weights
from jina_jax.files import read_json, write_json
from jina_jax.nn.parameters import is_adapter, to_checkpoint
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.settings import Model, Settings, SettingsError

SETTINGS, BASE, METRICS, CHECKPOINTS = "settings.json", "base.json", "metrics.jsonl", "checkpoints"
BAD_ROWS = "bad_rows.txt"
# Settings that a resumed run may change: they do not change its results.
_FREE = ("output", "log", "model.scan_layers")


def open_base(model: Model, seed: int) -> Checkpoint:
    """Open the model that training starts from, with its new tasks.

    Raises:
      ValueError: if it cannot be used, or a new task is there already.
      FileNotFoundError: if there is no such model.
    """
    checkpoint = open_checkpoint(fetch(model.name, revision=model.revision))
    for task in model.new_tasks:
        checkpoint = add_task(
            checkpoint, task.name, copy_of=task.copy_of, prompt=task.prompt, seed=seed
        )
    return checkpoint


def start(settings: Settings, base: Checkpoint, *, resume: bool) -> None:
    """Make a run's directory, or check that the resumed run is the same.

    Raises:
      FileExistsError: for a run that is not to be resumed, or other files.
      SettingsError: if it was started with other settings.
      ValueError: if the directory is in the model's, whose files must stay as they are.
      CheckpointError: if the base model's files have changed.
    """
    directory = settings.output
    if (directory / SETTINGS).exists():
        if not resume:
            raise FileExistsError(
                f"{directory}: has a run already: resume it (--resume), or name another"
            )
        _check_same(read_json(directory / SETTINGS), settings.to_dict(), directory)
        _check_base(directory, base)
        return
    partial = directory / f".{SETTINGS}.partial"
    # Files of an interrupted start are overwritten.
    if directory.exists() and set(directory.iterdir()) - {directory / BASE, partial}:
        raise FileExistsError(f"{directory}: expected a new directory, or that of a run")
    if directory.resolve().is_relative_to(base.directory.resolve()):
        raise ValueError(f"output={str(directory)!r}: expected a directory outside of the model's")
    directory.mkdir(parents=True, exist_ok=True)
    model = settings.model
    reference = {"name": model.name, "revision": model.revision, "sha256": hash_of(base.directory)}
    write_json(directory / BASE, reference)
    # Last, and atomically: it makes the directory a run.
    write_json(partial, settings.to_dict())
    partial.rename(directory / SETTINGS)


def load_run(directory: str | Path, step: int | None = None) -> Checkpoint:
    """Open the trained model of a run as a checkpoint, to write or to load.

    Args:
      directory: of the run.
      step: of the checkpoint; None for the best evaluated one, else the latest.

    Raises:
      CheckpointError: if there is no such checkpoint, it is damaged, or the base has changed.
      FileNotFoundError: if it is not a run, or its base is missing.
    """
    directory = Path(directory)
    if not (directory / SETTINGS).exists():
        raise FileNotFoundError(f"{directory}: expected the directory of a run, with {SETTINGS}")
    settings = Settings.from_dict(read_json(directory / SETTINGS), str(directory / SETTINGS))
    store = RunCheckpoints(directory / CHECKPOINTS, read_only=True)
    if step is None:
        step = store.latest if store.best is None else store.best
    if step not in store.steps:
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"{directory}: {wanted}; there are {store.steps or 'none'}")
    base = open_base(settings.model, settings.seed)
    _check_base(directory, base)
    return with_trained(base, settings.model.tasks, store.trained(step))


def with_trained(base: Checkpoint, tasks: tuple[str, ...], arrays: Mapping[str, Any]) -> Checkpoint:
    """Put trained parameters, of single or stacked layers, into the base."""
    found = to_checkpoint(arrays)
    adapters = {path: array for path, array in found.items() if is_adapter(path)}
    weights = {path: found[path] for path in found.keys() & base.tensors.keys() - adapters.keys()}
    checkpoint = with_adapters(base, tasks, adapters) if tasks else base
    return with_weights(checkpoint, weights) if weights else checkpoint


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    old, new = _flat(before), _flat(now)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if changed:
        lines = "\n  ".join(
            f"{name}: was {old.get(name)!r}, is {new.get(name)!r}" for name in changed
        )
        raise SettingsError(f"{directory}: the run was started with other settings:\n  {lines}")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """List values by their path, without those that a resumed run may change."""
    if prefix in _FREE:
        return {}
    if isinstance(values, Mapping):
        parts = [(f"{prefix}.{k}".lstrip("."), v) for k, v in values.items()]
    elif isinstance(values, list):
        parts = [(f"{prefix}[{i}]", v) for i, v in enumerate(values)]
    else:
        return {prefix: values}
    return {path: value for name, part in parts for path, value in _flat(part, name).items()}


def _check_base(directory: Path, base: Checkpoint) -> None:
    expected, found = read_json(directory / BASE)["sha256"], hash_of(base.directory)
    if found != expected:
        raise CheckpointError(
            f"{base.directory}: not the files that the run {directory} started from: expected "
            f"SHA-256 {expected}, got {found}"
        )
