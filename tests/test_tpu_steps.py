"""The steps that are timed and checked on a TPU."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from peers import Missing
from tpu_steps import DEFAULT, Routes, largest_difference, mixed_texts


@pytest.fixture(scope="module")
def routes():
    return Routes(small=True, layers=1)


def lengths(step):
    spans = step.batch.text_spans
    return sorted((spans[..., 1] - spans[..., 0]).ravel().tolist(), reverse=True)


def test_uneven_steps_have_padding_and_odd_texts(routes):
    packed = routes.uneven_step(128, packed=True, tasks=False)
    assert packed.batch.shape == (2, 128, 16)
    assert lengths(packed)[:5] == [119, 61, 42, 7, 1]
    assert packed.task_ids is None
    padded = routes.uneven_step(128, packed=False, tasks=True)
    assert (padded.batch.shape, lengths(padded)) == ((2, 128, 1), [128, 85])
    assert padded.task_ids.tolist() == [[0], [1]]
    assert routes.uneven_step(8192, packed=True, tasks=True).batch.shape == (1, 8192, 256)


@pytest.mark.parametrize(
    ("length", "shape"), [(128, (4, 128, 16)), (64, (4, 128, 16)), (256, (2, 256, 32))]
)
def test_full_steps_have_no_padding(routes, length, shape):
    step = routes.full_step(length, tasks=True)
    assert step.batch.shape == shape
    assert set(lengths(step)) == {length, 0}
    assert sum(lengths(step)) == step.batch.input_ids.size
    assert set(step.task_ids[step.batch.rows, step.batch.slots]) <= set(range(-1, 5))


def test_texts_longer_than_packed_rows_have_their_own(routes):
    step = routes.full_step(512, tasks=False)
    assert (step.batch.shape, lengths(step)) == ((1, 512, 1), [512])


def test_padding_does_not_count_as_a_difference(routes):
    step = routes.uneven_step(128, packed=False, tasks=False)
    vectors = np.zeros((2, 128, 4), np.float32)
    others = vectors.copy()
    others[1, 85:] = 9
    assert largest_difference(vectors, others, step) == 0
    others[1, 84, 3] = -2
    assert largest_difference(vectors, others, step) == 2


def test_routes_run_as_on_a_tpu_or_give_a_reason(routes):
    step = routes.uneven_step(128, packed=True, tasks=True)
    assert routes.taken("reference", step) == "reference"
    assert routes.engine(DEFAULT).platform == "tpu"
    with pytest.raises(Missing, match="needs an NVIDIA GPU"):
        routes.engine("cudnn")
    with pytest.raises(Missing, match=r"pallas runs: pallas_fused takes rows of .* up to 1024"):
        routes.taken("pallas_fused", routes.uneven_step(4096, packed=True, tasks=True))
    exact = routes.token_vectors("reference", "float32", step)
    usual = routes.token_vectors(DEFAULT, "bfloat16", step)
    assert 0 < largest_difference(usual, exact, step) < 0.1
    without = routes.token_vectors("reference", "float32", step._replace(task_ids=None))
    assert largest_difference(without, exact, step) > 0.1


def test_mixed_texts():
    texts = mixed_texts(50, longest=30)
    sizes = [len(text.split()) for text in texts]
    assert len(texts) == 50
    assert min(sizes) >= 1
    assert 30 <= max(sizes) <= 60
    assert texts == mixed_texts(50, longest=30)
