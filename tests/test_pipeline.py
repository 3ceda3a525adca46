"""From texts to vectors: order, batch mates and the form of batches change nothing."""

import itertools
import random
import string
import threading
import time

import jax
import numpy as np
import pytest
from published import TASKS

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.runtime import pipeline
from jina_jax.runtime.batching import shapes
from jina_jax.runtime.packing import Batch
from jina_jax.runtime.pipeline import Pipeline, ahead
from jina_jax.runtime.requests import Item, Piece, Preparation, Prepared, Request

BATCHINGS = {
    "packed": Batching(token_budget=256, row_lengths=(8, 128)),  # rows of one length: few programs
    "packed, short rows": Batching(token_budget=128, row_lengths=(64, 96)),
    "padded": Batching(token_budget=256, packing=False),
}


def draw(count):
    """Random texts of 0 … 100 characters, each with a task or without."""
    random_ = random.Random(0)
    letters = string.ascii_letters + string.punctuation + "  "
    texts = ["".join(random_.choices(letters, k=random_.randint(0, 100))) for _ in range(count)]
    return texts, [random_.choice([None, *TASKS]) for _ in texts]


TEXTS, MIXED = draw(24)
OPTIONS = {"task": MIXED, "prompt": None}


def load(directory, dtype=None, batching=None):
    """Load on one device: there, the fewest programs are compiled."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return JinaEmbeddings.from_pretrained(directory, mesh=mesh, dtype=dtype, batching=batching)


@pytest.fixture(scope="module")
def model(directory):
    return load(directory, batching=BATCHINGS["packed"])


@pytest.fixture(scope="module")
def alone(model):
    """Each text by itself."""
    return np.stack(
        [model.encode(t, task=task, prompt=None) for t, task in zip(TEXTS, MIXED, strict=True)]
    )


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("name", BATCHINGS)
def test_every_batching_gives_the_vector_of_the_text_alone(directory, alone, name):
    model = load(directory, batching=BATCHINGS[name])
    np.testing.assert_allclose(model.encode(TEXTS, **OPTIONS), alone, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_nothing(model, alone, batch_size):
    ours = model.encode(TEXTS, batch_size=batch_size, **OPTIONS)
    np.testing.assert_allclose(ours, alone, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_batch_mates_change_nothing(model, alone, seed):
    order = random.Random(seed).sample(range(len(TEXTS)), k=5 + 4 * seed)
    ours = model.encode([TEXTS[i] for i in order], task=[MIXED[i] for i in order], prompt=None)
    np.testing.assert_allclose(ours, alone[order], atol=1e-5)


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_bfloat16(directory, alone, name):
    ours = load(directory, "bfloat16", BATCHINGS[name]).encode(TEXTS, **OPTIONS)
    assert (ours * alone).sum(1).min() >= 0.9999


def test_pools_are_put_together_again(model, alone, monkeypatch):
    monkeypatch.setattr("jina_jax.runtime.pipeline._CHARACTERS_PER_TOKEN", 0)  # a pool a text
    np.testing.assert_allclose(model.encode(TEXTS, **OPTIONS), alone, atol=1e-5)


# ---------------------------------------------------------------- programs


@pytest.mark.parametrize(
    "batching",
    [Batching(64, row_lengths=(32,)), Batching(64, packing=False, max_texts=2)],
    ids=["packed", "padded"],
)
def test_warmup_compiles_all_that_texts_of_any_number_need(directory, batching):
    model = load(directory, batching=batching)
    known = shapes(model.batching, 16)
    assert model.warmup(16) == model.engine.compiled == 2 * len(known)
    random_ = random.Random(1)
    for count in (1, 1, 2, 3, 3, 5, 9, 30):
        texts = ["x" * random_.randint(0, 13) for _ in range(count)]
        model.encode(texts)
        model.encode(texts, task="separation")
        model.encode(texts, task=[random_.choice([None, *TASKS]) for _ in texts], prompt=None)
    assert model.engine.compiled == 2 * len(known)


def test_number_of_programs_is_bounded(directory):
    model = load(directory, batching=BATCHINGS["packed"])
    random_ = random.Random(2)
    for count in (1, 2, 4, 6, 13, 40):
        texts = ["x" * random_.randint(0, 100) for _ in range(count)]
        model.encode(texts, task=random_.choice([None, "separation"]))
    assert 2 < model.engine.compiled <= 2 * len(shapes(model.batching, 128))


def test_warmup_for_one_case_and_one_batch_size(directory):
    model = load(directory)
    assert model.warmup(16, tasks=False, batch_size=1) == 1
    assert model.warmup(16, tasks=True, batch_size=1) == 2
    assert model.warmup(16, batch_size=1) == 2
    model.encode(["a", "bc"], batch_size=1)
    assert model.engine.compiled == 2


def test_warmup_goes_up_to_the_longest_text_that_the_model_takes(directory):
    model = load(directory)
    compiled = []
    model.engine.compile = lambda programs, threads: compiled.extend(programs)
    model.warmup(batch_size=1)  # 512 tokens, where the model takes 128
    assert max(program.tokens for program in compiled) == 128
    with pytest.raises(ValueError, match=r"max_length=1: expected an integer of at least 2"):
        model.warmup(1)


# ---------------------------------------------------------------- padding


def test_padding_of_packed_texts(directory):
    model = load(directory, batching=BATCHINGS["packed, short rows"])
    # Characters, <s>, ▁ and </s>: 18 tokens in a row of 24.
    _, info = model.encode(["x" * 6, "xx", "x"], return_info=True)
    assert info.tokens.tolist() == [9, 5, 4]
    assert info.padding == 1 - 18 / 24


def test_padding_of_padded_texts(directory):
    model = load(directory, batching=BATCHINGS["padded"])
    _, info = model.encode(["x" * 6, "xx", ""], return_info=True)
    assert info.padding == 1 - 16 / (4 * 16)  # four rows of 16, one of them empty


@pytest.mark.parametrize("batch_size", [None, 3])
def test_padding_is_a_share(model, batch_size):
    _, info = model.encode(TEXTS, batch_size=batch_size, return_info=True, **OPTIONS)
    assert 0 < info.padding < 1
    assert model.encode([], return_info=True)[1].padding == 0


# ---------------------------------------------------------------- requests and items


class Device:
    """An engine that pools ids themselves: the vectors of a token are its id, twice."""

    row_multiple = 1
    mesh = None

    class config:  # noqa: N801
        pad_token_id = -1
        hidden_size = 2

    def __init__(self):
        self.steps = []

    def run(self, steps):
        for step in steps:
            if step is None:
                continue
            self.steps.append(step)
            batch: Batch = step.batch
            vectors = np.stack([batch.input_ids] * 2, -1).astype(np.float32)
            if step.pooling is None:
                yield step, vectors
                continue
            spans = batch.text_spans if step.pool_spans is None else step.pool_spans
            means = [
                [v[i:j].mean(0) if i < j else np.zeros(2) for i, j in own]
                for v, own in zip(vectors, spans.tolist(), strict=True)
            ]
            yield step, np.array(means)


class Given:
    """A preparation that knows its answers: request "3" is the third of them."""

    def __init__(self, prepared):
        self.prepared = prepared
        self.pools = []

    def __call__(self, requests):
        self.pools.append([int(request.text) for request in requests])
        return [self.prepared[int(request.text)] for request in requests]


def one(*items, task=-1, vectors=1):
    """A request of some items: ids, or pairs of ids and pieces."""
    made = [Item(*item) if isinstance(item, tuple) else Item(item) for item in items]
    return Prepared(task, made, vectors, sum(len(item.ids) for item in made), 0, [])


def run(prepared, pooling="mean", batching=BATCHINGS["packed, short rows"], stream=None):
    """Run requests; return the steps, and results by position."""
    device, preparation = Device(), Given(prepared)
    pipeline = Pipeline(device, batching.on("cpu"), preparation, pooling)
    stream = range(len(prepared)) if stream is None else stream
    requests = (None if i is None else Request(str(i)) for i in stream)
    found = {result.owner: result for result in pipeline.run(requests)}
    assert sorted(found) == list(range(len(prepared)))
    assert [found[i].prepared for i in range(len(prepared))] == prepared
    return device.steps, [found[i].vectors for i in range(len(prepared))]


def test_each_request_gets_its_own_vector():
    (step,), found = run([one([1, 1]), one([2, 2, 2]), one([3] * 9)])
    assert step.batch.shape == (1, 24, 3)
    assert step.task_ids is None
    assert [vectors.tolist() for vectors in found] == [[[i, i]] for i in (1, 2, 3)]


def test_token_vectors():
    _, found = run([one([1, 5]), one([2, 4, 6])], None)
    assert found[0].tolist() == [[1, 1], [5, 5]]
    assert found[1].tolist() == [[2, 2], [4, 4], [6, 6]]


@pytest.mark.parametrize("batching", [BATCHINGS["packed, short rows"], BATCHINGS["padded"]])
def test_pieces_beside_whole_texts(batching):
    pieces = (Piece(0, 0, 2, 1.0), Piece(1, 1, 3, 1.0), Piece(2, 2, 3, 1.0))
    last = (Piece(0, 3, 4, 1.0),)
    prepared = [one(([10, 20, 30], pieces), vectors=3), one([4, 6]), one(([1, 2, 3, 4], last))]
    (step,), found = run(prepared, batching=batching)
    # Ranges per row are a power of two: programs are few.
    assert step.pool_spans.shape[1] == (8 if batching.row_lengths else 4)
    assert [v[:, 0].tolist() for v in found] == [[15, 25, 30], [5], [4]]


def test_pieces_of_several_items_add_up_by_weight():
    first = ([10, 20], (Piece(0, 0, 2, 0.5), Piece(1, 1, 2, 0.25)))
    second = ([30, 40], (Piece(0, 0, 2, 0.5), Piece(1, 0, 1, 0.75)))
    _, (vectors, other) = run([one(first, second, vectors=2), one([7])])
    assert vectors[:, 0].tolist() == [0.5 * 15 + 0.5 * 35, 0.25 * 20 + 0.75 * 30]
    assert other[:, 0].tolist() == [7]


def test_a_request_without_items_has_no_vectors():
    steps, found = run([one(vectors=0), one([5]), one(vectors=0)])
    assert len(steps) == 1
    assert [vectors.shape for vectors in found] == [(0, 2), (1, 2), (0, 2)]
    steps, found = run([one(vectors=0)])
    assert (steps, found[0].shape) == ([], (0, 2))


def test_tasks_of_slots():
    prepared = [one([1] * 3, task=4), one([2] * 5), one([3] * 4, task=2)]
    (step,), _ = run(prepared)
    assert step.batch.indices.tolist() == [1, 2, 0]
    assert step.task_ids.tolist() == [[-1, 2, 4]]


def pools_of(stream, monkeypatch):
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_POOL", 3)
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_FIRST_POOL", 1)
    # A step of 16 tokens is 64 characters; the text of a request is its number.
    preparation = Given([one([5])] * 400)
    batching = Batching(token_budget=16, row_lengths=(16,)).on("cpu")
    requests = (None if i is None else Request(str(i)) for i in stream)
    list(Pipeline(Device(), batching, preparation, "mean").run(requests))
    return [len(pool) for pool in preparation.pools]


def test_pools_grow_after_the_first(monkeypatch):
    assert pools_of(range(10, 100), monkeypatch) == [32, 58]  # 64 characters, then up to 192
    assert pools_of([], monkeypatch) == []


def test_none_runs_what_has_arrived(monkeypatch):
    stream = [1, 2, None, 3, None, None, 4]
    assert pools_of(stream, monkeypatch) == [2, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("chunks", [None, lambda *_: []], ids=["text", "no chunks"])
def test_results_before_a_none_do_not_wait_for_more(model, chunks):
    """The next request is only made once the first one's result is there."""
    arrived = threading.Event()

    def stream():
        yield Request("a", chunks=chunks)
        yield None
        assert arrived.wait(60)
        yield Request("b", chunks=chunks)

    preparation = Preparation(model.tokenizer, False, 32, 8)
    results = Pipeline(model.engine, model.batching, preparation, "mean").run(stream())
    assert next(results).owner == 0
    arrived.set()
    assert [result.owner for result in results] == [1]


