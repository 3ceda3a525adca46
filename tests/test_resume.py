"""Runs that are stopped and go on: to the bit as if they had never been stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import PAIRS, losses, reported, settings, train, write_data
from runs import quick_compiling as quick_compiling
from tiny import TINY, write_tiny

from jina_jax.checkpoints import hub
from jina_jax.checkpoints.hashing import hash_of
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.nn.parameters import unstack_layers
from jina_jax.runtime.sharding import make_mesh
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.metrics import Interval, Metrics, TrainingError, read_metrics
from jina_jax.training.run import BASE, CHECKPOINTS, METRICS, SETTINGS
from jina_jax.training.settings import Settings, SettingsError
from jina_jax.training.step import StepResult
from jina_jax.training.trainer import Trainer

STEPS = 8
# Two sources, dropout, batches that run over the ends of epochs, intervals of other lengths than
# those between checkpoints: all that a checkpoint must bring back.
OTHER = {**PAIRS, "weight": 0.5}
WANTED = {
    "data": (PAIRS, OTHER),
    "model": {"dropout": 0.1},
    "batches": {"size": 6},
    "log": {"every": 2, "save_every": 3},
    "steps": STEPS,
    "seed": 5,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(root):
    """A run that was never stopped."""
    train(settings(root, "whole", **WANTED))
    return root / "whole"


def stopped(wanted, step, **options):
    """Train, and be interrupted in the middle of a step."""
    trainer = Trainer(wanted, **options)
    run = trainer._run

    def interrupted(batch):
        if batch.step == step:
            raise KeyboardInterrupt
        return run(batch)

    trainer._run = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def assert_same(run: Path, expected: Path) -> None:
    """Compare metrics and the last checkpoint, bit for bit."""
    assert reported(run) == reported(expected)
    ours, theirs = (RunCheckpoints(p / CHECKPOINTS, read_only=True) for p in (run, expected))
    # One that was being removed when a run was killed may be left.
    assert ours.steps[-2:] == theirs.steps == [6, STEPS]
    found, wanted = ours.trained(STEPS), theirs.trained(STEPS)
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        assert array.tobytes() == wanted[path].tobytes(), path


def test_the_whole_run_draws_from_both_sources_and_repeats_rows(whole):
    names = {name for line in reported(whole) for name in line["losses"]}
    assert names == {"info_nce:pairs.jsonl#1", "info_nce:pairs.jsonl#2"}
    assert [line["step"] for line in reported(whole)] == [2, 3, 4, 6, 8]


def test_a_run_that_was_stopped_twice(root, whole):
    wanted = settings(root, "stopped", **WANTED)
    stopped(wanted, 6)
    assert RunCheckpoints(root / "stopped" / CHECKPOINTS, read_only=True).steps == [3]
    assert [line["step"] for line in reported(root / "stopped")] == [2, 3, 4]
    stopped(wanted, 8, resume=True)
    trainer = Trainer(wanted, resume=True)
    assert trainer.step == 6
    assert "6 of 8 done" in trainer.summary()
    trainer.fit()
    assert_same(root / "stopped", whole)


def test_a_run_that_was_stopped_before_its_first_checkpoint(root, whole):
    """It starts again, with the line of its first evaluation once."""
    evaluation = [{"kind": "sts", "paths": [str(root / "scored.csv")]}]
    wanted = settings(root, "early", **WANTED, evaluation=evaluation)
    stopped(wanted, 2)
    assert [line["step"] for line in reported(root / "early")] == [0]
    trainer = train(wanted, resume=True)
    lines = reported(root / "early")
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6, 8, 8]
    # Evaluations change nothing that is trained.
    assert [line for line in lines if "loss" in line] == reported(whole)
    np.testing.assert_array_equal(
        np.asarray(trainer.state.trained["layers.0.mlp.fc1.lora_b"]),
        RunCheckpoints(whole / CHECKPOINTS, read_only=True).trained(STEPS)[
            "layers.0.mlp.fc1.lora_b"
        ],
    )


def test_stacked_layers_have_the_same_losses_and_go_on_from_each_others_checkpoints(root, tmp_path):
    write_tiny(tmp_path / "deep", {**TINY, "layers": 2})
    alone = make_mesh(devices=jax.devices()[:1])

    def trainer(output, scan_layers, **options):
        model = {"name": str(tmp_path / "deep"), "dropout": 0.1, "scan_layers": scan_layers}
        return Trainer(settings(root, tmp_path / output, model=model), mesh=alone, **options)

    trainer("single", False).fit()
    shutil.copytree(tmp_path / "single", tmp_path / "stacked")
    shutil.rmtree(tmp_path / "stacked" / CHECKPOINTS / "4")
    stacked = trainer("stacked", True, resume=True)
    assert stacked.step == 2
    assert "layers.mlp.fc1.lora_a" in stacked.state.trained
    saved = RunCheckpoints(tmp_path / "single" / CHECKPOINTS, read_only=True).trained(2)
    assert_equal_arrays(unstack_layers(stacked.state.trained), saved)
    stacked.fit()
    np.testing.assert_allclose(*(losses(tmp_path / name) for name in ("stacked", "single")), 1e-5)
    assert len(set(losses(tmp_path / "single"))) == 4
    again = trainer("stacked", False, resume=True)
    assert again.state.sampler == stacked.state.sampler
    for found, expected in zip(*map(by_path, (again.state, stacked.state)), strict=True):
        assert_equal_arrays(found, unstack_layers(expected))


def by_path(state):
    """List all dicts by path: trained parameters and two moments of each."""
    leaves = jax.tree.leaves(state[1:3], is_leaf=lambda part: isinstance(part, dict))
    found = [part for part in leaves if isinstance(part, dict)]
    assert len(found) == 3
    return found


def assert_equal_arrays(found, expected):
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_a_run_that_is_done_stays_as_it_is(root, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert train(settings(root, "whole", **WANTED), resume=True).step == STEPS
    after = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert before == after


# --- Refusals


def test_a_directory_with_a_run_needs_resume(root, whole):
    with pytest.raises(FileExistsError, match="whole: has a run already: resume it"):
        Trainer(settings(root, "whole", **WANTED))


def test_a_directory_with_other_files_is_refused(root, tmp_path):
    (tmp_path / "notes.txt").touch()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="expected a new directory, or that of a run"):
            Trainer(settings(root, tmp_path, **WANTED), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_start_left_that_was_interrupted_is_replaced(root, tmp_path):
    (tmp_path / BASE).write_text('{"na')
    (tmp_path / f".{SETTINGS}.partial").write_text('{"out')
    Trainer(settings(root, tmp_path, **WANTED))
    assert json.loads((tmp_path / BASE).read_text())["name"] == str(root / "model")
    assert {path.name for path in tmp_path.iterdir()} == {BASE, SETTINGS, METRICS, CHECKPOINTS}


def test_a_directory_in_the_models_is_refused(root):
    with pytest.raises(ValueError, match=r"output=.*: expected a directory outside of the model's"):
        Trainer(settings(root, "model/run", **WANTED))
    assert not (root / "model" / "run").exists()


def test_other_settings_are_named(root, whole):
    other = {**WANTED, "seed": 6, "data": (PAIRS, {**OTHER, "weight": 0.25})}
    other["optimizer"] = {"learning_rate": 0.5}
    wanted = settings(root, "whole", **other)
    with pytest.raises(SettingsError, match="started with other settings") as error:
        Trainer(wanted, resume=True)
    assert str(error.value).splitlines()[1:] == [
        "  data[1].weight: was 0.5, is 0.25",
        "  optimizer.learning_rate: was 0.01, is 0.5",
        "  seed: was 5, is 6",
    ]
    fewer = settings(root, "whole", **{**WANTED, "data": (PAIRS,)})
    with pytest.raises(SettingsError, match=r"data\[1\].weight: was 0.5, is None"):
        Trainer(fewer, resume=True)


def test_place_log_and_devices_may_change(root, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "moved")
    changed = {**WANTED, "log": {"every": 1, "save_every": 4, "keep": 7}}
    alone = make_mesh(devices=jax.devices()[:1])
    trainer = Trainer(settings(root, tmp_path / "moved", **changed), resume=True, mesh=alone)
    assert trainer.step == STEPS
    saved = RunCheckpoints(whole / CHECKPOINTS, read_only=True).trained(STEPS)
    for path, array in trainer.state.trained.items():
        assert array.sharding.device_set == {jax.devices()[0]}
        np.testing.assert_array_equal(array, saved[path])


def test_without_a_name_the_base_is_the_packaged_model_by_its_hash(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no directory is called tiny
    monkeypatch.setattr(hub, "PACKAGED", root / "model")
    values = settings(root, tmp_path / "run", **WANTED).to_dict()
    del values["model"]["name"]
    wanted = Settings.from_dict(values)
    stopped(wanted, 5)
    base = json.loads((tmp_path / "run" / BASE).read_text())
    assert base == {"name": "tiny", "revision": None, "sha256": hash_of(root / "model")}
    trainer = Trainer(wanted, resume=True)
    assert trainer.step == 3
    assert trainer.summary().startswith("model    tiny: ")
    shutil.copytree(root / "model", tmp_path / "other")
    (tmp_path / "other" / "gold.json").write_text("{}")
    monkeypatch.setattr(hub, "PACKAGED", tmp_path / "other")
    with pytest.raises(CheckpointError, match="other: not the files that the run"):
        Trainer(wanted, resume=True)


def test_a_base_that_has_changed_is_refused(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "model")
    fields = {**WANTED, "model": {"name": str(tmp_path / "model")}}
    Trainer(settings(root, tmp_path / "run", **fields))
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model: not the files that the run .*run started"):
        Trainer(settings(root, tmp_path / "run", **fields), resume=True)


def test_other_data_are_refused(root, tmp_path):
    rows = (root / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    fields = {**WANTED, "data": ({**PAIRS, "paths": [tmp_path / "pairs.jsonl"]},)}
    stopped(settings(root, tmp_path / "run", **fields), 4)
    (tmp_path / "pairs.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(ValueError, match="expected 7 rows, got 8"):
        Trainer(settings(root, tmp_path / "run", **fields), resume=True)


def test_a_torn_checkpoint_is_named_and_the_one_before_goes_on(root, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    latest = tmp_path / "run" / CHECKPOINTS / str(STEPS)
    (latest / "sampler" / "metadata").write_text('{"seed": 5, "batc')
    wanted = settings(root, tmp_path / "run", **WANTED)
    with pytest.raises(CheckpointError, match=rf"{STEPS}: .* remove it to go on from 6"):
        Trainer(wanted, resume=True)
    shutil.rmtree(latest)
    train(wanted, resume=True)
    assert_same(tmp_path / "run", whole)


# --- metrics.jsonl


def test_a_line_that_was_not_written_to_its_end_does_not_count(tmp_path):
    path = tmp_path / METRICS
    lines = [{"step": step, "losses": {"träning": 0.5}} for step in (0, 2, 4)]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    for torn in (b"", b'{"step": 6', '{"step": 6, "losses": {"ä'.encode()[:-1]):
        path.write_bytes(whole + torn)
        assert read_metrics(path) == lines
    Metrics(path, 2).write(step=3)
    assert read_metrics(path) == [*lines[:2], {"step": 3}]
    Metrics(path, 0)
    assert path.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_an_interval_with_a_number_that_is_not_finite(root, loss, norm):
    trainer = Trainer(settings(root, "interval", **WANTED), resume=True)
    inputs = next(trainer._batches()).inputs
    interval = Interval()
    interval.add("cosent:a", inputs, StepResult(np.float32(1), np.float32(1), {}))
    assert interval.summary(6)["losses"] == {"cosent:a": 1.0}
    norms = {"a": np.float32(1), "b": np.float32(norm), "c": np.float32(norm)}
    interval.add("cosent:b", inputs, StepResult(np.float32(loss), np.float32(norm), norms))
    where = "not finite in 2 of 3 parameters: b, c" if np.isnan(norm) else "in 0 of 3 parameters"
    with pytest.raises(
        TrainingError, match=rf"step 7: .* cosent:b is {loss}, .* {norm}; .*{where}"
    ):
        interval.summary(7)


# --- Kill -9


@pytest.fixture(scope="module")
def program(root, whole):
    """A file for `jina-jax train`, and the uninterrupted run of it."""
    wanted = settings(root, "killed", **WANTED)
    path = root / "killed.toml"
    path.write_text(as_toml(wanted))
    assert Settings.from_toml(path) == wanted
    return path


def as_toml(wanted: Settings) -> str:
    """Write settings as TOML, in inline tables: JSON but for its colons and nulls."""

    def value(item) -> str:
        if isinstance(item, dict):
            pairs = (f"{k} = {value(v)}" for k, v in item.items() if v is not None)
            return "{" + ", ".join(pairs) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    fields = wanted.to_dict()
    return "".join(f"{k} = {value(v)}\n" for k, v in fields.items() if v is not None)


def start(path: Path, output: Path) -> subprocess.Popen:
    """Start `jina-jax train --resume` in a process of its own, on as many devices as here."""
    code = "from jina_jax.cli.main import main; main(prog_name='jina-jax')"
    command = [sys.executable, "-c", code, "train", str(path), "--resume", "--output", str(output)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(path: Path, output: Path) -> None:
    process = start(path, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_when(process: subprocess.Popen, condition) -> bool:
    """Kill a process as soon as something is so; tell whether it was still running."""
    end = time.monotonic() + 300
    while process.poll() is None and not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def test_a_run_that_was_killed_while_saving(program, whole, tmp_path):
    output = tmp_path / "run"
    folder = output / CHECKPOINTS

    def is_saving_the_second() -> bool:
        return (folder / "3").exists() and any(p.name.startswith("6.") for p in folder.iterdir())

    assert kill_when(start(program, output), is_saving_the_second)
    assert RunCheckpoints(folder, read_only=True).steps in ([3], [3, 6])
    finish(program, output)
    assert_same(output, whole)
    assert {path.name for path in folder.iterdir()} == {"6", "8"}


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again(program, whole, tmp_path):
    """At random moments, and while files are being written and removed."""
    output, rng = tmp_path / "run", random.Random(0)
    folder = output / CHECKPOINTS
    seen, steps = [], set()

    def after(seconds):
        asked = []  # the clock starts with the process, when it is asked for the first time

        def is_over():
            asked.append(time.monotonic())
            return asked[-1] > asked[0] + seconds

        return is_over

    def while_writing(name):
        return lambda: any(folder.glob(name)) and rng.random() < 0.05

    moments = [
        *(lambda: (output / BASE).exists(), lambda: (output / SETTINGS).exists()),
        *(while_writing("3.*tmp*/*"), while_writing("3.*tmp*"), while_writing("6.*tmp*/*")),
        *(while_writing("8.*tmp*/*"), lambda: (folder / "8").exists()),
        *(after(rng.uniform(0, 12)) for _ in range(5)),
    ]
    for moment in moments:
        seen.append(kill_when(start(program, output), moment))
        if folder.exists():
            steps |= set(RunCheckpoints(folder, read_only=True).steps)
    assert sum(seen) >= 5
    finish(program, output)
    assert_same(output, whole)
    assert steps  # it went on from checkpoints, too
