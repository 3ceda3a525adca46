"""One batch to vectors: what tokens know of their texts, and packed rows against rows alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, write_tiny

from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.convert import open_checkpoint
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.forward import Inputs, encode_batch, unpack
from jina_jax.nn.parameters import parameter_shapes
from jina_jax.nn.protocol import REFERENCE

# The last one has pads inside, which absolute positions do not count.
TEXTS = [[0, 5, 6, 7, 2], [0, 9, 2], [0, 11, 1, 1, 14, 15, 2]]
TASKS = [3, -1, 0]


def test_unpack_rows_of_one_text():
    mask, segment_ids, position_ids = unpack(jnp.asarray([[[0, 3]], [[0, 0]]]), 4)
    assert mask.tolist() == [[True, True, True, False], [False] * 4]
    assert segment_ids is None
    assert position_ids is None  # 0 … T-1


def test_unpack_packed_rows():
    spans = jnp.asarray([[[0, 2], [2, 5], [5, 5]], [[0, 1], [1, 2], [2, 6]]], jnp.int32)
    mask, segment_ids, position_ids = unpack(spans, 7)
    assert segment_ids.tolist() == [[1, 1, 2, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]]
    assert mask.tolist() == [[True] * 5 + [False] * 2, [True] * 6 + [False]]
    assert position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 0, 1, 2, 3, 0]]
    assert segment_ids.dtype == position_ids.dtype == jnp.int32


@pytest.fixture(scope="module", params=["rotary", "absolute"])
def encode(request, tmp_path_factory):
    """(inputs, pooling) → vectors, as NumPy."""
    directory = write_tiny(tmp_path_factory.mktemp("model"), {**TINY, "layers": 2})
    checkpoint = open_checkpoint(directory)
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    if request.param == "absolute":
        config = dataclasses.replace(
            config, position_embedding_type="absolute", rotary_emb_base=None
        )
        rng = np.random.default_rng(0)
        for path, shape in parameter_shapes(config).items():
            tensors.setdefault(path, LazyTensor.of(rng.standard_normal(shape, np.float32)))
    graph, _ = abstract_encoder(config)
    state = to_state(config, tensors)
    run = jax.jit(
        functools.partial(encode_batch, graph, kernels=REFERENCE), static_argnames="pooling"
    )
    return lambda inputs, pooling: np.asarray(run(state, inputs, pooling=pooling))


def alone(encode, number, pooling, with_tasks, pool_spans=None):
    """Encode one text in a row of its own, with padding."""
    ids = np.array([TEXTS[number] + [1, 1]], np.int32)
    task = np.array([[TASKS[number]]], np.int32) if with_tasks else None
    inputs = Inputs(ids, np.array([[[0, len(TEXTS[number])]]], np.int32), task, pool_spans)
    return encode(inputs, pooling)[0]


def packed(with_tasks, pool_spans=None):
    """All texts in one row, with an empty slot and padding."""
    ids = np.array([[*itertools.chain(*TEXTS), 1, 1, 1]], np.int32)
    ends = np.cumsum([len(text) for text in TEXTS])
    starts = ends - [len(text) for text in TEXTS]
    spans = np.array([[*zip(starts, ends, strict=True), (0, 0)]], np.int32)
    tasks = np.array([[*TASKS, -1]], np.int32) if with_tasks else None
    return Inputs(ids, spans, tasks, pool_spans), starts


@pytest.mark.parametrize("with_tasks", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_texts_are_pooled_as_alone(encode, pooling, with_tasks):
    inputs, _ = packed(with_tasks)
    vectors = encode(inputs, pooling)
    assert vectors.shape == (1, 4, 64)
    for number in range(3):
        expected = alone(encode, number, pooling, with_tasks)
        np.testing.assert_allclose(vectors[0, number], expected[0], atol=1e-5)
    np.testing.assert_array_equal(vectors[0, 3], 0.0)


def test_packed_tokens_are_those_alone(encode):
    inputs, starts = packed(with_tasks=True)
    vectors = encode(inputs, None)
    assert (vectors.shape, vectors.dtype) == ((1, 18, 64), np.float32)
    for number, (start, text) in enumerate(zip(starts, TEXTS, strict=True)):
        expected = alone(encode, number, None, with_tasks=True)[: len(text)]
        np.testing.assert_allclose(vectors[0, start : start + len(text)], expected, atol=1e-5)


def test_ranges_to_pool_replace_the_texts(encode):
    inputs, _ = packed(True, np.array([[[1, 3], [9, 12]]], np.int32))
    found = encode(inputs, "mean")
    tokens = encode(inputs, None)[0]
    assert found.shape == (1, 2, 64)
    np.testing.assert_allclose(found[0], [tokens[1:3].mean(0), tokens[9:12].mean(0)], atol=1e-5)