def test_requests_are_read_as_they_are_needed(monkeypatch):
    """A stream without end: results come, and little more than a pool has been read."""
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_POOL", 1)
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_FIRST_POOL", 1)
    read = itertools.count()

    def endless():
        while True:
            next(read)
            yield Request("1")

    batching = Batching(token_budget=16, row_lengths=(16,)).on("cpu")
    results = Pipeline(Device(), batching, Given([one([5])] * 2), "mean").run(endless())
    assert [next(results).owner for _ in range(3)] == [0, 1, 2]
    results.close()
    assert next(read) <= 3 * 64


# ---------------------------------------------------------------- ahead


def test_ahead_keeps_the_order():
    assert list(ahead(iter(range(20)))) == [*range(20)]
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, 0, None]))) == [None, 0, None]


def test_ahead_computes_the_next_value_in_a_thread_while_one_is_used():
    second, names = threading.Event(), []

    def values():
        names.append(threading.current_thread().name)
        yield 1
        second.set()
        yield 2

    coming = ahead(values())
    assert next(coming) == 1
    assert second.wait(10)  # nobody has asked for it yet
    assert next(coming) == 2
    assert names != [threading.current_thread().name]


def test_ahead_is_one_value_ahead_and_no_more():
    made = []

    def values():
        for i in range(5):
            made.append(i)
            yield i

    coming = ahead(values())
    next(coming)
    time.sleep(0.05)
    assert made == [0, 1]
    coming.close()


def test_ahead_lets_errors_through_behind_what_came_before():
    def values():
        yield 1
        raise ValueError("the second")

    coming = ahead(values())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="the second"):
        next(coming)


def test_few_texts_are_prepared_without_a_thread(model, monkeypatch):
    expected = model.encode(["a", "b c"])
    monkeypatch.setattr(pipeline, "ahead", None)
    np.testing.assert_array_equal(model.encode(["a", "b c"]), expected)
    with pytest.raises(TypeError, match="NoneType"):  # many texts have one
        model.encode(["a b c d"] * 20_000)
