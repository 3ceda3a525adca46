"""A task that was added and trained, as transformers and PEFT compute it."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from published import TASKS
from theirs import PARITY, load_merged, load_transformers, run_torch
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.load import to_state
from jina_jax.convert import add_task, open_checkpoint, with_adapters, write_checkpoint
from jina_jax.nn.parameters import parameter_shapes

pytestmark = PARITY

TEXTS = ["a cat", "the dog sleeps", "seven bridges, and no way over all of them"]
NEW = "legal.search"


class Case(NamedTuple):
    """A trained checkpoint that no file holds, its values, and a folder made from it."""

    source: Any
    checkpoint: Any
    trained: dict[str, np.ndarray]
    directory: Any


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def case(request, tmp_path_factory):
    """Six tasks, the last one of random float32 values."""
    root = tmp_path_factory.mktemp(request.param)
    source = open_checkpoint(write_tiny(root / "source", dtype=request.param))
    six = add_task(source, NEW, prompt="Find: ")
    rng = np.random.default_rng(0)
    trained = {
        path: 0.2 * rng.standard_normal((1, *shape[1:]), np.float32)
        for path, shape in parameter_shapes(six.config).items()
        if ".lora_" in path
    }
    checkpoint = with_adapters(six, [NEW], trained)
    write_checkpoint(checkpoint, root / "out", "transformers")
    return Case(source, checkpoint, trained, root / "out")


def ours(checkpoint, tokenizer) -> JinaEmbeddings:
    """Load a checkpoint as it is in memory, without the written folder."""
    state = to_state(checkpoint.config, checkpoint.tensors, "float32")
    return JinaEmbeddings(checkpoint.config, state, tokenizer)


def pooled(model, ids) -> np.ndarray:
    """Run a PyTorch model on each text's ids, take the mean over tokens, scale to length 1."""
    vectors = []
    for row in ids:
        row = np.array([row])
        hidden, _ = run_torch(model, row, np.ones_like(row))
        mean = hidden[-1, 0].mean(axis=0, dtype=np.float64)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


@pytest.mark.parametrize(
    ("task", "folder"), [(NEW, "legal_search"), ("separation", "separation"), (None, None)]
)
def test_vectors_of_the_written_folder(case, task, folder):
    """The trained task as we hold it in memory; the others as they were before."""
    written = JinaEmbeddings.from_pretrained(case.directory, dtype="float32")
    assert written.config.lora_adaptations == (*TASKS, NEW)
    assert written.config.prompt(task) == ("Find: " if task == NEW else "")
    model = ours(case.checkpoint if task == NEW else case.source, written.tokenizer)
    vectors = model.encode(TEXTS, task=task)
    ids = model.tokenize([model.config.prompt(task) + text for text in TEXTS])
    expected = pooled(load_merged(case.directory, folder), ids)
    print(f"{task}: largest difference {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(written.encode(TEXTS, task=task), expected, rtol=0, atol=1e-4)
    if task is not None:
        assert np.abs(expected - pooled(load_transformers(case.directory), ids)).max() > 0.01


def test_peft_merges_the_trained_values(case):
    """The update is alpha / R · B A, of the arrays that were given."""
    name = "layers.0.mlp.fc1"
    a, b = (case.trained[f"{name}.lora_{letter}"][0].astype(np.float64) for letter in "ab")
    base, merged = (
        load_merged(case.directory, folder).state_dict()[f"{name}.weight"].numpy()
        for folder in (None, "legal_search")
    )
    np.testing.assert_allclose(merged - base, (a @ b).T / 4, rtol=0, atol=1e-6)
