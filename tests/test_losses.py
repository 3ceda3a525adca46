"""Losses against the paper's formulas, written with loops in float64."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.runtime.sharding import make_mesh
from jina_jax.training import losses
from jina_jax.training.losses import (
    contrastive_distillation,
    cosent,
    cosine_distillation,
    function_of,
    info_nce,
    masked_lm,
    matryoshka,
    separation,
    similarity_distillation,
    triplet_info_nce,
)
from jina_jax.training.vocabulary import LOSSES

RTOL = 1e-6
FUNCTIONS = {name: function_of(name) for name in LOSSES if name != "mlm"}

# ---------------------------------------------------------------- the formulas, float64


def cosine(x, y):
    lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0


def formula_nce(anchors, candidates, own, tau):
    """Σ -ln (e^{s(x, y) / τ} / Σ e^{s(x, y') / τ})."""
    total = 0.0
    for anchor, mine in zip(anchors, own, strict=True):
        parts = [math.exp(cosine(anchor, candidate) / tau) for candidate in candidates]
        total -= math.log(parts[mine] / sum(parts))
    return total


def formula_info_nce(queries, documents, *, temperature, bidirectional=True, reduction="mean"):
    rows = range(len(queries))
    total = formula_nce(queries, documents, rows, temperature)
    if bidirectional:
        total += formula_nce(documents, queries, rows, temperature)
    return total / len(queries) if reduction == "mean" else total


def formula_triplet(queries, positives, negatives, *, temperature, reduction="mean"):
    rows = range(len(queries))
    candidates = [*positives, *(negative for of_row in negatives for negative in of_row)]
    total = formula_nce(queries, candidates, rows, temperature)
    total += formula_nce(positives, queries, rows, temperature)
    return total / len(queries) if reduction == "mean" else total


def formula_ranking(similarities, scores, tau):
    """ln(1 + Σ e^{(s_j - s_i) / τ}) over ordered pairs."""
    total = 1.0
    for s_i, score_i in zip(similarities, scores, strict=True):
        for s_j, score_j in zip(similarities, scores, strict=True):
            if score_i > score_j:
                total += math.exp((s_j - s_i) / tau)
    return math.log(total)


def formula_cosent(first, second, *, scores, temperature):
    return formula_ranking(list(map(cosine, first, second)), scores, temperature)


def formula_separation(embeddings, *, labels, temperature):
    pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
    similarities = [cosine(embeddings[i], embeddings[j]) for i, j in pairs]
    scores = [1.0 if labels[i] == labels[j] else 0.0 for i, j in pairs]
    return formula_ranking(similarities, scores, temperature)


def formula_cosine_distillation(embeddings, *, teacher):
    width = len(embeddings[0])
    return sum(1 - cosine(x, t[:width]) for x, t in zip(embeddings, teacher, strict=True)) / len(
        embeddings
    )


def formula_similarity_distillation(embeddings, *, teacher):
    pairs = [(i, j) for i in range(len(teacher)) for j in range(len(teacher)) if i != j]
    return sum(
        (cosine(embeddings[i], embeddings[j]) - cosine(teacher[i], teacher[j])) ** 2
        for i, j in pairs
    ) / len(pairs)


def formula_contrastive_distillation(embeddings, *, teacher, temperature):
    """-Σ p_j ln q_j, of which p are the teacher's shares and q the student's."""
    target = [row[: len(embeddings[0])] for row in teacher]
    total = 0.0
    for x, t in zip(embeddings, target, strict=True):
        wanted = [math.exp(cosine(t, other) / temperature) for other in target]
        found = [math.exp(cosine(x, other) / temperature) for other in target]
        for p, q in zip(wanted, found, strict=True):
            total -= p / sum(wanted) * math.log(q / sum(found))
    return total / len(embeddings)


def formula_masked_lm(logits, *, labels, weights):
    total = 0.0
    for row, label, weight in zip(logits, labels, weights, strict=True):
        total -= weight * math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))
    return total


# ---------------------------------------------------------------- cases

SEEDS = [0, 1, 2, 3, 4]


def normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def nce_case(seed):
    return [normal(seed, 5, 6), 2 * normal(seed + 100, 5, 6)], {"temperature": 0.05}


def triplet_case(seed, count=3):
    arrays = [normal(seed, 4, 6), normal(seed + 100, 4, 6), normal(seed, 4, count, 6)]
    return arrays, {"temperature": 0.02}


def cosent_case(seed):
    scores = np.random.default_rng(seed).integers(0, 4, 7).astype(np.float32)  # with ties
    return [normal(seed, 7, 6), normal(seed + 100, 7, 6)], {"scores": scores, "temperature": 0.05}


def separation_case(seed):
    labels = np.random.default_rng(seed).permutation([7, 7, 7, -1, -1, 3]).astype(np.int32)
    return [normal(seed, 6, 5)], {"labels": labels, "temperature": 0.02}


def distillation_case(seed, width=6):
    return [normal(seed, 5, 6)], {"teacher": normal(seed + 100, 5, width)}


def masked_lm_case(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, 6).astype(np.int32)
    weights = np.array([1.0, 0.0, 0.5, 1.0, 2.0, 0.0], np.float32)
    return [3 * normal(seed, 6, 9)], {"labels": labels, "weights": weights}


def case(function, formula, make, **options):
    def of_seed(seed):
        arrays, targets = make(seed)
        return arrays, {**targets, **options}

    return function, formula, of_seed


CASES = {
    "info_nce": case(info_nce, formula_info_nce, nce_case),
    "info_nce sum": case(info_nce, formula_info_nce, nce_case, reduction="sum"),
    "info_nce one way": case(info_nce, formula_info_nce, nce_case, bidirectional=False),
    "info_nce warm": case(info_nce, formula_info_nce, nce_case, temperature=1.0),
    "triplet": case(triplet_info_nce, formula_triplet, triplet_case),
    "triplet sum": case(triplet_info_nce, formula_triplet, triplet_case, reduction="sum"),
    "triplet without negatives": case(
        triplet_info_nce, formula_triplet, functools.partial(triplet_case, count=0)
    ),
    "cosent": case(cosent, formula_cosent, cosent_case),
    "cosent warm": case(cosent, formula_cosent, cosent_case, temperature=1.0),
    "separation": case(separation, formula_separation, separation_case),
    "separation warm": case(separation, formula_separation, separation_case, temperature=1.0),
    "cosine_distillation": case(
        cosine_distillation, formula_cosine_distillation, distillation_case
    ),
    "cosine_distillation wide": case(
        cosine_distillation,
        formula_cosine_distillation,
        functools.partial(distillation_case, width=9),
    ),
    "similarity_distillation": case(
        similarity_distillation, formula_similarity_distillation, distillation_case
    ),
    "similarity_distillation narrow": case(
        similarity_distillation,
        formula_similarity_distillation,
        functools.partial(distillation_case, width=3),
    ),
    "contrastive_distillation": case(
        contrastive_distillation,
        formula_contrastive_distillation,
        distillation_case,
        temperature=0.05,
    ),
    "contrastive_distillation wide and warm": case(
        contrastive_distillation,
        formula_contrastive_distillation,
        functools.partial(distillation_case, width=9),
        temperature=1.0,
    ),
    "masked_lm": case(masked_lm, formula_masked_lm, masked_lm_case),
}
ALL = pytest.mark.parametrize(("function", "formula", "make"), CASES.values(), ids=CASES)
# One case of each loss of vectors.
EACH = pytest.mark.parametrize(
    ("function", "formula", "make"), [CASES[name] for name in FUNCTIONS], ids=FUNCTIONS
)


def doubles(arrays):
    return [np.asarray(array).astype(np.float64) for array in arrays]


def expected_loss(formula, arrays, targets):
    targets = {
        name: value if np.ndim(value) == 0 or name == "labels" else np.asarray(value, np.float64)
        for name, value in targets.items()
    }
    return formula(*doubles(arrays), **targets)


def expected_gradients(formula, arrays, targets, step=1e-5):
    """Central differences, whose error is about 1e-9 in float64."""
    arrays = doubles(arrays)
    gradients = [np.zeros_like(array) for array in arrays]
    for array, gradient in zip(arrays, gradients, strict=True):
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for moved in (kept - step, kept + step):
                array[index] = moved
                ends.append(expected_loss(formula, arrays, targets))
            array[index] = kept
            gradient[index] = (ends[1] - ends[0]) / (2 * step)
    return gradients


def value_and_gradients(function, arrays, targets):
    """Run a loss under jit; a new function each time, so that no program is reused."""
    arguments = tuple(range(len(arrays)))
    run = jax.jit(jax.value_and_grad(lambda *a: function(*a, **targets), arguments))
    return run(*map(jnp.asarray, arrays))


def assert_gradients(gradients, expected, of_largest=1e-6):
    """Compare to 1e-5, and small entries to a part of the largest.

    That part is 1e-6 for another order of the same float32 sums. It is 5e-6 against float64: a
    cosine is right to 1e-7, and τ = 0.02 makes 50 of these in an exponent.
    """
    for mine, other in zip(gradients, expected, strict=True):
        largest = np.abs(np.asarray(other)).max(initial=0.0)
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=of_largest * largest)


