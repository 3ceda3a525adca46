"""A step's loss and gradients are the same in micro-batches or whole, on one device or eight."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from published import TASKS
from tiny import TINY, write_tiny

from jina_jax import Batching, JinaEmbeddings, compiler_options
from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.dropout import drop
from jina_jax.nn.protocol import REFERENCE
from jina_jax.runtime.sharding import make_mesh
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training import losses
from jina_jax.training import step as training_step
from jina_jax.training.micro_batches import MicroBatches, Packing, pack
from jina_jax.training.mlm import init_head, mask_words, masked_micro_batches, mlm_objective
from jina_jax.training.parameters import load_network
from jina_jax.training.step import (
    MICRO_BATCH_ROWS,
    Encoding,
    embed,
    make_step,
    over_micro_batches,
    text_objective,
)
from jina_jax.training.vocabulary import LOSSES

PAIR = TASKS[:2]
PAD = 1
KEY = jax.random.key(0)
# One row holds a text or two. MicroBatches of 96 tokens: eight, six or seven of them used.
WHOLE, MANY, TWO = Packing(10_000, (32,)), Packing(96, (32,)), Packing(320, (32,))
RELATIVE = 2e-5
# Programs here run once or twice: unoptimised, they compile in half the time.
FAST = {"xla_backend_optimization_level": 0, **compiler_options()}


def compiled(function, *args):
    return jax.jit(function, compiler_options=FAST).lower(*args).compile()


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


def token_ids(count, longest=30, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest - 2, count)
    return [[0, *rng.integers(4, TINY["vocab"], n).tolist(), 2] for n in lengths]


def pairs(packing):
    """Twelve pairs of texts, of which the first has the first task."""
    return pack(token_ids(24), [0, 1] * 12, packing, PAD)


def contrast(queries, documents):
    return losses.info_nce(queries, documents, temperature=0.05)


class Program:
    """A compiled function of micro-batches and a key, to loss and gradients."""

    def __init__(self, loaded, micro_batches, **options):
        network, *self.fixed = loaded
        objective = text_objective(Encoding(network, REFERENCE, **options), contrast, 2)
        gradient = jax.value_and_grad(objective)
        self.executable = compiled(gradient, *self.fixed, micro_batches, {}, KEY)

    def __call__(self, micro_batches, key=KEY):
        return self.executable(*self.fixed, micro_batches, {}, key)


def assert_equal(found, expected):
    """Compare loss and gradients, these in units of each parameter's largest."""
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for path, gradient in expected[1].items():
        difference = np.abs(np.asarray(found[1][path]) - np.asarray(gradient)).max()
        assert difference <= RELATIVE * np.abs(gradient).max(), path


# ---------------------------------------------------------------- gradient caching


@pytest.fixture(scope="module")
def networks(checkpoint):
    return {
        train: load_network(checkpoint, PAIR, train, dtype="float32")
        for train in ("adapters", "all")
    }


@pytest.fixture(scope="module")
def programs(networks):
    """A function from what is trained and a packing to a program, compiled once for all tests."""
    return functools.cache(lambda train, packing: Program(networks[train], pairs(packing)))


@pytest.mark.parametrize("train", ["adapters", "all"])
def test_gradients_of_many_micro_batches_are_those_of_one(programs, train):
    micro_batches = pairs(MANY)
    assert micro_batches.used.tolist() == [True] * 6 + [False] * 2
    assert_equal(programs(train, MANY)(micro_batches), programs(train, WHOLE)(pairs(WHOLE)))


def test_gradients_without_caching_are_those_of_one_micro_batch(networks, programs):
    micro_batches = pairs(TWO)
    assert micro_batches.used.tolist() == [True] * 2
    found = Program(networks["all"], micro_batches, caching=False)(micro_batches)
    assert_equal(found, programs("all", WHOLE)(pairs(WHOLE)))


