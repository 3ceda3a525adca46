"""verify: agrees with an independent reference, and notices whatever is changed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from published import TASKS, published_config, published_shapes, random_tensor, write_published
from reference import Reference
from tiny import TINY

from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.convert import merge_checkpoint, open_checkpoint
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.verify.compare import (
    PUBLISHED,
    REFERENCES_FILE,
    load_references,
    references_of,
    verify,
)

TEXT = "a cat"  # as many tokens as ids: both inputs run through one compiled program
IDS = [0, 30, 31, 32, 33, 34, 40, 2]


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer.from_file(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def gold(tokenizer):
    return make_gold(tokenizer)


def make_gold(tokenizer, dtype=np.float32):
    """Make a file's content like the published one, from float64 NumPy on the same weights."""
    shapes = published_shapes(TINY)
    tensors = {key: random_tensor(key, shape, np.dtype(dtype), 0) for key, shape in shapes.items()}
    reference = Reference(tensors, published_config(TINY))
    text_ids = np.array(tokenizer.encode([TEXT])[0])

    def values(ids, tokens, dims):
        tasks = {"none": None, **{task: k for k, task in enumerate(TASKS)}}
        return {
            name: reference(ids, task)[-1][slice(*tokens), slice(*dims)].tolist()
            for name, task in tasks.items()
        }

    # Only distances between tokens matter to rotary positions, so a first token that is masked
    # leaves the others as if it were not there.
    return {
        "about": "random",
        "fixed_ids": {
            "input_ids": [IDS],
            "attention_mask": [[0] + [1] * 7],
            "slice": [[1, 4], [1, 4]],
            "values": values(np.array(IDS[1:]), (0, 3), (1, 4)),
        },
        "sentence": {
            "text": TEXT,
            "tokens": len(text_ids),
            "slice": [[1, 4], [1, 10]],
            "values": values(text_ids, (1, 4), (1, 10)),
        },
    }


def references(tmp_path, gold, **changes):
    """Read ``gold`` back from a file, with fields of its inputs changed as input__field=value."""
    gold = json.loads(json.dumps(gold))
    for name, value in changes.items():
        name, field = name.split("__")
        gold[name][field] = value
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    return load_references(tmp_path / "gold.json")


def altered(checkpoint, path, change):
    """Return the checkpoint with one tensor changed."""
    old = checkpoint.tensors[path]
    new = LazyTensor(old.shape, old.dtype, lambda: change(old.read().copy()))
    return type(checkpoint)(
        **{**vars(checkpoint), "tensors": {**checkpoint.tensors, path: new}},
    )


def with_config(target, directory, **changes):
    """Open the weights of a directory under another config."""
    target.mkdir()
    (target / "config.json").write_text(json.dumps(published_config(TINY, **changes)))
    (target / "model.safetensors").symlink_to(directory / "model.safetensors")
    return open_checkpoint(target)


def differing(checks):
    return {(check.input, check.subject) for check in checks if not check.agrees}


BOTH = ("fixed_ids", "sentence")
EVERYTHING = {(name, task) for name in BOTH for task in ("none", *TASKS)}


def test_agrees_with_the_reference(tmp_path, checkpoint, tokenizer, gold):
    checks = verify(checkpoint, tokenizer, references(tmp_path, gold))
    assert not differing(checks)
    assert {(check.input, check.subject) for check in checks} == EVERYTHING | {
        ("sentence", "tokens")
    }
    assert max(check.difference for check in checks) < 2e-5


def test_low_precision_files_are_computed_in_float32(tmp_path, tokenizer):
    import ml_dtypes

    write_published(tmp_path, TINY, dtype="bfloat16")
    gold = make_gold(tokenizer, ml_dtypes.bfloat16)
    checks = verify(open_checkpoint(tmp_path), tokenizer, references(tmp_path, gold))
    assert not differing(checks)


def test_a_changed_weight_is_noticed_everywhere(tmp_path, checkpoint, tokenizer, gold):
    def change(kernel):
        kernel[3, 5] += 0.05
        return kernel

    wrong = altered(checkpoint, "layers.0.mlp.fc1.kernel", change)
    assert differing(verify(wrong, tokenizer, references(tmp_path, gold))) == EVERYTHING


def test_a_changed_adapter_is_noticed_under_its_task_only(tmp_path, checkpoint, tokenizer, gold):
    def change(lora_b):
        lora_b[TASKS.index("separation")] *= 1.01
        return lora_b

    wrong = altered(checkpoint, "layers.0.attention.qkv_proj.lora_b", change)
    found = differing(verify(wrong, tokenizer, references(tmp_path, gold)))
    assert found == {(name, "separation") for name in BOTH}


def test_adapters_in_another_order_are_noticed(tmp_path, directory, tokenizer, gold):
    order = [TASKS[1], TASKS[0], *TASKS[2:]]
    wrong = with_config(tmp_path / "wrong", directory, lora_adaptations=order)
    found = differing(verify(wrong, tokenizer, references(tmp_path, gold)))
    assert found == {(name, task) for name in BOTH for task in TASKS[:2]}


def test_a_wrong_rotary_base_is_noticed(tmp_path, directory, tokenizer, gold):
    wrong = with_config(tmp_path / "wrong", directory, rotary_emb_base=10000.0)
    assert differing(verify(wrong, tokenizer, references(tmp_path, gold))) == EVERYTHING


def test_a_wrong_adapter_scale_is_noticed(tmp_path, directory, tokenizer, gold):
    wrong = with_config(tmp_path / "wrong", directory, lora_alpha=1.1)
    found = differing(verify(wrong, tokenizer, references(tmp_path, gold)))
    assert found == {(name, task) for name in BOTH for task in TASKS}


