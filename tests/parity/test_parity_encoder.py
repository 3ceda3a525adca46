"""The encoder against transformers, with adapters that PEFT merged."""

import numpy as np
import pytest
from foreign import FOLDERS, write, xlm_roberta_config, xlm_roberta_tensors
from published import FULL, SMALL, TASKS, write_published
from theirs import (
    PARITY,
    TOLERANCE,
    assert_equal,
    batch,
    load_merged,
    load_transformers,
    run_ours,
    run_torch,
)

from jina_jax.convert import open_checkpoint, write_checkpoint

pytestmark = PARITY

WIDE = {"vocab": 500, "width": 1024, "layers": 3, "heads": 16, "inner": 4096, "positions": 130}
LENGTHS = (19, 7, 12, 2, 19, 16)
CHOICES = [None, *FOLDERS]  # a row each in a mixed batch; row k has task k - 1


class Pair:
    """One random published checkpoint, and what transformers computes from it for every task."""

    def __init__(self, directory, size):
        self.checkpoint = open_checkpoint(write_published(directory / "published", size))
        write_checkpoint(self.checkpoint, directory / "transformers", "transformers")
        self.batch = batch(size["vocab"], LENGTHS)
        self.theirs = [
            run_torch(load_merged(directory / "transformers", folder), *self.batch)
            for folder in CHOICES
        ]

    def run(self, task_ids, dtype="float32"):
        return run_ours(self.checkpoint, *self.batch, task_ids, dtype)


@pytest.fixture(scope="module", params=[SMALL, WIDE], ids=["width 64", "width 1024"])
def pair(request, tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"), request.param)


def test_adapters_differ_by_far_more_than_the_tolerance(pair):
    last = [hidden[-1] for hidden, _ in pair.theirs]
    apart = [np.abs(a - b).max() for i, a in enumerate(last) for b in last[:i]]
    assert min(apart) > 1000 * TOLERANCE


def test_every_task_equals_transformers_in_every_layer(pair):
    rows = len(LENGTHS)
    outputs = pair.run([None, *(np.full(rows, task) for task in range(len(TASKS)))])
    for ours, theirs in zip(outputs, pair.theirs, strict=True):
        assert_equal(ours, theirs)


def test_mixed_tasks_equal_transformers_row_by_row(pair):
    ((hidden, pooled),) = pair.run([np.arange(len(LENGTHS)) - 1])
    for row, (their_hidden, their_pooled) in enumerate(pair.theirs):
        assert_equal(
            (hidden[:, row], pooled[row]),
            (their_hidden[:, row], their_pooled[row]),
        )


def test_bfloat16_keeps_the_direction_of_every_vector(pair):
    ((ours, _),) = pair.run([np.arange(len(LENGTHS)) - 1], "bfloat16")
    theirs = np.stack([hidden[-1, row] for row, (hidden, _) in enumerate(pair.theirs)])
    norms = np.linalg.norm(ours[-1], axis=-1) * np.linalg.norm(theirs, axis=-1)
    mask = pair.batch[1]
    cosines = (ours[-1] * theirs).sum(-1)[mask] / norms[mask]
    print(f"bfloat16: smallest cosine {cosines.min():.5f}")
    assert cosines.min() >= 0.999


def test_long_text_equals_transformers(tmp_path):
    size = {**SMALL, "positions": 4098}
    checkpoint = open_checkpoint(write_published(tmp_path / "published", size))
    write_checkpoint(checkpoint, tmp_path / "transformers", "transformers")
    ids, mask = batch(size["vocab"], (2500, 2100))
    for task, folder in ((None, None), (1, FOLDERS[1])):
        theirs = run_torch(load_merged(tmp_path / "transformers", folder), ids, mask)
        task_ids = None if task is None else np.full(2, task)
        (ours,) = run_ours(checkpoint, ids, mask, [task_ids])
        assert_equal(ours, theirs)


def test_absolute_positions_equal_xlm_roberta(tmp_path):
    write(tmp_path, xlm_roberta_config(), xlm_roberta_tensors(pooler=True))
    ids, mask = batch(SMALL["vocab"], (*LENGTHS, 512))
    theirs = run_torch(load_transformers(tmp_path, "XLMRobertaModel"), ids, mask)
    (ours,) = run_ours(open_checkpoint(tmp_path), ids, mask, [None])
    assert_equal(ours, theirs)


@pytest.mark.slow
def test_full_size_equals_transformers(tmp_path):
    """All 572,310,396 parameters, in the published file's bfloat16, computed in float32."""
    checkpoint = open_checkpoint(write_published(tmp_path / "published", FULL, "bfloat16"))
    parameters = sum(int(np.prod(t.shape)) for t in checkpoint.tensors.values())
    assert parameters == 572_310_396
    write_checkpoint(checkpoint, tmp_path / "transformers", "transformers")
    ids, mask = batch(FULL["vocab"], (24, 13))
    theirs = [
        run_torch(load_merged(tmp_path / "transformers", folder), ids, mask)
        for folder in (None, FOLDERS[4])
    ]
    outputs = run_ours(checkpoint, ids, mask, [None, np.full(2, 4)])
    for ours, expected in zip(outputs, theirs, strict=True):
        assert_equal(ours, expected, 1e-4)