# ---------------------------------------------------------------- value and gradient


@ALL
@pytest.mark.parametrize("seed", SEEDS)
def test_value_is_that_of_the_formula(function, formula, make, seed):
    arrays, targets = make(seed)
    value = function(*arrays, **targets)
    assert value.shape == ()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected_loss(formula, arrays, targets), rtol=RTOL)


@EACH
def test_bfloat16_vectors_are_used_as_float32(function, formula, make):
    arrays, targets = make(5)
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    if "teacher" in targets:
        targets["teacher"] = jnp.asarray(targets["teacher"], jnp.bfloat16)
    value, gradients = value_and_gradients(function, arrays, targets)
    assert value.dtype == jnp.float32
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(value, expected_loss(formula, arrays, targets), rtol=RTOL)


@ALL
def test_gradient_is_that_of_the_formula(function, formula, make):
    arrays, targets = make(6)
    _, gradients = value_and_gradients(function, arrays, targets)
    expected = expected_gradients(formula, arrays, targets)
    assert any(gradient.any() for gradient in expected)
    assert_gradients(gradients, expected, 5e-6)


@EACH
def test_length_of_vectors_does_not_count(function, formula, make):
    arrays, targets = make(0)
    # Powers of two, so that float32 holds the longer and the shorter vectors as exactly.
    powers = [2.0 ** (np.arange(array[..., :1].size) % 7 - 3) for array in arrays]
    longer = [
        array * power.reshape(array[..., :1].shape).astype(np.float32)
        for array, power in zip(arrays, powers, strict=True)
    ]
    scaled = {k: v * np.float32(4) if k == "teacher" else v for k, v in targets.items()}
    np.testing.assert_allclose(function(*longer, **scaled), function(*arrays, **targets), rtol=RTOL)


