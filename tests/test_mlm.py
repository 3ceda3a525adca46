"""Masking of whole words, and the objective against a computation of one text at a time."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign import published_tensors
from published import published_config
from reference import Reference
from tiny import TINY
from tokenizer_fixtures import dialects, write

from jina_jax import compiler_options
from jina_jax.convert import open_checkpoint
from jina_jax.nn.protocol import REFERENCE
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training.micro_batches import Packing, pack
from jina_jax.training.mlm import (
    MASK_RATE,
    MaskedText,
    init_head,
    mask_words,
    masked_micro_batches,
    mlm_objective,
)
from jina_jax.training.parameters import load_network
from jina_jax.training.step import Encoding

PAD = 1
# Programs here run once: unoptimised, they compile in half the time.
FAST = {"xla_backend_optimization_level": 0, **compiler_options()}


@pytest.fixture(scope="module")
def tokenizer(directory):
    """Every character is a token, and so is the mark in front of a word."""
    return Tokenizer.from_file(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def real_fields(shared):
    return json.loads((shared / "xlm-roberta" / "tokenizer.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=["as published", "spaces"])
def real(request, real_fields, tmp_path_factory):
    """The real vocabulary with its pieces; "spaces": marks stand for the spaces before words."""
    fields = real_fields
    if request.param == "spaces":
        fields = dialects(fields)["spaces"]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write(path, fields)
    return Tokenizer.from_file(path), [name for name, _ in fields["model"]["vocab"]]


def masked(tokenizer, text, rate=MASK_RATE, max_length=512, seed=0):
    return mask_words(tokenizer, text, max_length, rate, np.random.default_rng(seed))


# ---------------------------------------------------------------- whole words


def words_of(tokenizer, text, seeds=200):
    """Mask one word at a time, by many seeds; list the positions of each, in order."""
    found = {tuple(masked(tokenizer, text, 0.0, seed=seed).positions) for seed in range(seeds)}
    return sorted(found)


def test_a_word_is_what_stands_between_spaces(tokenizer):
    # <s> ▁ a b ▁ c , ▁ d e f </s>
    assert words_of(tokenizer, "ab  c,\tdef") == [(1, 2, 3), (4, 5, 6), (7, 8, 9, 10)]
    assert words_of(tokenizer, " a ") == [(1, 2)]


WORDS = {
    "Internationalization matters, doesn't it?  two\nlines": (
        *("▁International·ization", "▁matter·s·,", "▁doesn·'·t", "▁it·?", "▁two", "▁lines"),
    ),
    "我爱Python编程语言。他们赋有理性": (
        *("▁我", "爱", "P·y·thon", "编程", "语言·。", "他们", "赋", "有", "理性"),
    ),
    "すべてのスーパーコンピューターは、東京で。ABC12": (
        *("▁·すべての", "スーパー", "コンピュータ·ー", "は·、", "東京", "で·。", "ABC·12"),
    ),
    "มนุษย์ทั้งหลายเกิดมา และเสมอภาค": (*("▁·มนุษย์", "ทั้งหลาย", "เกิด", "มา", "▁และ", "เสมอ", "ภาค"),),
    "인간은 태어날 때부터": ("▁인간·은", "▁태·어·날", "▁때·부터"),
    "2023年7月 中 文": ("▁2023", "年", "7", "月", "▁·中", "▁·文"),
    "a<mask> ½ 🎉🎉 e\u0301tude": ("▁a·<·mas·k·>", "▁1⁄2", "▁·🎉·🎉", "▁·étude"),
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_the_real_vocabulary(real, text):
    tokenizer, pieces = real
    ids = tokenizer.encode([text], split_special_tokens=True)[0]
    found = ["·".join(pieces[ids[k]] for k in word) for word in words_of(tokenizer, text)]
    assert found == list(WORDS[text])


def test_every_token_but_the_template_is_in_one_word(real):
    tokenizer, _ = real
    for text in WORDS:
        words = words_of(tokenizer, text)
        count = len(tokenizer.encode([text], split_special_tokens=True)[0])
        assert sorted(k for word in words for k in word) == list(range(1, count - 1))


# ---------------------------------------------------------------- what is masked


def sentence(words, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return " ".join("".join(rng.choice(letters, n)) for n in rng.integers(1, 9, words))


@pytest.mark.parametrize(
    ("words", "rate", "expected"),
    [(1000, MASK_RATE, 150), (20, MASK_RATE, 3), (20, 0.5, 10), (3, MASK_RATE, 1), (20, 1.0, 20)],
)
def test_share_of_words(tokenizer, words, rate, expected):
    text = sentence(words)
    found = masked(tokenizer, text, rate, max_length=10_000)
    starts = [k + 1 for k, c in enumerate(" " + text) if c == " "]  # of the marks: <s> ▁ a ▁ b
    of_word = np.searchsorted(starts, found.positions, side="right")
    assert len(set(of_word)) == expected
    ends = [*starts[1:], len(text) + 2]
    whole = sum(ends[word - 1] - starts[word - 1] for word in set(of_word))
    assert len(found.positions) == whole  # all tokens of each


def test_every_word_is_masked_as_often_as_any(tokenizer):
    counts = np.zeros(20)
    for seed in range(2000):
        found = masked(tokenizer, " ".join("abcdefghijklmnopqrst"), seed=seed)
        counts[(found.positions[::2] - 1) // 2] += 1
    # Three words of twenty each time: six standard deviations of a binomial.
    assert np.abs(counts - 300).max() < 6 * (2000 * 0.15 * 0.85) ** 0.5


def test_labels_and_what_stays(tokenizer):
    text = sentence(60)
    before = np.array(tokenizer.encode([text])[0])
    found = masked(tokenizer, text)
    after = np.array(found.ids)
    assert found.dropped == 0
    assert (np.diff(found.positions) > 0).all()
    np.testing.assert_array_equal(found.labels, before[found.positions])
    others = np.setdiff1d(np.arange(len(before)), found.positions)
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[0], after[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert found.ids == masked(tokenizer, text).ids
    assert found.ids != masked(tokenizer, text, seed=1).ids


def test_rates_of_mask_other_and_same(tokenizer):
    text, vocab = sentence(2000), tokenizer.vocab_size
    drawn = [masked(tokenizer, text, max_length=100_000, seed=seed) for seed in range(20)]
    after = np.concatenate([np.array(found.ids)[found.positions] for found in drawn])
    labels = np.concatenate([found.labels for found in drawn])
    is_mask, is_same = after == tokenizer.mask_id, after == labels
    assert len(after) > 25_000

    def is_share(found, expected):
        assert abs(found.mean() - expected) < 6 * (expected * (1 - expected) / len(after)) ** 0.5

    # A tenth is drawn from the whole vocabulary, the mask and the same token included.
    is_share(is_mask, 0.8 + 0.1 / vocab)
    is_share(is_same, 0.1 + 0.1 / vocab)
    is_share(~is_mask & ~is_same, 0.1 * (1 - 2 / vocab))
    others = after[~is_mask & ~is_same]
    assert set(others) == set(range(vocab)) - {tokenizer.mask_id}
    counts = np.bincount(others, minlength=vocab)
    assert counts.max() < 2.5 * counts.sum() / vocab


def test_tokens_of_a_word_are_replaced_each_for_itself(tokenizer):
    kinds = set()
    for seed in range(50):
        found = masked(tokenizer, "abcdefghijklmnop", seed=seed)
        kinds.add(sum(found.ids[k] == tokenizer.mask_id for k in found.positions))
    assert len(kinds) > 3


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 12])
def test_long_texts_are_cut_and_the_rest_is_masked(tokenizer, max_length):
    text = "ab cd efg"  # <s> ▁ a b ▁ c d ▁ e f g </s>
    whole = tokenizer.encode([text])[0]
    found = masked(tokenizer, text, 1.0, max_length)
    assert len(found.ids) == max_length
    assert found.dropped == len(whole) - max_length
    assert found.positions.tolist() == list(range(1, max_length - 1))
    assert found.labels.tolist() == whole[1 : max_length - 1]
    assert (found.ids[0], found.ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_text_without_words(tokenizer):
    found = masked(tokenizer, "")
    assert found.ids == [tokenizer.bos_id, tokenizer.eos_id]
    assert len(found.positions) == len(found.labels) == found.dropped == 0


def test_special_tokens_in_a_text_are_text(tokenizer):
    found = masked(tokenizer, "<mask> </s>", 0.0, seed=1)
    assert found.positions.tolist() in ([1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12])
    assert {tokenizer.mask_id, tokenizer.eos_id}.isdisjoint(found.labels.tolist())


# ---------------------------------------------------------------- micro-batches


def corpus(tokenizer, count=14):
    rng = np.random.default_rng(5)
    return [
        masked(tokenizer, sentence(int(n), seed), seed=seed)
        for seed, n in enumerate(rng.integers(1, 9, count))
    ]


def micro_batches_of(texts, packing):
    ids = [text.ids for text in texts]
    return masked_micro_batches(pack(ids, [-1] * len(ids), packing, PAD), texts)


@pytest.mark.parametrize("packing", [Packing(64, (32, 64)), Packing(10_000, (64,))])
def test_masked_tokens_are_found_in_their_micro_batches(tokenizer, packing):
    texts = [*corpus(tokenizer), MaskedText([0, 2], np.zeros(0, int), np.zeros(0, int), 0)]
    micro_batches = micro_batches_of(texts, packing)
    count, height, _ = micro_batches.input_ids.shape
    assert (
        micro_batches.labels.shape
        == micro_batches.rows.shape
        == micro_batches.columns.shape
        == micro_batches.weights.shape
    )
    size = micro_batches.labels.shape[1]
    assert size & (size - 1) == 0
    found = []
    for micro_batch, token in zip(*np.nonzero(micro_batches.weights), strict=True):
        row, column = (
            micro_batches.rows[micro_batch, token],
            micro_batches.columns[micro_batch, token],
        )
        spans = micro_batches.text_spans[micro_batch, row]
        (slot,) = np.flatnonzero((spans[:, 0] <= column) & (column < spans[:, 1]))
        number = (micro_batch * height + row) * len(spans) + slot
        (text,) = np.flatnonzero(micro_batches.slots == number)
        label = int(micro_batches.labels[micro_batch, token])
        found.append((int(text), int(column - spans[slot, 0]), label))
    assert set(micro_batches.weights.ravel().tolist()) == {0.0, 1.0}
    assert sorted(found) == [
        (number, position, label)
        for number, text in enumerate(texts)
        for position, label in zip(text.positions.tolist(), text.labels.tolist(), strict=True)
    ]
    assert count > 1 or packing.micro_batch_tokens > 64
    assert 0 < micro_batches.padding < 1


def test_no_masked_token_at_all():
    text = MaskedText([0, 2], np.zeros(0, int), np.zeros(0, int), 0)
    assert not micro_batches_of([text], Packing(64, (32,))).weights.any()


# ---------------------------------------------------------------- the objective


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def head(checkpoint):
    """The head with every parameter away from where it starts."""
    rng = np.random.default_rng(9)
    drawn = init_head(checkpoint.config, seed=0)
    return {
        path: array + 0.3 * rng.standard_normal(array.shape, np.float32)
        for path, array in drawn.items()
    }


def ours(checkpoint, head, texts, packing, train="all"):
    """Loss and gradients, as a step takes them."""
    network, trained, frozen = load_network(checkpoint, (), train, dtype="float32")
    objective = mlm_objective(Encoding(network, REFERENCE))
    loss, gradients = jax.jit(jax.value_and_grad(objective), compiler_options=FAST)(
        {**trained, **head},
        frozen,
        micro_batches_of(texts, packing),
        {},
        jax.random.key(0),
    )
    return float(loss), {path: np.asarray(gradient) for path, gradient in gradients.items()}


@pytest.fixture(scope="module")
def whole(checkpoint, head, tokenizer):
    """Of one micro-batch."""
    return ours(checkpoint, head, corpus(tokenizer), Packing(10_000, (64,)))


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        difference = np.abs(found[path] - gradient).max()
        assert difference <= 2e-5 * np.abs(gradient).max(), path


def test_loss_equals_numpy_text_by_text(tokenizer, head, whole):
    """The published network without adapters, and XLM-RoBERTa's head, in float64."""
    reference = Reference(published_tensors(TINY), published_config(TINY))
    table = published_tensors(TINY)[
        "roberta.embeddings.word_embeddings.parametrizations.weight.original"
    ].astype(np.float64)
    weights = {path.removeprefix("mlm_head."): np.float64(array) for path, array in head.items()}
    losses = []
    for text in corpus(tokenizer):
        hidden = reference(np.array(text.ids), None)[-1][text.positions]
        x = hidden @ weights["dense.kernel"] + weights["dense.bias"]
        x = x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * weights["norm.scale"] + weights["norm.bias"]
        logits = x @ table.T + weights["decoder_bias"]
        chosen = logits[np.arange(len(x)), text.labels]
        losses += (np.log(np.exp(logits).sum(-1)) - chosen).tolist()
    assert len(losses) > 14
    assert whole[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_gradients_equal_those_of_padded_rows(checkpoint, tokenizer, head, whole):
    """A text a row, a dense mask, no micro-batches, and the head as jax.nn has it."""
    network, trained, _ = load_network(checkpoint, (), "all", dtype="float32")
    texts = corpus(tokenizer)
    width = max(len(text.ids) for text in texts)
    ids = np.array([[*text.ids, *[PAD] * (width - len(text.ids))] for text in texts])
    mask = np.arange(width) < np.array([[len(text.ids)] for text in texts])
    rows = np.concatenate([[i] * len(text.positions) for i, text in enumerate(texts)])
    columns, labels = (
        np.concatenate([getattr(text, name) for text in texts]) for name in ("positions", "labels")
    )

    def loss(trained):
        encoder = nnx.merge(network.graph, network.state(trained, {}))
        x = encoder(ids, mask).last_hidden_state[rows, columns]
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            x = x @ trained["mlm_head.dense.kernel"] + trained["mlm_head.dense.bias"]
            x = jax.nn.gelu(x, approximate=False)
            x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * trained["mlm_head.norm.scale"] + trained["mlm_head.norm.bias"]
            logits = x @ trained["word_embeddings.embedding"].T + trained["mlm_head.decoder_bias"]
        return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()

    expected = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)({**trained, **head})
    assert whole[0] == pytest.approx(float(expected[0]), rel=1e-6)
    assert_equal_gradients(whole[1], {k: np.asarray(v) for k, v in expected[1].items()})