@pytest.mark.parametrize("packing", [WHOLE, MANY])
@pytest.mark.parametrize("train", ["adapters", "all"])
def test_only_trained_parameters_have_gradients(networks, programs, train, packing):
    _, trained, _ = networks[train]
    _, gradients = programs(train, packing)(pairs(packing))
    assert gradients.keys() == trained.keys()
    assert {gradient.dtype.name for gradient in gradients.values()} == {"float32"}
    unused = {path for path, gradient in gradients.items() if not gradient.any()}
    assert unused == {path for path in trained if path.startswith("pooler.")}


def test_frozen_weights_cost_no_gradient(networks, programs):
    """Work of a gradient is that of the hidden states, and as much again for those of weights."""
    (network, trained, frozen), micro_batches = networks["adapters"], pairs(WHOLE)
    args = (trained, frozen, micro_batches, KEY)
    forward = compiled(lambda *args: embed(Encoding(network, REFERENCE), *args), *args)
    adapters, every = (
        programs(train, WHOLE).executable.cost_analysis()["flops"]
        / forward.cost_analysis()["flops"]
        for train in ("adapters", "all")
    )
    assert 1.8 < adapters < 2.5
    assert 2.7 < every < 3.3


def test_micro_batches_without_texts_have_no_influence(programs):
    run, micro_batches = programs("all", MANY), pairs(MANY)
    expected = run(micro_batches)
    rng = np.random.default_rng(1)
    filled = MicroBatches(*map(np.copy, micro_batches))
    filled.input_ids[~micro_batches.used] = rng.integers(
        0, TINY["vocab"], filled.input_ids[0].shape
    )
    filled.text_spans[~micro_batches.used] = filled.text_spans[0]
    filled.task_ids[~micro_batches.used] = filled.task_ids[0]
    loss, gradients = run(filled)
    assert float(loss) == float(expected[0])
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected[1][path])


def test_another_number_of_used_micro_batches_takes_the_same_program(programs):
    micro_batches = pairs(MANY)
    spread = MicroBatches(*map(np.copy, micro_batches))
    # The first micro-batch moves behind the others, and leaves its slot empty.
    for array in (spread.input_ids, spread.text_spans, spread.task_ids):
        array[6], array[0] = array[0].copy(), array[7].copy()
    spread.used[6] = True
    size = micro_batches.text_spans.shape[1] * micro_batches.text_spans.shape[2]
    spread.slots[:] = np.where(
        micro_batches.slots < size, micro_batches.slots + 6 * size, micro_batches.slots
    )
    assert spread.used.sum() == 7
    assert_equal(programs("all", MANY)(spread), programs("all", WHOLE)(pairs(WHOLE)))


def test_stacked_layers_have_the_same_gradients(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "model", {**TINY, "layers": 2}))
    micro_batches = pairs(WHOLE)

    def run(scan_layers):
        loaded = load_network(checkpoint, PAIR, "all", dtype="float32", scan_layers=scan_layers)
        return Program(loaded, micro_batches)(micro_batches)

    loss, stacked = run(scan_layers=True)
    apart = {
        path.replace("layers.", f"layers.{i}."): gradient[i]
        for path, gradient in stacked.items()
        for i in range(2)
        if path.startswith("layers.")
    }
    others = {path: g for path, g in stacked.items() if not path.startswith("layers.")}
    assert_equal((loss, {**apart, **others}), run(scan_layers=False))


# ---------------------------------------------------------------- the loop over micro-batches


def toy(trained, frozen, micro_batch, dropout):
    """Run a deep network that compiles fast: (R, T) ids to (R, D)."""
    x = frozen["table"][micro_batch.input_ids]
    for number in range(4):
        x = jnp.sin(drop(dropout, number, x @ trained["kernel"]))
    return x.mean(axis=1)


