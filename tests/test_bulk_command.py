"""The command ``jina-jax bulk``: its ends, its exit statuses, and processes per device."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.registry import known_implementations

from jina_jax.checkpoints import hub
from jina_jax.cli.main import main


@pytest.fixture
def invoke(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"text number {i}" for i in range(30)]
    pq.write_table(pa.table({"id": list(range(30)), "body": texts}), "a.parquet")

    def run(*arguments):
        return CliRunner().invoke(main, ["bulk", *arguments])

    return run


def options(directory, *more):
    return ["--text", "body", "--id", "id", "--model", str(directory), *more]


def test_a_job_its_status_and_its_verification(invoke, directory):
    done = invoke("a.parquet", "out", *options(directory, "--shard-rows", "10"))
    assert (done.exit_code, done.output) == (0, "out: 3 of 3 shards, 0 bad rows\n")
    again = invoke("run", "a.parquet", "out", *options(directory, "--shard-rows", "10"))
    assert (again.exit_code, again.output) == (0, done.output)
    status = invoke("status", "out")
    assert status.output.startswith("3 of 3 shards, 30 of 30 rows, 0 bad\n")
    assert json.loads(invoke("status", "out", "--json").output)["done"] == 3
    checked = invoke("verify", "out", "--model", str(directory), "--sample", "5")
    assert (checked.exit_code, checked.output) == (0, "out: 0 problems in 3 shards\n")
    planned = invoke("verify", "out", "--sample", "5")  # with the plan's model
    assert (planned.exit_code, planned.output) == (0, checked.output)


def test_verification_finds_the_model_of_the_plan(invoke, directory, tmp_path, monkeypatch):
    """From another directory, and the revision on the Hub."""
    shutil.copytree(directory, tmp_path / "models" / "own")
    assert invoke("a.parquet", "out", *options("models/own")).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checked = invoke("verify", "../out", "--sample", "5")
    assert (checked.exit_code, checked.output) == (0, "../out: 0 problems in 1 shards\n")

    fetched = []

    def fetch(name, revision, local_files_only):
        fetched.append((name, revision))
        return directory

    monkeypatch.setattr(hub, "fetch", fetch)
    own = options("owner/model", "--revision", "v2")
    assert invoke("../a.parquet", "out", *own).exit_code == 0
    assert invoke("verify", "out", "--sample", "5").exit_code == 0
    assert fetched == [("owner/model", "v2")] * 2


def test_exit_statuses(invoke, directory):
    table = pa.table({"id": [1, 2], "body": ["short", "x" * 300]})
    pq.write_table(table, "long.parquet")
    long = options(directory, "--long-text", "error")
    bad = invoke("long.parquet", "out", *long)
    assert bad.exit_code == 1
    assert "out: 1 of 1 shards, 1 bad rows" in bad.output
    assert invoke("long.parquet", "out", *long, "--max-errors", "1").exit_code == 0
    other = invoke("long.parquet", "out", *options(directory))
    assert other.exit_code == 2
    assert "plan: --long-text 'error' there, 'truncate' here" in other.output
    assert invoke("a.parquet", "o", *options(directory), "--rank", "0", "--leases").exit_code == 2
    next(Path("out").glob("*.parquet")).unlink()
    checked = invoke("verify", "out", "--sample", "0")
    assert checked.exit_code == 1
    assert ".parquet: is missing" in checked.output


def test_requests_of_openai(invoke, directory):
    body = {"model": "m", "input": "a text"}
    good = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    with open("in.jsonl", "w") as file:
        file.write(json.dumps(good) + "\n{\n")
    done = invoke("openai-batch", "in.jsonl", "out.jsonl", "--model", str(directory))
    assert done.exit_code == 1
    with open("out.jsonl") as file:
        (answer,) = map(json.loads, file)
    assert len(answer["response"]["body"]["data"][0]["embedding"]) == 64
    with open("out.errors.jsonl") as file:
        assert json.loads(file.read())["error"]["code"] == "invalid_json_line"


def test_a_process_per_device(invoke, directory):
    os.rename("a.parquet", "--rank.parquet")
    command = [sys.executable, "-m", "jina_jax.cli", "bulk"]
    more = ["--shard-rows", "5", "--local-devices", "1", "--", "--rank.parquet", "out"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [*command, *options(directory), *more], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    statistics = [json.loads(path.read_bytes()) for path in Path("out/_stats").iterdir()]
    pids = {own["pid"] for own in statistics}
    assert len(pids) == 2
    assert invoke("verify", "out", "--sample", "0").exit_code == 0


def test_processes_do_not_wait_for_a_plan_that_is_refused(invoke, directory):
    command = [sys.executable, "-m", "jina_jax.cli", "bulk", "a.parquet", "out"]
    more = ["--text", "body", "--text", "nowhere", "--model", str(directory)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [*command, *more, "--local-devices", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "expected one column 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--task nonsense", "--task 'nonsense': this checkpoint has"),
        ("--truncate-dim 3", "--truncate-dim 3: expected one of"),
        ("--max-length 9999", "--max-length 9999: expected an integer from 2 to 128"),
        ("--text body", "--text: expected names of columns, each once"),
        ("--chunks 5 --long-text error", "--long-text 'error': expected none with chunks"),
        ("--chunks 5 --text id", "--chunks: expected one column of texts, got 2"),
        ("--task separation --task separation", "--task: expected one, or one per column"),
        ("--columns body --columns body", "--columns 'body': would be twice"),
        ("--rank 1", "expected --rank and --world, got one of them"),
        ("--rank 3 --world 2", "--rank 3: expected an integer from 0 to 1"),
        ("--revision x", "--revision 'x': expected none for the directory"),
        ("--quantization fp8", "--quantization 'fp8': expected an NVIDIA GPU"),
    ],
)
def test_errors_name_options(invoke, directory, more, message):
    for command in ([], ["run"]):
        found = invoke(*command, "a.parquet", "out", *options(directory, *more.split()))
        assert found.exit_code == 2
        assert f"jina-jax: error: {message}" in found.output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ("run a.parquet absent://b/out", "absent://b/out"),
        ("run absent://b/a.parquet out", "absent://b/a.parquet"),
        ("status absent://b/out", "absent://b/out"),
        ("verify absent://b/out", "absent://b/out"),
    ],
)
def test_a_package_of_a_store_that_is_missing_is_named(
    invoke, directory, monkeypatch, arguments, url
):
    absent = {"class": "no_such_package.FileSystem", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    more = options(directory) if arguments.startswith("run") else []
    found = invoke(*arguments.split(), *more)
    assert found.exit_code == 2
    assert f"jina-jax: error: {url}: cannot be opened: Install s3fs" in found.output


@pytest.mark.skipif(sys.platform != "linux", reason="reads a file of Linux that gives EIO")
def test_a_disk_that_fails_under_an_input_is_not_stdout(invoke, directory, tmp_path):
    os.symlink("/proc/self/mem", "b.jsonl")
    found = invoke("b.jsonl", "out", *options(directory))
    assert found.exit_code == 2
    assert f"jina-jax: error: {tmp_path}/b.jsonl: Input/output error" in found.output


def test_a_model_that_cannot_be_loaded_leaves_no_plan(invoke, directory, tmp_path):
    """A plan of it would be another one than that of the model once it is mended."""
    broken = shutil.copytree(directory, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    found = invoke("a.parquet", "out", *options(broken))
    assert found.exit_code == 2
    assert "tokenizer.json" in found.output
    assert not Path("out").exists()
    assert invoke("a.parquet", "out", *options(directory)).exit_code == 0


def test_differences_of_plans_name_options(invoke, directory):
    Path("empty.jsonl").write_text('{"id": 1, "body": null}\n')
    first = invoke("empty.jsonl", "out", *options(directory))
    assert first.exit_code == 0, first.output
    more = ["--dedup", "--shard-mb", "1", "--truncate-dim", "32", "--prompt", "none"]
    found = invoke("empty.jsonl", "out", *options(directory, *more)).output
    for difference in (
        "--dedup False there, True here",
        "--shard-mb 64.0 there, 1.0 here",
        "--truncate-dim 64 there, 32 here",
        "--prompt 'auto' there, None here",
    ):
        assert difference in found
    assert (
        "OUTPUT '.': expected a place outside"
        in invoke("a.parquet", ".", *options(directory)).output
    )


def test_the_group_alone_shows_its_help(invoke):
    alone, asked = invoke(), invoke("--help")
    assert (alone.exit_code, alone.stderr) == (0, "")
    assert alone.stdout == asked.stdout
    assert "openai-batch" in alone.stdout


def children(process):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            found += [int(stat.parent.name)] if parent == str(process.pid) else []
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGTERM, ["--local-devices", "1"]),
        (signal.SIGINT, ["--leases"]),
        pytest.param(signal.SIGINT, ["--local-devices", "1"], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [], marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_job_and_it_goes_on(invoke, directory, number, more):
    """In the middle of a shard: nothing half-written stays, nor a lease, nor a child."""
    with open("b.jsonl", "w") as file:
        file.writelines(json.dumps({"id": i, "body": f"{i} " * 20}) + "\n" for i in range(2000))
    own = ["b.jsonl", "out", *options(directory, "--shard-rows", "40")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "jina_jax.cli", "bulk", *own, *more]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while len(list(Path("out").glob("*.parquet"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        started = children(process)
        assert bool(started) == ("--local-devices" in more)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for folder in ("_tmp", "_leases"):
        assert not list(Path("out").glob(f"{folder}/*"))
    before = {path: path.read_bytes() for path in Path("out").glob("*.parquet")}
    assert 2 <= len(before) < 50
    assert invoke(*own).exit_code == 0
    assert invoke("verify", "out", "--sample", "0").exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