def test_the_attention_mask_counts(tmp_path, checkpoint, tokenizer, gold):
    expected = references(tmp_path, gold, fixed_ids__attention_mask=[[1] * 8])
    found = differing(verify(checkpoint, tokenizer, expected))
    assert found == {("fixed_ids", task) for task in ("none", *TASKS)}


def test_another_number_of_tokens_ends_the_comparison_of_that_text(
    tmp_path, checkpoint, tokenizer, gold
):
    tokens = gold["sentence"]["tokens"]
    expected = references(tmp_path, gold, sentence__tokens=tokens + 2)
    checks = [c for c in verify(checkpoint, tokenizer, expected) if c.input == "sentence"]
    assert checks == [("sentence", "tokens", 2.0, False)]


def test_nan_never_agrees(tmp_path, checkpoint, tokenizer, gold):
    wrong = altered(checkpoint, "embedding_norm.scale", lambda scale: scale * np.nan)
    assert differing(verify(wrong, tokenizer, references(tmp_path, gold))) == EVERYTHING


def test_what_cannot_be_compared_is_refused_before_weights_are_read(checkpoint, tokenizer):
    def unread(tensor):
        return LazyTensor(tensor.shape, tensor.dtype, lambda: pytest.fail("was read"))

    merged = merge_checkpoint(checkpoint, "separation")
    tensors = {path: unread(tensor) for path, tensor in merged.tensors.items()}
    merged = type(merged)(**{**vars(merged), "tensors": tensors})
    with pytest.raises(ValueError, match="not comparable") as caught:
        verify(merged, tokenizer, load_references())
    assert "vocab_size=120 has no id 6078" in str(caught.value)
    assert "lacks the tasks classification, retrieval.passage" in str(caught.value)


def test_width_and_length_are_checked(tmp_path, checkpoint, tokenizer, gold):
    values = {"none": np.zeros((3, 65)).tolist()}
    changes = {"sentence__slice": [[1, 4], [0, 65]], "sentence__values": values}
    expected = references(tmp_path, gold, **changes, sentence__tokens=129)
    with pytest.raises(ValueError, match=r"hidden_size=64 is below 65; max_length=128 is below"):
        verify(checkpoint, tokenizer, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence__slice": [[1, 4], [1, 9]]}, r"sentence: expected values of shape \(3, 8\)"),
        ({"sentence__slice": [[1, 4]]}, "not in the form"),
        ({"sentence__values": {}}, "expected values of shape"),
        ({"sentence__tokens": 3}, "sentence: expected one row of tokens"),
        ({"sentence__text": 5}, "sentence: expected a text"),
        ({"fixed_ids__attention_mask": [[1, 1]]}, "fixed_ids: expected one row of tokens"),
        ({"fixed_ids__input_ids": ["ab"]}, "not in the form"),
        ({"fixed_ids__values": {"none": "x"}}, "not in the form"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, gold, changes, message):
    with pytest.raises(ValueError, match=message):
        references(tmp_path, gold, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fixed_ids": 3}, r"gold\.json: not in the form"),
        ({"fixed_ids": {"slice": [[1, 4], [1, 4]]}}, r"\('values' is missing\)"),
        ({"about": "nothing"}, "expected at least one input"),
    ],
)
def test_a_file_without_what_is_needed_is_refused(tmp_path, content, message):
    (tmp_path / "gold.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_references(tmp_path / "gold.json")


def test_inputs_may_be_of_any_number_and_name(tmp_path, checkpoint, tokenizer, gold):
    (tmp_path / "gold.json").write_text(json.dumps({"about": "one", "cat": gold["sentence"]}))
    (reference,) = load_references(tmp_path / "gold.json")
    assert (reference.name, reference.text) == ("cat", TEXT)
    checks = verify(checkpoint, tokenizer, [reference])
    assert [check.subject for check in checks] == ["tokens", "none", *TASKS]
    assert not differing(checks)


def test_a_directory_s_own_values_come_before_the_published(tmp_path, gold):
    size = SimpleNamespace(num_hidden_layers=24, hidden_size=1024)
    full = SimpleNamespace(directory=tmp_path, config=size)
    assert [r.name for r in references_of(full)] == ["fixed_ids", "sentence"]
    assert references_of(full)[1].text != TEXT
    (tmp_path / REFERENCES_FILE).write_text(json.dumps(gold))
    assert references_of(full)[1].text == TEXT


def test_the_packaged_values():
    fixed, sentence = load_references()
    assert list(fixed.values) == list(sentence.values) == ["none", *TASKS]
    assert fixed.attention_mask.tolist() == [False] + [True] * 10
    assert fixed.values["none"][0].tolist() == [-2.1561, 1.8075, -0.1943]
    assert len(sentence.attention_mask) == 17
    assert sentence.text == "Jina Embeddings V3 is great for semantic search."


def test_the_packaged_file_is_the_published_one(shared):
    published = json.loads((shared / "gold/published.json").read_text())
    assert json.loads(PUBLISHED.read_text()) == published


def test_published_values_are_for_models_of_that_size(directory):
    with pytest.raises(
        ValueError, match=r"expected reference values in .*gold\.json, or a model of"
    ):
        references_of(open_checkpoint(directory))


def test_vectors_need_a_text(tmp_path, gold):
    ids = {**gold["fixed_ids"], "embeddings": {"none": [0.0]}}
    (tmp_path / "gold.json").write_text(json.dumps({"fixed_ids": ids}))
    with pytest.raises(ValueError, match="fixed_ids: expected a text beside the embeddings"):
        load_references(tmp_path / "gold.json")