@EACH
def test_zero_vectors_have_cosine_0_and_finite_gradients(function, formula, make):
    arrays, targets = make(0)
    for array in arrays:
        array[1] = 0.0
    value, gradients = value_and_gradients(function, arrays, targets)
    np.testing.assert_allclose(value, expected_loss(formula, arrays, targets), rtol=RTOL)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


# ---------------------------------------------------------------- contrastive


def test_one_pair_alone_costs_nothing():
    value, gradients = value_and_gradients(info_nce, [normal(0, 1, 4), normal(1, 1, 4)], {})
    assert value == 0.0
    assert not any(gradient.any() for gradient in gradients)


def test_defaults_are_those_of_the_paper():
    queries, documents = nce_case(0)[0]
    same = info_nce(queries, documents, temperature=0.05, bidirectional=True, reduction="mean")
    assert info_nce(queries, documents) == same
    for loss in (info_nce, triplet_info_nce, cosent, separation):
        assert inspect.signature(loss).parameters["temperature"].default == 0.05


def test_exponents_beyond_float32_are_no_matter():
    """e^{1 / 0.001} is not a float32."""
    queries, documents = np.eye(4, dtype=np.float32), np.roll(np.eye(4, dtype=np.float32), 1, 0)
    value, gradients = value_and_gradients(info_nce, [queries, documents], {"temperature": 1e-3})
    np.testing.assert_allclose(value, 2000.0, rtol=RTOL)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("function", "rows", "parts"),
    [
        (info_nce, 13, 3),  # four blocks of 4, 4, 4 and 1 rows
        (info_nce, 12, 100),  # a row each
        (triplet_info_nce, 12, 3),
        (triplet_info_nce, 7, 5),
    ],
)
def test_blocks_of_queries_change_nothing(monkeypatch, function, rows, parts):
    arrays = [normal(0, rows, 6), normal(1, rows, 6)]
    arrays += [normal(2, rows, 3, 6)] * (function is triplet_info_nce)
    whole = value_and_gradients(function, arrays, {})
    monkeypatch.setattr(losses, "_SIMILARITY_BYTES", 4 * rows * rows // parts)
    run = jax.value_and_grad(lambda *a: function(*a), tuple(range(len(arrays))))
    assert "scan" in str(jax.make_jaxpr(run)(*arrays))
    blocked = value_and_gradients(function, arrays, {})
    np.testing.assert_allclose(blocked[0], whole[0], rtol=RTOL)
    assert_gradients(blocked[1], whole[1])


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(8192, 8192, 1), (8193, 8192, 2), (16384, 16384, 4), (24576, 24576, 16), (2, 1 << 30, 2)],
)
def test_number_of_blocks(rows, columns, blocks):
    """8,192 x 8,192 float32 numbers are 256 MiB."""
    assert losses._count_blocks(rows, columns) == blocks


