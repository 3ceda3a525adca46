"""Reference values that ``write_references`` writes: its model agrees with them, no other does."""

import json
import subprocess
import sys

import numpy as np
import pytest
from published import TASKS
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.convert import open_checkpoint
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.verify.compare import NO_TASK, references_of, verify
from jina_jax.verify.record import TEXTS, write_references


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = write_tiny(tmp_path_factory.mktemp("model"))
    assert write_references(directory) == directory / "gold.json"
    return directory


def checks_of(directory, gold):
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    return verify(open_checkpoint(directory), tokenizer, references_of(open_checkpoint(gold)))


def test_the_model_agrees(directory):
    checks = checks_of(directory, directory)
    names = (NO_TASK, *TASKS)
    subjects = ("tokens", *names, *(f"{name}, vector" for name in names))
    assert [check[:2] for check in checks] == [(t, s) for t in TEXTS for s in subjects]
    assert all(check.agrees for check in checks)
    assert max(check.difference for check in checks) < 1e-5


def test_another_model_does_not(directory, tmp_path):
    other = write_tiny(tmp_path, lora_alpha=1.1)
    agreeing = {check.subject for check in checks_of(other, directory) if check.agrees}
    assert agreeing == {"tokens", NO_TASK, f"{NO_TASK}, vector"}


def test_another_prompt_or_pooler_does_not(directory, tmp_path):
    for number, changes in enumerate(
        ({"task_instructions": dict.fromkeys(TASKS, "other: ")}, {"emb_pooler": "cls"})
    ):
        other = write_tiny(tmp_path / str(number), **changes)
        checks = checks_of(other, directory)
        assert all(check.agrees for check in checks if not check.subject.endswith("vector"))
        vectors = [check for check in checks if check.subject.endswith("vector")]
        assert not all(check.agrees for check in vectors)


def test_embeddings_are_the_beginning_of_what_encode_gives(directory):
    gold = json.loads((directory / "gold.json").read_text())
    model = JinaEmbeddings.from_pretrained(directory)
    for task in (NO_TASK, *TASKS):
        expected = [gold[name]["embeddings"][task] for name in TEXTS]
        vectors = model.encode([*TEXTS.values()], task=None if task == NO_TASK else task)
        np.testing.assert_allclose(vectors[:, :8], expected, atol=1e-6)


def test_the_command(directory):
    command = [sys.executable, "-m", "jina_jax.verify.record"]
    before = json.loads((directory / "gold.json").read_text())
    done = subprocess.run([*command, directory], check=True, capture_output=True, text=True)
    assert done.stdout == f"{directory / 'gold.json'}\n"
    assert json.loads((directory / "gold.json").read_text()).keys() == before.keys()
    for args, message in (
        ([], "usage: python -m jina_jax.verify.record DIRECTORY\n"),
        (["none"], "none: expected the directory of a checkpoint\n"),
    ):
        done = subprocess.run([*command, *args], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, message)