def toy_arrays(count, width=32):
    """Draw parameters, and micro-batches of 8 rows of 64 tokens; half of them are used."""
    rng = np.random.default_rng(2)
    trained = {"kernel": rng.standard_normal((width, width), np.float32) * np.float32(0.2)}
    frozen = {"table": rng.standard_normal((50, width), np.float32)}
    ids = rng.integers(0, 50, (count, 8, 64)).astype(np.int32)
    return trained, frozen, MicroBatches(ids, ids, ids, np.arange(count) < count // 2, np.arange(8))


def toy_program(count, **options):
    """Compile the gradient of ``toy`` over micro-batches."""
    encoding = Encoding(None, None, **options)

    def loss(trained, frozen, micro_batches, key):
        vectors = over_micro_batches(encoding, toy, trained, frozen, micro_batches, key)
        return jnp.square(vectors).sum(axis=(1, 2)) @ micro_batches.used.astype(jnp.float32)

    args = toy_arrays(count)
    executable = compiled(jax.value_and_grad(loss), *args, KEY)
    return executable, lambda key=KEY: executable(*args, key)


def test_micro_batches_without_texts_are_not_computed():
    trained, frozen, micro_batches = toy_arrays(4, width=4)

    def run(caching):
        encoding = Encoding(None, None, caching=caching)
        return jax.jit(lambda *args: over_micro_batches(encoding, toy, *args))(
            trained, frozen, micro_batches, KEY
        )

    found, every = run(caching=True), run(caching=False)
    assert micro_batches.used.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found[:2], every[:2], atol=1e-6)
    assert every[2].any()
    assert not found[2:].any()


def test_a_micro_batch_computed_again_drops_the_same():
    plain, again = toy_program(4)[1], toy_program(4, dropout=0.3)[1]
    once = toy_program(4, dropout=0.3, caching=False)[1]
    for key in (KEY, jax.random.key(1)):
        assert_equal(again(key), once(key))
    found = [float(loss) for loss, _ in (plain(), again(), again(jax.random.key(1)))]
    assert len({round(loss, 3) for loss in found}) == 3


def test_memory_does_not_grow_with_the_number_of_micro_batches():
    def bytes_of(count, caching):
        executable, _ = toy_program(count, caching=caching)
        return executable.memory_analysis().temp_size_in_bytes

    many = bytes_of(16, caching=True)
    assert many < 1.6 * bytes_of(2, caching=True)
    assert bytes_of(16, caching=False) > 5 * many


def test_every_text_drops_other_values(networks):
    network, trained, frozen = networks["adapters"]
    micro_batches = pack([[0, 7, 8, 9, 2]] * 24, [0] * 24, Packing(32, (32,)), PAD)
    assert micro_batches.used.sum() > 4
    args = (trained, frozen, micro_batches, KEY)
    vectors = compiled(lambda *args: embed(Encoding(network, REFERENCE, 0.3), *args), *args)(*args)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    assert distances[~np.eye(24, dtype=bool)].min() > 0.1


# ---------------------------------------------------------------- what is encoded

SENTENCES = ["A man plays", "the guitar.", "", "Ein Mann spielt", "!?", "x" * 40, "one", "six two"]


def test_vectors_are_those_of_inference(directory, checkpoint):
    """Of both tasks and of none, each text at its own, at either rotary base."""
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    ids = tokenizer.encode(SENTENCES)
    tasks, pair = [PAIR[0], PAIR[1], None, PAIR[1]] * 2, PAIR[::-1]
    task_ids = [-1 if task is None else pair.index(task) for task in tasks]
    batching = Batching(64, row_lengths=(64,))

    def vectors(rotary_emb_base):
        config = dataclasses.replace(checkpoint.config, rotary_emb_base=rotary_emb_base)
        state = to_state(config, checkpoint.tensors)
        model = JinaEmbeddings(config, state, tokenizer, batching=batching)
        options = {"prompt": None, "normalize_embeddings": False}
        expected = model.encode(SENTENCES, task=tasks, **options)
        network, trained, frozen = load_network(
            checkpoint, pair, "adapters", dtype="float32", rotary_emb_base=rotary_emb_base
        )
        micro_batches = pack(ids, task_ids, Packing(64, (64,)), PAD)
        args = (trained, frozen, micro_batches, KEY)
        found = compiled(lambda *args: embed(Encoding(network, REFERENCE), *args), *args)(*args)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        # A task makes a difference.
        other = model.encode(SENTENCES, task=PAIR[0], **options)
        changes = np.abs(expected - other).max(axis=1) > 0.05
        assert changes.tolist() == [task != PAIR[0] for task in tasks]
        return found

    assert np.abs(vectors(20_000.0) - vectors(10_000.0)).max() > 1e-3


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_columns_of_a_row_are_the_arguments_of_the_loss(monkeypatch, columns):
    vectors = jnp.arange(4 * columns * 2.0).reshape(4 * columns, 2)
    monkeypatch.setattr(training_step, "embed", lambda *args: vectors)
    seen = []

    def loss(*parts, **targets):
        seen.extend(parts)
        return targets["scores"]

    objective = text_objective(None, loss, columns)
    assert objective({}, {}, None, {"scores": 3.0}, None) == 3.0
    rows = np.asarray(vectors).reshape(4, columns, 2)
    assert len(seen) == min(columns, 3)
    for column, part in enumerate(seen[:2]):
        np.testing.assert_array_equal(part, rows[:, column])
    if columns > 2:
        np.testing.assert_array_equal(seen[2], rows[:, 2:])