@pytest.mark.parametrize("function", [info_nce, triplet_info_nce])
def test_blocks_bound_the_memory_of_loss_and_gradient(monkeypatch, function):
    rows, width = 512, 8
    shapes = [(rows, width), (rows, width), (rows, 1, width)][: 2 + (function is not info_nce)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def temporary_bytes():
        run = jax.value_and_grad(lambda *a: function(*a), tuple(range(len(arrays))))
        return jax.jit(run).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    all_similarities = 4 * rows * rows
    assert temporary_bytes() > all_similarities
    monkeypatch.setattr(losses, "_SIMILARITY_BYTES", all_similarities // 16)
    assert temporary_bytes() < all_similarities / 2


# ---------------------------------------------------------------- ranking


@pytest.mark.parametrize(
    ("function", "arrays", "targets"),
    [
        (cosent, [normal(0, 4, 5), normal(1, 4, 5)], {"scores": np.ones(4, np.float32)}),
        (cosent, [normal(0, 1, 5), normal(1, 1, 5)], {"scores": np.ones(1, np.float32)}),
        (separation, [normal(0, 4, 5)], {"labels": np.zeros(4, np.int32)}),
        (separation, [normal(0, 4, 5)], {"labels": np.arange(4)}),
        (separation, [normal(0, 1, 5)], {"labels": np.zeros(1, np.int32)}),
    ],
    ids=["equal scores", "one pair", "one label", "labels all different", "one text"],
)
def test_nothing_to_rank_is_0_without_gradient(function, arrays, targets):
    value, gradients = value_and_gradients(function, arrays, targets)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_cosent_of_two_pairs_by_hand():
    """Cosines 0 and 1 at scores 5 and -2: ln(1 + e^{(1 - 0) / 0.5})."""
    first, second = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 3.0], [2.0, 0.0]])
    value = cosent(first, second, scores=np.array([5, -2]), temperature=0.5)
    np.testing.assert_allclose(value, math.log(1 + math.exp(2.0)), rtol=RTOL)


