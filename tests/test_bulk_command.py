"""The command ``jina-jax bulk``: its ends, its exit statuses, and processes per device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

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
    assert "long_text: 'error' there, 'truncate' here" in other.output
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
    command = [sys.executable, "-m", "jina_jax.cli", "bulk", "a.parquet", "out"]
    more = ["--shard-rows", "5", "--local-devices", "1"]
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
