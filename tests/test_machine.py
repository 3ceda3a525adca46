"""The command line on machines as people have them: bare, full, without the platform named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: the user is unknown, and files may have this many bytes.
COMMANDS = """
import json, pwd, resource, sys

sys.dont_write_bytecode = True

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from jina_jax.cli.main import main

for args in json.loads(sys.argv[2]):
    try:
        main(args)
    except SystemExit as end:
        print("status", end.code or 0, file=sys.stderr)
"""
BARE = {"LC_ALL": "C", "COLUMNS": "20", "TMPDIR": "/nothing", "JAX_PLATFORMS": "cpu"}


def run(*commands, limit=0):
    """Run commands where there is no home, no temporary folder, no UTF-8 and little width."""
    environment = {"PATH": os.environ["PATH"], **BARE}
    commands = [[str(part) for part in command] for command in commands]
    call = [sys.executable, "-c", COMMANDS, str(limit), json.dumps(commands)]
    done = subprocess.run(call, env=environment, capture_output=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode().splitlines()


def test_a_bare_machine(directory, tmp_path):
    (tmp_path / "notes.txt").write_text("größer\n", encoding="utf-8")
    command = ["encode", "--model", directory, "größer"]
    search = ["search", "--model", directory, tmp_path / "notes.txt", "größer", "--top-k", 1]
    out, errors = run(command, search, ["info", "--model", directory], ["info", "--devices"])
    assert errors == ["status 0"] * 4
    first, second, *rest = out.splitlines()
    assert json.loads(first)["text"] == "größer"
    assert second.endswith("größer")
    assert rest[-1].split(maxsplit=1) == ["programs", "none (no home; set JINA_JAX_CACHE)"]


def test_a_full_disk_is_one_line_and_nothing_half_written(directory, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n" * 300)
    outputs = [tmp_path / name for name in ("v.npy", "v.jsonl", "native", "published")]
    encode = ["encode", "--model", directory, "--input", texts, "--output"]
    convert = ["convert", directory]
    out, errors = run(
        [*encode, outputs[0]],
        [*encode, outputs[1]],
        [*convert, outputs[2], "--to", "native"],
        [*convert, outputs[3], "--to", "published"],
        limit=1 << 12,
    )
    assert out == ""
    assert errors[1::2] == ["status 2"] * 4
    expected = [f"jina-jax: error: {output}: File too large" for output in outputs]
    assert errors[::2] == expected
    assert sorted(tmp_path.iterdir()) == [texts]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full(directory):
    call = [sys.executable, "-m", "jina_jax.cli", "info", "--model", str(directory)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "jina-jax: error: stdout: No space left on device\n"


@pytest.mark.parametrize(
    ("closed", "command", "status", "message"),
    [
        (1, "info", 2, "jina-jax: error: stdout: Bad file descriptor\n"),
        (1, "encode", 2, "jina-jax: error: stdout: Bad file descriptor\n"),
        (0, "encode", 2, "jina-jax: error: stdin: expected texts, got none: it is closed\n"),
        (2, "encode", 0, ""),
    ],
)
def test_a_standard_stream_that_is_closed(directory, tmp_path, closed, command, status, message):
    """Nothing is lost silently, and no file that is written gets the stream's number."""
    texts = [] if closed == 0 or command == "info" else ["a cat"]
    code = (
        "import os, sys; os.close(int(sys.argv.pop(1)))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'jina_jax.cli', *sys.argv[1:]])"
    )
    call = [sys.executable, "-c", code, str(closed), command, "--model", str(directory), *texts]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, message)
    assert done.stdout.count("embedding") == (closed == 2)


def test_a_variable_of_the_hub_that_is_no_number(tmp_path):
    code = "from jina_jax.checkpoints.hub import fetch; fetch('a/b')"
    environment = {"PATH": os.environ["PATH"], "HF_HUB_ETAG_TIMEOUT": "soon"}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: huggingface_hub: expected other values of environment")
    assert last.endswith("'soon'); set are HF_HUB_ETAG_TIMEOUT")