def test_cosent_does_not_overflow():
    """e^{2 / 0.02} = e^100 is not a float32."""
    first, second = np.array([[1.0], [1.0]]), np.array([[-1.0], [1.0]])
    for scores, expected in (([1, 0], 100.0), ([0, 1], 0.0)):
        targets = {"scores": np.array(scores), "temperature": 0.02}
        value, gradients = value_and_gradients(cosent, [first, second], targets)
        np.testing.assert_allclose(value, expected, rtol=RTOL, atol=1e-40)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_small_ranking_losses_are_not_rounded_to_0():
    first = np.array([[1.0, 0.0], [1.0, 0.0]])
    value = cosent(first, np.array([[1.0, 0.0], [-1.0, 0.0]]), scores=[1, 0], temperature=0.05)
    np.testing.assert_allclose(value, math.exp(-40.0), rtol=1e-5)


def test_separation_counts_each_pair_of_texts_once():
    """One pair of one label with cosine 1, two of two labels with cosine 0: ln(1 + 2 e^-1)."""
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value = separation(vectors, labels=np.array([4, 4, 9]), temperature=1.0)
    np.testing.assert_allclose(value, math.log(1 + 2 * math.exp(-1.0)), rtol=RTOL)


@pytest.mark.parametrize("temperature", [0.02, 1e-3])
def test_separation_does_not_overflow(temperature):
    """Opposite with one label, alike with two: e^{2 / 0.02} is not a float32."""
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    targets = {"labels": np.array([0, 0, 1]), "temperature": temperature}
    value, (gradient,) = value_and_gradients(separation, [vectors], targets)
    np.testing.assert_allclose(value, 2 / temperature, rtol=RTOL)
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------- distillation


def test_a_teacher_that_agrees_costs_nothing():
    vectors = normal(0, 4, 6)
    wider = np.concatenate([3 * vectors, normal(1, 4, 2)], axis=1)
    np.testing.assert_allclose(cosine_distillation(vectors, teacher=wider), 0.0, atol=1e-6)
    turned = vectors @ np.linalg.qr(normal(2, 6, 6))[0]  # other vectors, the same cosines
    np.testing.assert_allclose(similarity_distillation(vectors, teacher=turned), 0.0, atol=1e-12)
    assert cosine_distillation(vectors, teacher=turned) > 0.1


def test_texts_of_one_meaning_are_no_negatives_of_each_other():
    """The gradient is zero at the teacher's own vectors, of which the first two are the same."""
    teacher = normal(0, 4, 6)
    teacher[1] = teacher[0]
    _, (gradient,) = value_and_gradients(contrastive_distillation, [teacher], {"teacher": teacher})
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    apart = teacher.copy()
    apart[1] = -teacher[0]
    assert contrastive_distillation(apart, teacher=teacher) > 1.0


# ---------------------------------------------------------------- masked language modelling


def test_large_logits_do_not_overflow():
    logits = jnp.asarray([[1e4, 0.0, -1e4], [0.0, 1e4, 1e4]])
    value = masked_lm(logits, labels=np.array([1, 2]), weights=np.ones(2, np.float32))
    np.testing.assert_allclose(value, 1e4 + math.log(2), rtol=RTOL)


@pytest.mark.parametrize("label", [-100, -1, 9])
def test_a_label_outside_counts_for_nothing_at_weight_0_and_is_nan_otherwise(label):
    (logits,), targets = masked_lm_case(0)
    labels = np.where(np.arange(6) == 1, label, targets["labels"])  # its weight is 0
    value, (gradient,) = value_and_gradients(masked_lm, [logits], {**targets, "labels": labels})
    expected = value_and_gradients(masked_lm, [logits], targets)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1][0])
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert np.isnan(masked_lm(logits, labels=labels, weights=np.ones(6, np.float32)))


def test_no_masked_token_is_0():
    empty = np.zeros(0, np.int32)
    value = masked_lm(np.zeros((0, 9), np.float32), labels=empty, weights=empty)
    assert value == 0.0


