"""A run converted, as transformers and PEFT compute it."""

import numpy as np
import pytest
from click.testing import CliRunner
from published import TASKS
from runs import PAIRS, settings, train, write_data
from theirs import PARITY, load_merged, load_transformers, run_torch

from jina_jax import JinaEmbeddings
from jina_jax.cli import main as cli
from jina_jax.convert import open_checkpoint
from jina_jax.training.run import load_run

pytestmark = PARITY

TEXTS = ["abcdef", "hij ab", "a text that is longer than the others: 0123456789"]
SCORED = {"paths": ["scored.csv"], "kind": "scored", "columns": [0, 1, 2]}
RUNS = {
    "pair": {"data": [PAIRS], "model": {"tasks": [*TASKS[:2]], "rotary_emb_base": 10000}},
    "matching": {"data": [{**SCORED, "loss": {"name": "cosent"}}]},
}
# Of each run a task that it trained and one that it did not.
CASES = [("pair", TASKS[0]), ("pair", TASKS[1]), ("pair", TASKS[4])]
CASES += [("matching", TASKS[4]), ("matching", TASKS[2])]
TRAINED = {"pair": TASKS[:2], "matching": TASKS[4:]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both runs, and what `jina-jax convert` makes of them."""
    root = write_data(tmp_path_factory.mktemp("data"))
    for name, sections in RUNS.items():
        train(settings(root, name, **sections))
        for layout in ("published", "transformers", "native"):
            convert(root / name, root / f"{name}-{layout}", layout)
    return root


def convert(run, target, layout, *options):
    command = ["convert", str(run), str(target), "--to", layout, *options]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.stderr


def pooled(model, ids) -> np.ndarray:
    """Run a PyTorch model on each text's ids, take the mean over tokens, scale to length 1."""
    vectors = []
    for row in ids:
        row = np.array([row])
        hidden, _ = run_torch(model, row, np.ones_like(row))
        mean = hidden[-1, 0].mean(axis=0, dtype=np.float64)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


def prompted(model, task) -> list[list[int]]:
    return model.tokenize([model.config.prompt(task) + text for text in TEXTS])


@pytest.mark.parametrize(("name", "task"), CASES)
def test_peft_gives_our_vectors(root, name, task):
    ours = JinaEmbeddings.from_pretrained(root / f"{name}-native")
    folder = task.replace(".", "_").replace("-", "_")
    theirs = load_merged(root / f"{name}-transformers", folder)
    expected = pooled(theirs, prompted(ours, task))
    vectors = ours.encode(TEXTS, task=task)
    print(f"{name} {task}: largest difference {np.abs(vectors - expected).max():.1e}")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    # Trained tasks are far from what they were; others are where they were.
    before = JinaEmbeddings.from_pretrained(root / "model").encode(TEXTS, task=task)
    apart = np.abs(before - expected).max()
    assert apart > 0.01 if task in TRAINED[name] else apart < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_the_base_is_that_of_the_model(root, name):
    """Which a training at another rotary base does not change, in transformers neither."""
    ours = JinaEmbeddings.from_pretrained(root / "model")
    theirs = load_transformers(root / f"{name}-transformers")
    expected = pooled(theirs, prompted(ours, None))
    np.testing.assert_allclose(ours.encode(TEXTS), expected, rtol=0, atol=1e-4)
    assert theirs.config.rope_parameters["rope_theta"] == 20000


@pytest.mark.parametrize("name", RUNS)
def test_published_reads_back_to_the_same_vectors(root, name):
    ours, again = (
        JinaEmbeddings.from_pretrained(root / f"{name}-{layout}")
        for layout in ("native", "published")
    )
    assert again.config == ours.config
    for task in (None, *TASKS):
        vectors = again.encode(TEXTS, task=task)
        np.testing.assert_array_equal(vectors, ours.encode(TEXTS, task=task))
    saved, expected = (
        {path: np.array(tensor.read()) for path, tensor in checkpoint.tensors.items()}
        for checkpoint in (open_checkpoint(root / f"{name}-published"), load_run(root / name))
    )
    assert saved.keys() == expected.keys()
    assert all(saved[path].tobytes() == expected[path].tobytes() for path in saved)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_merged_needs_no_peft(root, name, task, tmp_path):
    convert(root / name, tmp_path / "merged", "transformers", "--merge", task)
    theirs = load_transformers(tmp_path / "merged")
    ours = JinaEmbeddings.from_pretrained(root / f"{name}-native")
    expected = pooled(theirs, prompted(ours, task))
    np.testing.assert_allclose(ours.encode(TEXTS, task=task), expected, rtol=0, atol=1e-4)
