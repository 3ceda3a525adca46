"""Losses against those of sentence-transformers and PyTorch, on the same vectors."""

import jax
import numpy as np
import pytest
from theirs import PARITY

from jina_jax.training.losses import (
    cosent,
    cosine_distillation,
    info_nce,
    masked_lm,
    matryoshka,
    triplet_info_nce,
)

pytestmark = PARITY

RTOL = 1e-6
BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.05, 0.02])


def vectors(seed, count, *shape):
    """Draw vectors of unequal lengths, float32."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(*shape[:-1], 1)) ** 2 * rng.normal(size=shape) for _ in range(count)]


def float32(arrays):
    return [array.astype(np.float32) for array in arrays]


def given(width):
    """Return a model whose embeddings are its features."""
    import torch

    class Given(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["vectors"]}

        def get_embedding_dimension(self):
            return width

    return Given()


def run_theirs(make_loss, arrays, targets=None):
    """Return the value and the gradients of a loss of sentence-transformers, float32."""
    import torch

    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    columns = [torch.tensor(array, requires_grad=True) for array in arrays]
    loss = make_loss(losses, given(arrays[0].shape[-1]))
    targets = None if targets is None else torch.tensor(targets)
    value = loss([{"vectors": column} for column in columns], targets)
    value.backward()
    return value.item(), [column.grad.numpy() for column in columns]


def compare(ours, theirs, factor=1.0):
    """Compare values, and gradients, ours being ``factor`` times theirs."""
    np.testing.assert_allclose(ours[0], factor * theirs[0], rtol=RTOL)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        other = factor * other
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=5e-6 * np.abs(other).max())


def run_ours(function, arrays):
    return jax.jit(jax.value_and_grad(function, tuple(range(len(arrays)))))(*arrays)


@SEEDS
@TEMPERATURES
def test_info_nce_one_way_is_multiple_negatives_ranking(seed, temperature):
    arrays = float32(vectors(seed, 2, 9, 8))
    theirs = run_theirs(
        lambda losses, model: losses.MultipleNegativesRankingLoss(model, scale=1 / temperature),
        arrays,
    )
    compare(
        run_ours(lambda *a: info_nce(*a, temperature=temperature, bidirectional=False), arrays),
        theirs,
    )


@SEEDS
@TEMPERATURES
def test_info_nce_is_twice_the_averaged_directions(seed, temperature):
    arrays = float32(vectors(seed, 2, 9, 8))
    theirs = run_theirs(
        lambda losses, model: losses.MultipleNegativesRankingLoss(
            model, scale=1 / temperature, **BOTH
        ),
        arrays,
    )
    ours = run_ours(lambda *a: info_nce(*a, temperature=temperature), arrays)
    compare(ours, theirs, factor=2.0)


@SEEDS
@TEMPERATURES
@pytest.mark.parametrize("negatives", [1, 3])
def test_triplet_is_twice_the_averaged_directions_with_hard_negatives(seed, temperature, negatives):
    """Each hard negative is a column there, and a place on the second axis here."""
    columns = float32(vectors(seed, 2 + negatives, 6, 8))
    value, gradients = run_theirs(
        lambda losses, model: losses.MultipleNegativesRankingLoss(
            model, scale=1 / temperature, **BOTH
        ),
        columns,
    )
    arrays = [*columns[:2], np.stack(columns[2:], axis=1)]
    theirs = value, [*gradients[:2], np.stack(gradients[2:], axis=1)]
    ours = run_ours(lambda *a: triplet_info_nce(*a, temperature=temperature), arrays)
    compare(ours, theirs, factor=2.0)


@SEEDS
@TEMPERATURES
def test_cosent(seed, temperature):
    arrays = float32(vectors(seed, 2, 12, 8))
    scores = np.random.default_rng(seed).integers(0, 5, 12).astype(np.float32)
    theirs = run_theirs(
        lambda losses, model: losses.CoSENTLoss(model, scale=1 / temperature), arrays, scores
    )
    ours = run_ours(lambda *a: cosent(*a, scores=scores, temperature=temperature), arrays)
    compare(ours, theirs)


@SEEDS
def test_cosine_distillation(seed):
    student, teacher = float32(vectors(seed, 2, 9, 8))
    theirs = run_theirs(
        lambda losses, model: losses.EmbedDistillLoss(model, distance_metric="cosine"),
        [student],
        teacher,
    )
    compare(run_ours(lambda a: cosine_distillation(a, teacher=teacher), [student]), theirs)


@SEEDS
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 0.25]])
def test_matryoshka_of_info_nce(seed, weights):
    arrays = float32(vectors(seed, 2, 9, 8))
    theirs = run_theirs(
        lambda losses, model: losses.MatryoshkaLoss(
            model, losses.MultipleNegativesRankingLoss(model), [8, 4, 2], weights
        ),
        arrays,
    )
    loss = matryoshka(info_nce, [8, 4, 2], weights, "sum")
    compare(run_ours(lambda *a: loss(*a, bidirectional=False), arrays), theirs)


@SEEDS
def test_matryoshka_of_cosine_distillation_cuts_the_teacher(seed):
    student, teacher = float32(vectors(seed, 2, 9, 8))
    theirs = run_theirs(
        lambda losses, model: losses.MatryoshkaLoss(
            model, losses.EmbedDistillLoss(model, distance_metric="cosine"), [8, 3]
        ),
        [student],
        teacher,
    )
    loss = matryoshka(cosine_distillation, [8, 3], reduction="sum")
    compare(run_ours(lambda a: loss(a, teacher=teacher), [student]), theirs)


@SEEDS
def test_masked_lm_is_the_weighted_sum_of_cross_entropies(seed):
    import torch

    rng = np.random.default_rng(seed)
    logits = (4 * rng.normal(size=(10, 50))).astype(np.float32)
    labels, weights = rng.integers(0, 50, 10), rng.random(10).astype(np.float32)
    labels[3], weights[3] = -100, 0.0  # how PyTorch leaves a token out
    given_logits = torch.tensor(logits, requires_grad=True)
    rows = torch.nn.functional.cross_entropy(given_logits, torch.tensor(labels), reduction="none")
    value = (rows * torch.tensor(weights)).sum()
    value.backward()
    ours = run_ours(lambda a: masked_lm(a, labels=labels, weights=weights), [logits])
    compare(ours, (value.item(), [given_logits.grad.numpy()]))