# ---------------------------------------------------------------- devices

ROWS, NEGATIVES = 8, 2
TARGETS = {
    "scores": np.linspace(0, 1, ROWS, dtype=np.float32)[::-1].copy(),
    "labels": np.array([0, 1, 0, 2, 1, 1, 2, 0], np.int32),
    "teacher": np.random.default_rng(3).standard_normal((ROWS, 70)).astype(np.float32),
}


def every_loss(queries, positives, negatives, *, scores, labels, teacher):
    """All losses between texts, of which each sees what it is made for."""
    found = {
        "info_nce": losses.info_nce(queries, positives),
        "triplet": losses.triplet_info_nce(queries, positives, negatives),
        "cosent": losses.cosent(queries, positives, scores=scores),
        "separation": losses.separation(queries, labels=labels),
        "cosine_distillation": losses.cosine_distillation(queries, teacher=teacher),
        "similarity_distillation": losses.similarity_distillation(queries, teacher=teacher),
        "contrastive_distillation": losses.contrastive_distillation(queries, teacher=teacher),
    }
    assert found.keys() == LOSSES.keys() - {"mlm"}
    return jnp.stack(list(found.values()))


def placed(micro_batches, mesh):
    """Put micro-batches on devices, as a trainer does: their rows on the data axis."""
    specs = [MICRO_BATCH_ROWS if array.ndim > 2 else P() for array in micro_batches]
    arrays = zip(micro_batches, specs, strict=True)
    return type(micro_batches)(
        *(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in arrays)
    )


