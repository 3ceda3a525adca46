"""Checkpoints of a run: exact, kept as asked, and never half of one."""

import errno
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.checkpoints.hashing import hash_of
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.runtime.sharding import make_mesh
from jina_jax.training import checkpoints
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.state import TrainState

# More than Orbax keeps in its own tables, so that every kind of file is there.
SHAPES = {f"layers.{i}.mlp.fc1.lora_a": (1, 64, 96) for i in range(3)} | {"word.lora_b": (1, 4, 64)}
SAMPLER = {"seed": 3, "batches": 17, "sources": [{"epoch": 2, "waiting": [[5, 0], [7, 1]]}]}


def content(seed, device=None):
    """Draw trained values and an optimizer's state."""
    rng = np.random.default_rng(seed)
    trained = {
        path: jax.device_put(rng.standard_normal(shape, np.float32), device)
        for path, shape in SHAPES.items()
    }
    state = optax.adamw(1e-3).init(trained)
    drawn = jax.tree.map(
        lambda a: jax.device_put((rng.standard_normal(a.shape) * 9).astype(a.dtype), device), state
    )
    return trained, drawn


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == other.dtype
        assert np.asarray(mine).tobytes() == np.asarray(other).tobytes()


def arrays_of(state):
    return state.trained, state.opt_state


def target():
    """Return a state of other values to restore into."""
    return TrainState(0, *content(99), {})


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    """What threads print after a failure is captured here."""
    monkeypatch.setattr(checkpoints, "_STRAGGLERS_SECONDS", 0.0)


@pytest.fixture
def store(tmp_path):
    store = RunCheckpoints(tmp_path / "checkpoints")
    yield store
    store.close()


def fill(store, steps, scores=()):
    scores = dict(scores)
    for step in steps:
        state = TrainState(step, *content(step), {**SAMPLER, "batches": step})
        store.save(state, scores.get(step))


def test_everything_comes_back_to_the_bit(store):
    trained, optimizer = content(0)
    extreme = np.array([np.nan, -0.0, np.inf, 1e-45, np.float32(1) / 3], np.float32)
    trained["word.lora_b"] = trained["word.lora_b"].at[0, 0, :5].set(extreme)
    store.save(TrainState(7, trained, optimizer, SAMPLER), None)
    for reader in (store, RunCheckpoints(store.directory, read_only=True)):
        found = reader.restore(7, target())
        assert_equal(found.trained, trained)
        assert_equal(found.opt_state, optimizer)
        assert (found.step, found.sampler) == (7, SAMPLER)
        assert_equal(reader.trained(7), trained)
        assert all(type(array) is np.ndarray for array in reader.trained(7).values())


def test_there_is_nothing_at_first(store):
    assert (store.steps, store.latest, store.best) == ([], None, None)
    nowhere = RunCheckpoints(store.directory / "none", read_only=True)
    assert nowhere.steps == []
    assert not (store.directory / "none").exists()


