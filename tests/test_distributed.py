"""Two processes on this machine: what they must agree on, and what each gets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.runtime import distributed
from jina_jax.runtime.requests import Preparation, Request

SECONDS = 120
TEXTS = ["A man is playing a guitar.", "", "Ein Mann spielt Gitarre.", "!?", "x" * 40]
TASKS = ["retrieval.query", None, "separation", "text-matching", None]
OWN = [["one"], ["two", "three"]]
# One length of rows, so that few programs are compiled.
BATCHING = Batching(token_budget=128, row_lengths=(8, 128))

PROCESS = """
import json, sys
import jax
import numpy as np

directory, folder, port, rank = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
from jina_jax import JinaEmbeddings, make_mesh
from test_distributed import BATCHING, OWN, TASKS, TEXTS

common = JinaEmbeddings.from_pretrained(directory, batching=BATCHING)
own = JinaEmbeddings.from_pretrained(
    directory, batching=BATCHING, mesh=make_mesh(devices=jax.local_devices())
)
found = {"together": common.encode(TEXTS, task=TASKS), "nothing": common.encode([])}
found["padded"] = common.encode(TEXTS, task=TASKS, batch_size=2)
found["own"] = own.encode(OWN[int(rank)])
for i, chunks in enumerate(common.encode_chunks(TEXTS, 5, task=TASKS)):
    found[f"chunks {i}"] = chunks.embeddings
words = {}
for name, texts in {"count": OWN[int(rank)], "letters": [f"text {rank}"]}.items():
    try:
        common.encode(texts)
    except ValueError as error:
        words[name] = str(error)
words["mesh"] = [dict(model.engine.mesh.shape) for model in (common, own)]
np.savez(f"{folder}/{rank}.npz", **found)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(words, file)
"""


def run_both(directory: Path, folder: Path) -> None:
    """Run two processes of two devices each; a hang is an error."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    arguments = [sys.executable, "-c", PROCESS, str(directory), str(folder), port]
    processes = []
    for rank in range(2):
        with (folder / f"{rank}.log").open("wb") as log:
            started = subprocess.Popen(
                [*arguments, str(rank)], env={**os.environ, **settings}, stdout=log, stderr=log
            )
        processes.append(started)
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n\n".join(logs)


@pytest.fixture(scope="module")
def model(directory):
    """One process, one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return JinaEmbeddings.from_pretrained(directory, mesh=mesh, batching=BATCHING)


@pytest.fixture(scope="module")
def results(directory, tmp_path_factory):
    """What each process found: arrays and words."""
    folder = tmp_path_factory.mktemp("processes")
    run_both(directory, folder)
    arrays = [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]
    words = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return list(zip(arrays, words, strict=True))


def test_all_processes_get_all_vectors(results, model):
    expected = model.encode(TEXTS, task=TASKS)
    for arrays, words in results:
        assert words["mesh"][0] == {"data": 4, "model": 1}
        np.testing.assert_allclose(arrays["together"], expected, atol=1e-5)
        np.testing.assert_allclose(arrays["padded"], expected, atol=1e-5)
        assert arrays["nothing"].shape == (0, 64)


def test_all_processes_get_all_chunks(results, model):
    for i, expected in enumerate(model.encode_chunks(TEXTS, 5, task=TASKS)):
        for arrays, _ in results:
            np.testing.assert_allclose(arrays[f"chunks {i}"], expected.embeddings, atol=1e-5)


def test_a_process_with_a_mesh_of_its_own_encodes_its_own_texts(results, model):
    for (arrays, words), texts in zip(results, OWN, strict=True):
        assert words["mesh"][1] == {"data": 2, "model": 1}
        np.testing.assert_allclose(arrays["own"], model.encode(texts), atol=1e-5)


def test_different_texts_on_one_mesh_are_refused_on_every_process(results):
    for _, words in results:
        assert words["count"].startswith("texts: expected the same texts on every process")
        assert words["letters"].startswith("texts: expected the same texts on every process")
        assert "mesh=make_mesh(devices=jax.local_devices())" in words["letters"]


# ---------------------------------------------------------------- without processes


def test_a_mesh_of_this_process_spans_none():
    assert not distributed.spans_processes(None)
    assert not distributed.spans_processes(make_mesh())


def answer(monkeypatch, *answers):
    """Let the collective give these answers, each an array or a function of what was sent."""
    given = iter(answers)

    def gather(value):
        found = next(given)
        return found(value) if callable(found) else np.array(found, np.int32)

    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)


def test_rows_of_every_process(monkeypatch):
    tables = [
        [[1, 97, -1, -1], [2, 101, 102, -1]],
        [[3, 98, 99, 100], [1, 103, -1, -1]],
        [[0, -1, -1, -1], [-1, -1, -1, -1]],
    ]
    sent = []
    answer(monkeypatch, [[2, 2], [2, 3], [1, 0]], lambda table: sent.append(table) or tables)
    tables = np.array(tables, np.int32)
    found = distributed.gather_rows([[97], [101, 102]])
    assert found == [[[97], [101, 102]], [[98, 99, 100], [103]], [[]]]
    assert sent[0].tolist() == tables[0].tolist()


@pytest.mark.parametrize("here", [0, 1, 2])
@pytest.mark.parametrize("chunks", [None, lambda text, offsets: [(0, 1)]])
def test_each_process_tokenises_its_share(monkeypatch, model, here, chunks):
    requests = [Request(text, "p: ", 2, chunks) for text in ("a", "bcd", "x", "ef", "g")]
    preparation = Preparation(model.tokenizer, False, 32, 8)
    seen = []
    tokenize = Preparation.tokenize

    def watched(self, given):
        seen.append([request.text for request in given])
        return tokenize(self, given)

    monkeypatch.setattr(Preparation, "tokenize", watched)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: here)
    shares = [
        [distributed._flatten(tokens) for tokens in tokenize(preparation, requests[rank::3])]
        for rank in range(3)
    ]
    monkeypatch.setattr(distributed, "check_same", lambda texts: None)
    monkeypatch.setattr(distributed, "gather_rows", lambda rows: shares)
    found = distributed.share_preparation(requests, preparation)
    assert seen == [[request.text for request in requests[here::3]]]
    assert found == [
        preparation.prepare(request, tokens)
        for request, tokens in zip(requests, tokenize(preparation, requests), strict=True)
    ]