def test_bfloat16_logits_are_used_as_float32():
    (logits,), targets = masked_lm_case(0)
    logits = jnp.asarray(logits, jnp.bfloat16)
    value = masked_lm(logits, **targets)
    assert value.dtype == jnp.float32
    expected = expected_loss(formula_masked_lm, [logits], targets)
    np.testing.assert_allclose(value, expected, rtol=RTOL)


def test_weights_may_be_a_mask():
    (logits,), targets = masked_lm_case(0)
    mask = np.array([True, False, True, True, False, False])
    value = masked_lm(logits, labels=targets["labels"], weights=mask)
    expected = formula_masked_lm(logits.astype(float), labels=targets["labels"], weights=mask)
    np.testing.assert_allclose(value, expected, rtol=RTOL)


# ---------------------------------------------------------------- matryoshka


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", [None, [1, 0.25]])
def test_matryoshka_is_the_weighted_loss_of_the_first_values(
    function, formula, make, reduction, weights
):
    arrays, targets = make(0)
    loss = matryoshka(function, [5, 2], weights, reduction)
    parts = [expected_loss(formula, [a[..., :dim] for a in arrays], targets) for dim in (5, 2)]
    factors = weights or [1, 1]
    expected = sum(factor * part for factor, part in zip(factors, parts, strict=True))
    if reduction == "mean":
        expected /= sum(factors)
    np.testing.assert_allclose(loss(*arrays, **targets), expected, rtol=RTOL)


def test_matryoshka_gradient_is_the_sum_of_those_of_its_parts():
    arrays, targets = triplet_case(0)
    _, gradients = value_and_gradients(
        matryoshka(triplet_info_nce, (6, 3), (2.0, 1.0)), arrays, targets
    )

    def parts(*arrays, **targets):
        cut = [array[..., :3] for array in arrays]
        return (2 * formula_triplet(*arrays, **targets) + formula_triplet(*cut, **targets)) / 3

    assert_gradients(gradients, expected_gradients(parts, arrays, targets), 5e-6)


def test_matryoshka_keeps_name_and_signature_and_takes_means_by_default():
    loss = matryoshka(cosent, (4, 2))
    assert loss.__name__ == "cosent"
    assert inspect.signature(loss) == inspect.signature(cosent)
    arrays, targets = cosent_case(0)
    assert loss(*arrays, **targets) == matryoshka(cosent, (4, 2), (1, 1), "mean")(
        *arrays, **targets
    )


# ---------------------------------------------------------------- several devices