def test_micro_batches_change_neither_loss_nor_gradients(checkpoint, head, tokenizer, whole):
    packing = Packing(192, (64,))
    texts = corpus(tokenizer)
    micro_batches = micro_batches_of(texts, packing)
    assert 1 < micro_batches.used.sum() < len(micro_batches.used)
    loss, gradients = ours(checkpoint, head, texts, packing)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    assert_equal_gradients(gradients, whole[1])


def test_frozen_tables_are_the_decoder_too(checkpoint, head, tokenizer, whole):
    loss, gradients = ours(
        checkpoint, head, corpus(tokenizer), Packing(10_000, (64,)), "all-but-embeddings"
    )
    assert loss == pytest.approx(whole[0], rel=1e-6)
    tables = {"word_embeddings.embedding", "token_type_embeddings.embedding"}
    assert_equal_gradients(gradients, {k: v for k, v in whole[1].items() if k not in tables})


def test_loss_of_no_masked_token_is_zero(checkpoint, head):
    network, trained, frozen = load_network(checkpoint, (), "all", dtype="float32")
    text = MaskedText([0, 5, 2], np.zeros(0, int), np.zeros(0, int), 0)
    objective = jax.jit(mlm_objective(Encoding(network, REFERENCE)), compiler_options=FAST)
    trained = {**trained, **head}
    micro_batches = micro_batches_of([text], Packing(64, (32,)))
    assert float(objective(trained, frozen, micro_batches, {}, jax.random.key(0))) == 0.0


def test_init_head(checkpoint):
    head = init_head(checkpoint.config, seed=3)
    width, vocab = TINY["width"], TINY["vocab"]
    assert {path: array.shape for path, array in head.items()} == {
        "mlm_head.dense.kernel": (width, width),
        "mlm_head.dense.bias": (width,),
        "mlm_head.norm.scale": (width,),
        "mlm_head.norm.bias": (width,),
        "mlm_head.decoder_bias": (vocab,),
    }
    assert {array.dtype for array in head.values()} == {np.dtype(np.float32)}
    assert (head["mlm_head.norm.scale"] == 1).all()
    assert all((array == 0).all() for path, array in head.items() if path.endswith("bias"))
    kernel = head["mlm_head.dense.kernel"]
    assert kernel.std() == pytest.approx(checkpoint.config.initializer_range, rel=0.05)
    again, other = (init_head(checkpoint.config, seed)["mlm_head.dense.kernel"] for seed in (3, 4))
    np.testing.assert_array_equal(kernel, again)
    assert (kernel != other).any()
