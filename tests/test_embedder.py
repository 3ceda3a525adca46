"""JinaEmbeddings on a small random checkpoint."""

import dataclasses
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published import PROMPTS, TASKS

from jina_jax import JinaEmbeddings

TEXTS = [
    "A man is playing a guitar.",
    "Ein Mann spielt Gitarre.",
    "",
    "男の人がギターを弾いている。",
    "Un homme joue de la guitare, et une femme chante à côté de lui.",
]


def by_hand(model, text, task, dim=64):
    """Embed one prompted text without batching, padding or jit's help."""
    from jina_jax.nn.encoder import abstract_encoder

    ids = np.array(model.tokenize([text]))
    graph, _ = abstract_encoder(model.config)
    task_ids = None if task is None else np.array([TASKS.index(task)])
    run = jax.jit(lambda state: nnx.merge(graph, state)(ids, np.ones_like(ids, bool), task_ids))
    mean = np.asarray(run(model.state).last_hidden_state[0], np.float64).mean(0)[:dim]
    return mean / np.linalg.norm(mean)


def test_shapes_dtypes_and_unit_length(model):
    vectors = model.encode(TEXTS, task="text-matching")
    assert vectors.shape == (5, 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    single = model.encode(TEXTS[0], task="text-matching")
    assert single.shape == (64,)
    np.testing.assert_allclose(single, vectors[0], atol=1e-5)


@pytest.mark.parametrize("task", [None, "retrieval.query", "separation"])
def test_equals_mean_of_the_prompted_text(model, task):
    prompt = "" if task is None else PROMPTS[task]
    expected = by_hand(model, prompt + TEXTS[1], task)
    np.testing.assert_allclose(model.encode(TEXTS[1], task=task), expected, atol=1e-5)


def test_truncate_dim_cuts_before_normalising(model):
    expected = by_hand(model, TEXTS[0], "classification", dim=32)
    ours = model.encode(TEXTS[0], task="classification", truncate_dim=32)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    raw = model.encode(TEXTS[0], task="classification", normalize_embeddings=False)
    np.testing.assert_allclose(ours, raw[:32] / np.linalg.norm(raw[:32]), atol=1e-5)


def test_a_task_a_text_equals_each_task_alone(model):
    tasks = ["retrieval.query", None, "separation", "text-matching", None]
    together = model.encode(TEXTS, task=tasks)
    for row, (text, task) in enumerate(zip(TEXTS, tasks, strict=True)):
        np.testing.assert_allclose(together[row], model.encode(text, task=task), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_order_and_batch_mates_do_not_matter(model, batch_size):
    tasks = ["retrieval.passage", "separation", None, "separation", None]
    expected = model.encode(TEXTS, task=tasks)
    order = [3, 1, 4, 0, 2]
    ours = model.encode(
        [TEXTS[i] for i in order], task=[tasks[i] for i in order], batch_size=batch_size
    )
    np.testing.assert_allclose(ours, expected[order], atol=1e-5)


def test_prompt_is_automatic_and_can_be_replaced(model):
    text, task = TEXTS[0], "retrieval.query"
    automatic = model.encode(text, task=task)
    without = model.encode(text, task=task, prompt=None)
    own = model.encode(text, task=task, prompt=PROMPTS[task])
    np.testing.assert_array_equal(automatic, own)
    np.testing.assert_allclose(without, by_hand(model, text, task), atol=1e-5)
    assert np.abs(automatic - without).max() > 1e-2


def test_empty_list_and_empty_text(model):
    assert model.encode([]).shape == (0, 64)
    assert model.encode([], truncate_dim=32).shape == (0, 32)
    assert model.encode([]).dtype == np.float32
    assert model.encode([], output_value="token_embeddings") == []
    assert np.isfinite(model.encode("")).all()


def test_token_embeddings(model):
    out = model.encode(TEXTS, output_value="token_embeddings")
    assert [len(vectors) for vectors in out] == [len(ids) for ids in model.tokenize(TEXTS)]
    assert all(vectors.dtype == np.float32 and vectors.shape[1] == 64 for vectors in out)
    mean = out[1].mean(0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), model.encode(TEXTS[1]), atol=1e-5)
    single = model.encode(TEXTS[1], output_value="token_embeddings", truncate_dim=32)
    np.testing.assert_allclose(single, out[1][:, :32], atol=1e-5)


def test_tokenize_has_the_special_tokens_and_no_prompt(model):
    ids = model.tokenize(["", "A man"])
    assert ids[0] == [0, 2]
    assert (ids[1][0], ids[1][-1]) == (0, 2)
    assert model.tokenize("A man") == ids[1]


def test_truncation_is_told(model):
    whole = model.tokenize(TEXTS)
    with pytest.warns(UserWarning, match=r"3 of 5 texts were longer than max_length=8 tokens"):
        _, info = model.encode(TEXTS, max_length=8, prompt=None, return_info=True)
    assert info.tokens.tolist() == [min(8, len(ids)) for ids in whole]
    assert (info.tokens + info.dropped).tolist() == [len(ids) for ids in whole]


def test_truncation_keeps_the_beginning_and_the_end_token(model):
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        cut = model.encode(TEXTS[4], max_length=8, output_value="token_embeddings")
    ids = model.tokenize(TEXTS[4])
    mask = np.ones((1, 8), bool)
    from jina_jax.nn.encoder import abstract_encoder

    graph, _ = abstract_encoder(model.config)
    run = jax.jit(lambda state, ids: nnx.merge(graph, state)(ids, mask).last_hidden_state[0])
    np.testing.assert_allclose(cut, run(model.state, np.array([[*ids[:7], 2]])), atol=1e-5)


def test_no_warning_and_nothing_dropped_when_all_fits(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = model.encode(TEXTS, return_info=True)
    assert info.dropped.tolist() == [0] * 5
    assert info.tokens.tolist() == [len(ids) for ids in model.tokenize(TEXTS)]


def test_dtype(directory):
    low = JinaEmbeddings.from_pretrained(directory, dtype="bfloat16")
    leaves = jax.tree.leaves(low.state)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    exact = JinaEmbeddings.from_pretrained(directory).encode(TEXTS, task="separation")
    ours = low.encode(TEXTS, task="separation")
    assert ours.dtype == np.float32
    assert (exact * ours).sum(1).min() >= 0.999


def test_special_tokens_in_a_text(directory, model):
    assert model.tokenize("a</s>b").count(2) == 2
    plain = JinaEmbeddings.from_pretrained(directory, split_special_tokens=True)
    assert plain.tokenize("a</s>b").count(2) == 1


def test_progress_bar_goes_to_stderr_and_follows_the_logger(model, capsys, caplog):
    model.encode(TEXTS)
    assert capsys.readouterr().err == ""
    model.encode(TEXTS, show_progress_bar=True)
    assert "5/5" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, "jina_jax"):
        model.encode(TEXTS)
    assert "5/5" in capsys.readouterr().err


def test_one_text_in_a_server_that_logs_draws_no_progress_bar(model, capsys, caplog):
    with caplog.at_level(logging.INFO):
        model.encode("a")
        model.encode(["a"])
        model.encode_chunks("a b", 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "search"}, r"task='search'.*'retrieval\.query'.*'text-matching'"),
        ({"task": [None, "separation"]}, "task: expected one for each of 5 texts, got 2"),
        ({"task": [None, None, "x", None, None]}, "task='x'"),
        ({"task": 3}, "task=3"),
        ({"task": [["separation"]] * 5}, r"task=\['separation'\]"),
        ({"truncate_dim": 48}, "truncate_dim=48: expected one of 32, 64"),
        ({"truncate_dim": -1}, "truncate_dim=-1"),
        ({"truncate_dim": 32.0}, "truncate_dim=32.0"),
        ({"max_length": 1}, "max_length=1: expected an integer from 2 to 128"),
        ({"max_length": 129}, "max_length=129"),
        ({"max_length": 8.5}, r"max_length=8\.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"prompt": 7}, "prompt=7"),
        ({"output_value": "token"}, "output_value='token'.*token_embeddings"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS, **options)


@pytest.mark.parametrize("wrong", [b"bytes", None, {"a": 1}, 3, ["a"]])
@pytest.mark.parametrize("position", [0, 2])
def test_text_that_is_no_string_is_refused(model, wrong, position):
    texts = ["a", "b", "c"]
    texts[position] = wrong
    with pytest.raises(ValueError, match=rf"texts\[{position}\].*str.*{type(wrong).__name__}"):
        model.encode(texts, task="retrieval.query")


@pytest.mark.parametrize("wrong", [None, b"bytes", 3, {"a": 1}])
def test_texts_that_are_no_sequence_are_refused(model, wrong):
    with pytest.raises(ValueError, match="texts"):
        model.encode(wrong)


def test_lone_surrogate_is_refused(model):
    with pytest.raises(ValueError, match=r"texts\[1\].*surrogate.*character 2"):
        model.encode(["fine", "no\ud800"])


def test_unknown_dtype_is_refused(directory):
    with pytest.raises(ValueError, match=r"dtype='int8'.*'bfloat16'"):
        JinaEmbeddings.from_pretrained(directory, dtype="int8")


def test_tokenizer_larger_than_the_model_is_refused(model):
    config = dataclasses.replace(model.config, vocab_size=20)
    with pytest.raises(ValueError, match=r"tokenizer.*vocab_size=20.*got 10\d"):
        JinaEmbeddings(config, model.state, model.tokenizer)