def many_rows(name):
    """Arrays of 16 rows, which 8 devices share."""
    rng = np.random.default_rng(0)
    arrays = [normal(0, 16, 6), normal(1, 16, 6)]
    return {
        "info_nce": (arrays, {}),
        "triplet": ([*arrays, normal(2, 16, 3, 6)], {}),
        "cosent": (arrays, {"scores": rng.integers(0, 5, 16).astype(np.float32)}),
        "separation": (arrays[:1], {"labels": rng.integers(0, 4, 16).astype(np.int32)}),
        "cosine_distillation": (arrays[:1], {"teacher": normal(1, 16, 9)}),
        "similarity_distillation": (arrays[:1], {"teacher": normal(1, 16, 9)}),
        "contrastive_distillation": (arrays[:1], {"teacher": normal(1, 16, 9)}),
        "masked_lm": (
            [normal(0, 16, 9)],
            {"labels": rng.integers(0, 9, 16), "weights": rng.random(16).astype(np.float32)},
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [*((name, False) for name in (*FUNCTIONS, "masked_lm")), ("info_nce", True), ("triplet", True)],
)
def test_rows_on_several_devices_give_the_same_loss_and_gradient(monkeypatch, name, blocks):
    function = masked_lm if name == "masked_lm" else matryoshka(FUNCTIONS[name], (6, 3))
    arrays, targets = many_rows(name)
    single = value_and_gradients(function, arrays, targets)
    if blocks:
        monkeypatch.setattr(losses, "_SIMILARITY_BYTES", 4 * 16 * 16 // 4)
    rows = NamedSharding(make_mesh(), P("data"))
    arrays, targets = jax.device_put((arrays, targets), rows)
    assert len({str(shard.index) for shard in arrays[0].addressable_shards}) == 8
    # Targets are arguments here: closed over, they would be constants of the program.
    run = jax.jit(jax.value_and_grad(lambda a, t: function(*a, **t)))
    value, gradients = run(arrays, targets)
    np.testing.assert_allclose(value, single[0], rtol=1e-5)
    assert_gradients(gradients, single[1])


# ---------------------------------------------------------------- refusals

X, Y, N = normal(0, 4, 6), normal(1, 4, 6), normal(2, 4, 2, 6)
SCORES, LABELS = np.zeros(4, np.float32), np.zeros(4, np.int32)
TARGETS = {
    "info_nce": ((X, Y), {}),
    "triplet": ((X, Y, N), {}),
    "cosent": ((X, Y), {"scores": SCORES}),
    "separation": ((X,), {"labels": LABELS}),
}


@pytest.mark.parametrize("temperature", [0, 0.0, -0.05, math.nan, math.inf, "0.05", None])
@pytest.mark.parametrize("name", TARGETS)
def test_temperature_must_be_positive(name, temperature):
    arrays, targets = TARGETS[name]
    with pytest.raises(ValueError, match=r"^temperature=.*: expected a positive number"):
        FUNCTIONS[name](*arrays, **targets, temperature=temperature)


@pytest.mark.parametrize("name", ["info_nce", "triplet"])
def test_reduction_must_be_known(name):
    arrays, targets = TARGETS[name]
    with pytest.raises(ValueError, match=r"^reduction='none': expected one of \('mean', 'sum'\)$"):
        FUNCTIONS[name](*arrays, **targets, reduction="none")


REFUSED = {
    "rows differ": (lambda: info_nce(X, Y[:3]), r"documents: .*\(B, D\), B=4, D=6, got \(3, 6\)"),
    "widths differ": (lambda: info_nce(X, Y[:, :5]), r"documents: .* got \(4, 5\)"),
    "one vector": (lambda: info_nce(X[0], Y), r"queries: .* B=any, D=any, got \(6,\)"),
    "no rows": (lambda: info_nce(X[:0], Y[:0]), r"queries: .* got \(0, 6\)"),
    "no values": (lambda: info_nce(X[:, :0], Y[:, :0]), r"queries: .* got \(4, 0\)"),
    "positives": (lambda: triplet_info_nce(X, Y[:3], N), r"positives: .* got \(3, 6\)"),
    "flat negatives": (
        lambda: triplet_info_nce(X, Y, X),
        r"negatives: .*\(B, M, D\), B=4, M=any, D=6, got \(4, 6\)",
    ),
    "rows of negatives": (lambda: triplet_info_nce(X, Y, N[:3]), r"negatives: .* got \(3, 2, 6\)"),
    "width of negatives": (
        lambda: triplet_info_nce(X, Y, N[..., :5]),
        r"negatives: .* got \(4, 2, 5\)",
    ),
    "second": (lambda: cosent(X, Y[:3], scores=SCORES), r"second: .* got \(3, 6\)"),
    "scores": (lambda: cosent(X, Y, scores=SCORES[:3]), r"scores: .*\(B\), B=4, got \(3,\)"),
    "labels": (lambda: separation(X, labels=LABELS[:3]), r"labels: .* got \(3,\)"),
    "labels of floats": (
        lambda: separation(X, labels=SCORES),
        r"labels: expected integers, got float32",
    ),
    "rows of teacher": (lambda: cosine_distillation(X, teacher=Y[:3]), r"teacher: .* got \(3, 6\)"),
    "narrow teacher": (
        lambda: cosine_distillation(X, teacher=Y[:, :5]),
        r"teacher: expected vectors of at least 6 values, got 5",
    ),
    "rows of a second teacher": (
        lambda: similarity_distillation(X, teacher=Y[:3]),
        r"teacher: .* got \(3, 6\)",
    ),
    "rows of a third teacher": (
        lambda: contrastive_distillation(X, teacher=Y[:3]),
        r"teacher: .* got \(3, 6\)",
    ),
    "a third narrow teacher": (
        lambda: contrastive_distillation(X, teacher=Y[:, :5]),
        r"teacher: expected vectors of at least 6 values, got 5",
    ),
    "temperature of distillation": (
        lambda: contrastive_distillation(X, teacher=Y, temperature=0.0),
        r"temperature=0.0: expected a positive number",
    ),
    "one row to compare": (
        lambda: similarity_distillation(X[:1], teacher=Y[:1]),
        r"embeddings: expected at least 2 rows to compare, got 1",
    ),
    "logits": (
        lambda: masked_lm(N, labels=LABELS, weights=SCORES),
        r"logits: .*\(M, V\), M=any, V=any, got \(4, 2, 6\)",
    ),
    "no vocabulary": (
        lambda: masked_lm(X[:, :0], labels=LABELS, weights=SCORES),
        r"logits: .* got \(4, 0\)",
    ),
    "tokens": (lambda: masked_lm(X, labels=LABELS[:3], weights=SCORES), r"labels: .* got \(3,\)"),
    "tokens of floats": (
        lambda: masked_lm(X, labels=SCORES, weights=SCORES),
        r"labels: expected integers, got float32",
    ),
    "weights": (lambda: masked_lm(X, labels=LABELS, weights=SCORES[:3]), r"weights: .* got \(3,\)"),
    "no dims": (lambda: matryoshka(info_nce, []), r"dims=\[\]: expected one positive integer"),
    "dims of 0": (lambda: matryoshka(info_nce, [4, 0]), r"dims=\[4, 0\]: expected one positive"),
    "dims of floats": (lambda: matryoshka(info_nce, [4.0]), r"dims=\[4.0\]: expected one positive"),
    "dims above": (
        lambda: matryoshka(info_nce, [4, 7])(X, Y),
        r"dims=\(4, 7\): expected none above 6, the width of embeddings",
    ),
    "dims of no vectors": (
        lambda: matryoshka(info_nce, [4])(np.float32(1), np.float32(1)),
        r"dims=\(4,\): expected none above 0, the width of embeddings",
    ),
    "number of weights": (
        lambda: matryoshka(info_nce, [4, 2], [1.0]),
        r"weights=\[1.0\]: expected 2, one for each of dims=\[4, 2\]",
    ),
    "negative weights": (
        lambda: matryoshka(info_nce, [4, 2], [1.0, -0.5]),
        r"weights=\[1.0, -0.5\]: expected none below 0, one above 0, all finite",
    ),
    "weights of 0": (lambda: matryoshka(info_nce, [4], [0]), r"weights=\[0\]: expected none below"),
    "nan": (lambda: matryoshka(info_nce, [4], [math.nan]), r"weights=\[nan\]: expected none below"),
    "inf": (lambda: matryoshka(info_nce, [4], [math.inf]), r"weights=\[inf\]: expected none below"),
    "reduction of matryoshka": (
        lambda: matryoshka(info_nce, [4], None, "max"),
        r"reduction='max': expected one of \('mean', 'sum'\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_shapes_are_refused_while_a_program_is_made():
    with pytest.raises(ValueError, match="documents: expected shape"):
        jax.jit(info_nce).lower(X, Y[:3])


def test_names_in_configuration_files():
    assert {name: function_of(name).__name__ for name in LOSSES} == {
        "info_nce": "info_nce",
        "triplet": "triplet_info_nce",
        "cosent": "cosent",
        "separation": "separation",
        "cosine_distillation": "cosine_distillation",
        "similarity_distillation": "similarity_distillation",
        "contrastive_distillation": "contrastive_distillation",
        "mlm": "masked_lm",
    }


def test_dims_may_be_of_numpy():
    embeddings = np.eye(4, 6, dtype=np.float32) + 0.1
    found = matryoshka(info_nce, [np.int64(4), np.int32(2)])(embeddings, embeddings)
    assert float(found) == float(matryoshka(info_nce, [4, 2])(embeddings, embeddings))
