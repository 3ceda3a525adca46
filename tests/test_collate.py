"""From batches of texts to arrays: prompts and tasks by column, lengths, targets, masks."""

import dataclasses
import json

import numpy as np
import pytest
from published import PROMPTS, TASKS

from jina_jax.convert import open_checkpoint
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training.collate import Collator
from jina_jax.training.micro_batches import Packing
from jina_jax.training.mlm import MaskedMicroBatches
from jina_jax.training.sampler import TextBatch
from jina_jax.training.settings import Data

PAIR = TASKS[:2]
QUERY, PASSAGE = (PROMPTS[task] for task in PAIR)
TEXTS = ["one two", "three", "", "four five six", "seven", "8"]


@pytest.fixture(scope="module")
def config(directory):
    return dataclasses.replace(open_checkpoint(directory).config, default_prompt="Text: ")


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer.from_file(directory / "tokenizer.json")


def data(loss, kind, **fields):
    section = {"paths": ["x.jsonl"], "kind": kind, "loss": {"name": loss, **fields}}
    return Data.model_validate_json(json.dumps(section))


def batch(texts, columns, targets=None, teacher=None):
    rows = np.arange(len(texts) // columns)
    return TextBatch(0, rows, list(texts), columns, targets, teacher)


def texts_of(micro_batches, tokenizer):
    """Find the ids and the task of each text again."""
    text_spans = micro_batches.text_spans.reshape(-1, 2)[micro_batches.slots]
    rows = micro_batches.input_ids.reshape(-1, micro_batches.input_ids.shape[-1])
    which = micro_batches.slots // micro_batches.text_spans.shape[2]
    ids = [
        rows[row, start:stop].tolist() for row, (start, stop) in zip(which, text_spans, strict=True)
    ]
    return ids, micro_batches.task_ids.reshape(-1)[micro_batches.slots].tolist()


@pytest.mark.parametrize(
    ("tasks", "columns", "prompts", "expected"),
    [
        (PAIR, 2, [QUERY, PASSAGE] * 3, [0, 1] * 3),
        (PAIR, 3, [QUERY, PASSAGE, PASSAGE] * 2, [0, 1, 1] * 2),
        (PAIR, 1, [QUERY] * 6, [0] * 6),
        (PAIR[1:], 2, [PASSAGE] * 6, [0] * 6),
        (PAIR[::-1], 2, [PASSAGE, QUERY] * 3, [0, 1] * 3),
        ((), 2, ["Text: "] * 6, [-1] * 6),
    ],
)
def test_prompts_and_tasks_go_by_column(config, tokenizer, tasks, columns, prompts, expected):
    reader = Collator(config.only(tasks), tokenizer, Packing(), 128, seed=0)
    inputs = reader(batch(TEXTS, columns), data("info_nce", "pairs"), step=1)
    wanted = tokenizer.encode([p + text for p, text in zip(prompts, TEXTS, strict=True)])
    assert texts_of(inputs.micro_batches, tokenizer) == (wanted, expected)
    assert inputs.columns == columns
    assert inputs.tokens == sum(map(len, wanted))
    assert inputs.dropped == 0
    assert inputs.targets == {}


def test_long_texts_are_cut_and_counted(config, tokenizer):
    reader = Collator(config.only(("separation",)), tokenizer, Packing(), 8, seed=0)
    inputs = reader(batch(TEXTS, 2), data("info_nce", "pairs"), step=1)
    whole = tokenizer.encode(TEXTS)
    cut = [row if len(row) <= 8 else [*row[:7], row[-1]] for row in whole]
    assert texts_of(inputs.micro_batches, tokenizer)[0] == cut
    assert max(map(len, cut)) == 8
    assert inputs.tokens == sum(map(len, cut))
    assert inputs.dropped == sum(map(len, whole)) - sum(map(len, cut)) > 0


SCORES = np.array([0.1, 0.9, 0.5], np.float32)
LABELS = np.array([2, 0, 2], np.int32)
TEACHER = np.ones((6, 4), np.float32)


@pytest.mark.parametrize(
    ("columns", "targets", "teacher", "expected"),
    [
        (2, SCORES, None, {"scores": SCORES}),
        (2, LABELS, None, {"labels": LABELS}),
        (3, LABELS[:2], None, {}),
        (1, None, TEACHER, {"teacher": TEACHER}),
        (2, None, None, {}),
    ],
)
def test_targets_have_the_names_that_losses_know(
    config, tokenizer, columns, targets, teacher, expected
):
    reader = Collator(config.only(()), tokenizer, Packing(), 128, seed=0)
    found = reader(batch(TEXTS, columns, targets, teacher), data("info_nce", "pairs"), 1).targets
    assert found.keys() == expected.keys()
    assert all(found[name] is expected[name] for name in expected)


# ---------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def masked(config, tokenizer):
    """A function of texts, step, seed and rate to inputs of masked language modelling."""

    def read(texts=TEXTS, step=1, seed=0, max_length=128, **fields):
        reader = Collator(config.only(PAIR), tokenizer, Packing(), max_length, seed)
        return reader(batch(texts, 1), data("mlm", "texts", **fields), step)

    return read


def test_masked_texts_have_no_prompt_and_no_task(masked, tokenizer):
    inputs = masked()
    assert isinstance(inputs.micro_batches, MaskedMicroBatches)
    ids, tasks = texts_of(inputs.micro_batches, tokenizer)
    whole = tokenizer.encode(TEXTS)
    assert list(map(len, ids)) == list(map(len, whole))
    assert tasks == [-1] * 6
    assert (inputs.columns, inputs.targets, inputs.dropped) == (1, {}, 0)
    assert inputs.tokens == sum(map(len, whole))
    # Put back what was masked: at least a word of each text but the empty one.
    filled = inputs.micro_batches.input_ids.copy()
    for micro_batch, token in zip(*np.nonzero(inputs.micro_batches.weights), strict=True):
        where = (
            micro_batch,
            inputs.micro_batches.rows[micro_batch, token],
            inputs.micro_batches.columns[micro_batch, token],
        )
        filled[where] = inputs.micro_batches.labels[micro_batch, token]
    assert texts_of(inputs.micro_batches._replace(input_ids=filled), tokenizer)[0] == whole
    assert inputs.micro_batches.weights.sum() >= 5


def test_step_and_seed_decide_what_is_masked(masked):
    texts = ["abcdef ghijkl mnopqr stuvwx yz"] * 8
    first = masked(texts).micro_batches.input_ids
    np.testing.assert_array_equal(first, masked(texts).micro_batches.input_ids)
    assert (first != masked(texts, step=2).micro_batches.input_ids).any()
    assert (first != masked(texts, seed=1).micro_batches.input_ids).any()


def test_rate_of_words(masked):
    texts = [" ".join("abcdefghij") * 2] * 4
    counts = {
        rate: masked(texts, mask_rate=rate).micro_batches.weights.sum() for rate in (0.0, 0.5, 1.0)
    }
    usual = masked(texts).micro_batches.weights.sum()
    # A word has two tokens: its mark and a letter; one of nineteen has three.
    assert 8 <= counts[0.0] <= 12
    assert 4 * 2 * 3 <= usual <= 4 * (2 * 3 + 1)
    assert counts[0.5] > 2.5 * usual
    assert counts[1.0] == sum(len(text.split()) + len("".join(text.split())) for text in texts)


def test_long_masked_texts_are_cut_and_counted(masked, tokenizer):
    inputs = masked(max_length=8)
    lengths = np.array(list(map(len, tokenizer.encode(TEXTS))))
    assert inputs.tokens == np.minimum(lengths, 8).sum()
    assert inputs.dropped == np.maximum(lengths - 8, 0).sum() > 0


def test_ids_without_embeddings_are_refused(config, tokenizer):
    small = dataclasses.replace(config, vocab_size=tokenizer.vocab_size - 1)
    message = rf"tokenizer: expected at most vocab_size={small.vocab_size} ids, got"
    with pytest.raises(ValueError, match=message):
        Collator(small, tokenizer, Packing(), 128, seed=0)


def test_a_tuples_mark_stays_when_its_texts_are_cut(config, tokenizer):
    texts = [f"{'abc ' * n}0123{n:04x}" for n in (1, 20, 30, 40, 50, 60, 70, 80, 90)]
    rows = data("triplet", "labelled")
    inputs = Collator(config.only(PAIR[1:]), tokenizer, Packing(), 64, seed=0)(
        batch(texts, 9), rows, step=1
    )
    whole = tokenizer.encode([PASSAGE + text for text in texts])
    ids, _ = texts_of(inputs.micro_batches, tokenizer)
    # In this vocabulary a character is a token: nine of " 0123...", and </s>.
    assert ids[0] == whole[0]
    for mine, full in zip(ids[1:], whole[1:], strict=True):
        assert (len(mine), mine[:54], mine[54:]) == (64, full[:54], full[-10:])
    assert inputs.dropped == sum(map(len, whole)) - sum(map(len, ids))


def test_a_mark_that_leaves_no_room_for_text(config, tokenizer):
    reader = Collator(config.only(PAIR[1:]), tokenizer, Packing(), 11, seed=0)
    with pytest.raises(ValueError, match=r"model.max_length=11: expected at least 12, .* mark"):
        reader(batch(["some text 01234567"] * 9, 9), data("triplet", "labelled"), step=1)