def values_and_gradients(objective, trained, frozen, micro_batches, targets):
    """Return each loss and its gradients."""

    def run(trained, frozen, micro_batches, targets):
        values, pull_back = jax.vjp(
            lambda t: objective(t, frozen, micro_batches, targets, KEY), trained
        )
        (gradients,) = jax.vmap(pull_back)(jnp.eye(len(values)))
        return values, gradients

    args = (trained, frozen, micro_batches, targets)
    values, gradients = compiled(run, *args)(*args)
    return [
        (value, {path: np.asarray(gradient)[i] for path, gradient in gradients.items()})
        for i, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


def on_devices(checkpoint, mesh, tasks, train):
    network, trained, frozen = load_network(checkpoint, tasks, train, dtype="float32", mesh=mesh)
    return Encoding(network, REFERENCE, mesh=mesh), trained, frozen


def test_every_loss_on_eight_devices_is_that_of_one(checkpoint, mesh):
    columns = 2 + NEGATIVES
    ids = token_ids(ROWS * columns, seed=4)
    tasks = [0, 1, 1, 1] * ROWS

    def run(mesh, packing):
        encoding, trained, frozen = on_devices(checkpoint, mesh, PAIR, "adapters")
        micro_batches, targets = pack(ids, tasks, packing, PAD), TARGETS
        if mesh is not None:
            assert micro_batches.used.sum() > 1
            micro_batches = placed(micro_batches, mesh)
            targets = jax.device_put(TARGETS, NamedSharding(mesh, P()))
        objective = text_objective(encoding, every_loss, columns)
        return values_and_gradients(objective, trained, frozen, micro_batches, targets)

    single, several = run(None, WHOLE), run(mesh, Packing(32, (32,), row_multiple=8))
    assert len(single) == len(LOSSES) - 1
    for found, expected in zip(several, single, strict=True):
        assert float(expected[0]) > 1e-2
        assert_equal(found, expected)


def test_mlm_on_eight_devices_is_that_of_one(directory, checkpoint, mesh):
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    texts = [
        mask_words(tokenizer, " ".join(SENTENCES[i:]), 32, 0.3, np.random.default_rng(i))
        for i in range(8)
        for _ in range(3)
    ]
    ids = [text.ids for text in texts]
    head = {k: v + 0.1 for k, v in init_head(checkpoint.config, 0).items()}

    def run(mesh, packing):
        encoding, trained, frozen = on_devices(checkpoint, mesh, (), "all")
        micro_batches = masked_micro_batches(pack(ids, [-1] * len(ids), packing, PAD), texts)
        everywhere = head
        if mesh is not None:
            assert micro_batches.used.sum() > 1
            micro_batches = placed(micro_batches, mesh)
            everywhere = jax.device_put(head, NamedSharding(mesh, P()))
        objective = mlm_objective(encoding)
        return values_and_gradients(
            lambda *args: objective(*args)[None],
            *({**trained, **everywhere}, frozen, micro_batches, {}),
        )[0]

    assert_equal(run(mesh, Packing(32, (32,), row_multiple=8)), run(None, WHOLE))


# ---------------------------------------------------------------- a step


def test_adapters_of_a_bfloat16_base_learn(checkpoint, programs):
    network, given, frozen = load_network(checkpoint, PAIR, "adapters", dtype="bfloat16")
    frozen_before = {path: np.array(array) for path, array in frozen.items()}
    rate = 0.1
    chain = optax.sgd(rate)
    objective = text_objective(Encoding(network, REFERENCE), contrast, 2)
    micro_batches = pairs(MANY)
    args = (given, chain.init(given), frozen, micro_batches, {}, KEY)
    lowered = make_step(objective, chain).lower(*args)
    dots = re.findall(r"dot_general.*: \(tensor<(.*?)>, tensor<(.*?)>\)", lowered.as_text())
    dtypes = {tuple(operand.split("x")[-1] for operand in dot) for dot in dots}
    assert dtypes == {("bf16", "bf16"), ("f32", "f32")}  # the latter are of the loss

    step = lowered.compile(FAST)
    before = {path: np.array(array) for path, array in given.items()}
    trained, state, first = step(*args)
    assert all(array.is_deleted() for array in given.values())
    # Gradients point where those of float32 do.
    moved = {path: (before[path] - np.asarray(trained[path])) / rate for path in trained}
    loss, exact = programs("adapters", MANY)(micro_batches)
    product = sum((moved[path] * np.asarray(exact[path])).sum() for path in exact)
    norms = [sum(np.square(g).sum() for g in part.values()) ** 0.5 for part in (moved, exact)]
    assert product > 0.99 * norms[0] * norms[1]
    assert float(first.grad_norm) == pytest.approx(norms[0], rel=1e-3)
    assert first.grad_norms.keys() == moved.keys()
    for path, norm in first.grad_norms.items():
        assert float(norm) == pytest.approx(np.linalg.norm(moved[path]), rel=1e-3, abs=1e-6)
    assert float(first.loss) == pytest.approx(float(loss), rel=1e-2)

    # Beyond some twenty steps this rate is unstable, in float32 and on every jax.
    for _ in range(20):
        trained, state, last = step(trained, state, frozen, micro_batches, {}, KEY)
    assert {array.dtype.name for array in trained.values()} == {"float32"}
    assert float(last.loss) < 0.9 * float(first.loss)
    for path, array in frozen.items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, frozen_before[path])