@pytest.mark.parametrize(
    ("keep", "scores", "kept", "best"),
    [
        (2, {}, [4, 5], None),
        (1, {2: 0.5, 4: 0.4}, [2, 5], 2),
        (2, {1: -3, 3: -1, 5: -2}, [3, 4, 5], 3),
        (2, {1: 0.1, 2: 0.2, 4: 0.3}, [4, 5], 4),
        (9, {1: 0.0}, [1, 2, 3, 4, 5], 1),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, keep, scores, kept, best):
    store = RunCheckpoints(tmp_path, keep)
    fill(store, range(1, 6), scores)
    for reader in (store, RunCheckpoints(tmp_path, read_only=True)):
        assert (reader.steps, reader.latest, reader.best) == (kept, 5, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in kept]


def test_a_new_store_goes_on(tmp_path):
    fill(RunCheckpoints(tmp_path, 2), [1, 2, 3], {1: 0.5})
    fill(RunCheckpoints(tmp_path, 2), [4, 5])
    assert RunCheckpoints(tmp_path).steps == [1, 4, 5]


def test_a_step_is_saved_once(store):
    fill(store, [1])
    with pytest.raises(CheckpointError, match=r"step 1 could not be written.*already exists"):
        fill(store, [1])
    assert_equal(store.restore(1, target()).trained, content(1)[0])


def test_devices_are_those_of_the_reader(tmp_path):
    everywhere = NamedSharding(make_mesh(), P())
    trained, optimizer = content(4, everywhere)
    RunCheckpoints(tmp_path).save(TrainState(4, trained, optimizer, SAMPLER), None)
    assert len(trained["word.lora_b"].sharding.device_set) == 8
    # On one device in a process that has no more, as numbers of NumPy …
    code = f"""
from pathlib import Path
from jina_jax.training.checkpoints import RunCheckpoints
reader = RunCheckpoints(Path({str(tmp_path)!r}), read_only=True)
for path, array in sorted(reader.trained(4).items()):
    print(path, array.shape, repr(array.astype(float).sum()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        f"{path} {array.shape} {np.asarray(array).astype(float).sum()!r}"
        for path, array in sorted(trained.items())
    ], result.stderr
    # … and where the arrays are that are read into.
    for device in (jax.devices()[3], everywhere):
        like = TrainState(0, *content(1, device), {})
        found = arrays_of(RunCheckpoints(tmp_path, read_only=True).restore(4, like))
        assert_equal(found, (trained, optimizer))
        devices = {leaf.sharding for leaf in jax.tree.leaves(found)}
        assert len(devices) == 1
        assert devices.pop().device_set == content(1, device)[0]["word.lora_b"].sharding.device_set


# --- Damage


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Three checkpoints of which the second is the best."""
    directory = tmp_path_factory.mktemp("good")
    fill(RunCheckpoints(directory, 3), [2, 4, 6], {4: 0.5, 6: 0.25})
    return directory


def harm(path, how):
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2])


def outcome(directory, step, read):
    """Return what is read; of an error, which must say where and what to do, its message."""
    try:
        store = RunCheckpoints(directory, read_only=True)
        assert store.steps == [2, 4, 6]
        return read(store)
    except CheckpointError as error:
        message = str(error)
    start = f"{directory / str(step)}: the checkpoint cannot be read; remove it to go on from 4 ("
    assert message.startswith(start)
    return message


def kinds_of_files(directory):
    """List one of each kind; the names of those in folders "d" are drawn."""
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {p.parent if p.parent.name == "d" else p: p for p in files}.values()


@pytest.mark.parametrize("how", ["delete", "half"])
def test_a_damaged_file_is_an_error_or_does_no_harm(good, tmp_path, how):
    names = [path for path in kinds_of_files(good) if path.parts[0] == "6"]
    assert len(names) > 15
    refused = set()
    for name in names:
        directory = tmp_path / "torn"
        shutil.copytree(good, directory)
        harm(directory / name, how)
        all_of_it = outcome(directory, 6, lambda store: store.restore(6, target()))
        if isinstance(all_of_it, str):
            refused.add(name.parts[1])
        else:
            assert_equal(arrays_of(all_of_it), content(6))
            assert all_of_it.sampler == {**SAMPLER, "batches": 6}
        if name.parts[1] == "trained":
            trained = outcome(directory, 6, lambda store: store.trained(6))
            if not isinstance(trained, str):
                assert_equal(trained, content(6)[0])
        shutil.rmtree(directory)
    assert refused >= {"trained", "optimizer", "sampler"}
    assert ("metrics" in refused) == (how != "delete")


def test_those_beside_a_damaged_one_are_read(good, tmp_path):
    directory = tmp_path / "torn"
    shutil.copytree(good, directory)
    for path in (directory / "6").rglob("*"):
        if path.is_file() and path.parent.name != "metrics":
            path.write_bytes(b"")
    store = RunCheckpoints(directory)
    assert (store.steps, store.best) == ([2, 4, 6], 4)
    with pytest.raises(CheckpointError, match=r"6: the checkpoint .* go on from 4"):
        store.restore(6, target())
    assert_equal(arrays_of(store.restore(4, target())), content(4))
    shutil.rmtree(directory / "6")
    assert store.latest == 4
    fill(store, [6])
    assert_equal(arrays_of(store.restore(6, target())), content(6))


