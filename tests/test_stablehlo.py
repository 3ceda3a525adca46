"""A program as a file, run by a process that has only jax."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import write_tiny

from jina_jax import JinaEmbeddings, make_mesh
from jina_jax.runtime.engine import Program
from jina_jax.runtime.packing import make_batches
from jina_jax.runtime.stablehlo import export_program, save_program, weights

RUN = """
import sys
import jax, jax.export, numpy as np
exported = jax.export.deserialize(bytearray(open("program", "rb").read()))
weights = dict(np.load("weights.npz"))
inputs = np.load("inputs.npz")
output = exported.call(weights, *(inputs[name] for name in inputs.files))
assert not {"flax", "jina_jax", "torch"} & sys.modules.keys()
np.save("output.npy", output)
"""
TEXTS = ["a cat", "the dog", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    mesh = make_mesh(devices=jax.devices()[:1])
    return JinaEmbeddings.from_pretrained(write_tiny(tmp_path_factory.mktemp("m") / "t"), mesh=mesh)


@pytest.mark.parametrize("task", [None, "separation"])
def test_runs_without_us(model, task, tmp_path):
    ids = model.tokenize(TEXTS)
    (batch,) = make_batches(ids, model.batching, model.config.pad_token_id)
    program = Program(*batch.shape, None, task is not None, "mean")
    save_program(tmp_path / "program", export_program(model.engine, program))
    np.savez(tmp_path / "weights.npz", **weights(model.engine))
    tasks = {"task_ids": np.full(batch.text_spans.shape[:2], 2, np.int32)} if task else {}
    inputs = {"input_ids": batch.input_ids, "text_spans": batch.text_spans, **tasks}
    np.savez(tmp_path / "inputs.npz", **inputs)
    subprocess.run([sys.executable, "-c", RUN], check=True, cwd=tmp_path)
    output = np.load(tmp_path / "output.npy")[batch.rows, batch.slots]
    expected = model.encode(
        [TEXTS[i] for i in batch.indices], task=task, normalize_embeddings=False
    )
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_nothing_is_overwritten(model, tmp_path):
    exported = export_program(model.engine, Program(1, 16, 1, None, False, "mean"))
    save_program(tmp_path / "program", exported)
    with pytest.raises(FileExistsError):
        save_program(tmp_path / "program", exported)


def test_several_devices_are_refused(tmp_path):
    model = JinaEmbeddings.from_pretrained(write_tiny(tmp_path / "t"))
    with pytest.raises(ValueError, match="engine: expected one device, got a mesh of 8"):
        export_program(model.engine, Program(8, 16, 1, None, False, "mean"))