def test_one_of_another_run_is_refused(good):
    store = RunCheckpoints(good, read_only=True)
    trained, optimizer = content(99)
    wide = {path: jnp.zeros((2, *array.shape[1:])) for path, array in trained.items()}
    others = {"other.lora_a": trained["word.lora_b"], **trained}
    for wrong in (wide, others, {}):
        with pytest.raises(CheckpointError, match=r"6: the checkpoint cannot be read"):
            store.restore(6, TrainState(0, wrong, optimizer, {}))
    with pytest.raises(CheckpointError, match=r"5: the checkpoint cannot be read"):
        store.restore(5, target())


# --- Saving that fails


def fill_the_disk(manager, step, **_):
    """Stand in for Orbax on a full disk."""
    (manager.directory / f"{step}.orbax-checkpoint-tmp" / "trained").mkdir(parents=True)
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(tmp_path, monkeypatch):
    store = RunCheckpoints(tmp_path)
    fill(store, [1])
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fill_the_disk)
        with pytest.raises(CheckpointError, match="No space left") as error:
            fill(store, [2], {2: 0.5})
    message = "step 2 could not be written; the last good one is of 1 (OSError: "
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_only_the_first(store)
    fill(store, [3], {3: 0.5})
    assert (store.steps, store.best) == ([1, 3], 3)


def assert_only_the_first(store):
    for reader in (store, RunCheckpoints(store.directory)):
        assert (reader.steps, reader.best) == ([1], None)
        assert_equal(arrays_of(reader.restore(1, target())), content(1))


def test_the_first_one_that_fails_says_that_there_is_none(store, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "save", fill_the_disk)
    with pytest.raises(CheckpointError, match=r"there is none before .*No space left"):
        fill(store, [1])
    assert (store.steps, [*store.directory.iterdir()]) == ([], [])


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_files_that_may_grow_no_more(tmp_path):
    """The operating system refuses to write; whichever file is the first to be too long."""
    limits = [10, 200, 2000, 20000]
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from test_run_checkpoints import RunCheckpoints, CheckpointError, fill
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in {limits}:
    store = RunCheckpoints(Path({str(tmp_path)!r}) / str(limit))
    fill(store, [1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        fill(store, [2], {{2: 0.5}})
    except CheckpointError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(message, store.steps, sep=chr(9))
    del message
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert len(lines) == len(limits), result.stderr
    for limit, (message, steps) in zip(limits, lines, strict=True):
        expected = f"{tmp_path / str(limit)}: the checkpoint of step 2 could not be written; "
        assert expected in message
        assert "the last good one is of 1 (" in message
        assert "File too large" in message
        assert steps == "[1]"
        store = RunCheckpoints(tmp_path / str(limit))
        assert_only_the_first(store)
        fill(store, [2], {2: 0.5})
        assert store.best == 2
        assert sorted(path.name for path in store.directory.iterdir()) == ["1", "2"]


def test_what_an_interrupted_save_has_left_goes_with_the_next_run(tmp_path):
    fill(RunCheckpoints(tmp_path), [1])
    partial = tmp_path / "2.orbax-checkpoint-tmp" / "trained.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    (partial / "file").touch()
    assert RunCheckpoints(tmp_path, read_only=True).steps == [1]
    assert partial.exists()
    fill(RunCheckpoints(tmp_path), [3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


# --- The base


def test_the_hash_is_of_names_and_contents(tmp_path):
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "retrieval_query/adapter_model.bin": b"adapter",
    }

    def write(**changes):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        for name, data in {**files, **changes}.items():
            if data is not None:
                (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "model" / name).write_bytes(data)
        return hash_of(tmp_path / "model")

    assert write() == write()
    others = [write(**{name: data + b" "}) for name, data in files.items()]
    others += [write(**{name: None}) for name in files]
    others += [write(**{"new.json": b""}), write(**{"config.json": None, "config2.json": b"{}"})]
    assert len({write(), *others}) == len(others) + 1
    assert write(**{"README.md": b"more", "notes.txt": b"more"}) == write()


def test_the_hash_follows_links(tmp_path):
    """The Hub's cache is made of them."""
    (tmp_path / "model").mkdir()
    (tmp_path / "blob").write_bytes(b"one")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    before = hash_of(tmp_path / "model")
    (tmp_path / "blob").write_bytes(b"two")
    assert hash_of(tmp_path / "model") != before
