"""Adapters in PEFT's files: their weights, where they lie, and what is written."""

import json
import logging
import math
import re
import shutil

import foreign
import numpy as np
import pytest
from foreign import save, write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL
from safetensors.numpy import load_file

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import ConfigError
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint

SIZE = {**SMALL, "layers": 2, "positions": 34}
BASE = xlm_roberta_tensors(SIZE, pooler=True)
SELF = "encoder.layer.{}.attention.self.{}"
QUERY_VALUE = [SELF.format(i, name) for i in range(2) for name in ("query", "value")]
LINEAR = [key.removesuffix(".weight") for key in BASE if re.search(r"(self|dense).*weight", key)]
LINEAR = [name for name in LINEAR if "LayerNorm" not in name]
TABLES = ["embeddings.word_embeddings", "embeddings.position_embeddings"]


def base(directory):
    return write(directory, xlm_roberta_config(SIZE), BASE)


def draw(name, rank, dtype="float32"):
    """Draw A (r, in) and B (out, r), with the columns of a table as inputs."""
    rng = np.random.default_rng([rank, *name.encode()])
    shape = BASE[f"{name}.weight"].shape
    inputs, outputs = shape if name in TABLES else shape[::-1]
    sizes = (rank, inputs), (outputs, rank)
    return tuple((0.1 * rng.standard_normal(s)).astype(dtype) for s in sizes)


def adapter(directory, ranks, dtype="float32", prefix="", **fields):
    """Write an adapter: module → rank. Return its factors by module."""
    directory.mkdir(parents=True, exist_ok=True)
    factors = {name: draw(name, rank, dtype) for name, rank in ranks.items()}
    tensors = {}
    for name, (a, b) in factors.items():
        stem, table = f"base_model.model.{prefix}{name}", name in TABLES
        for letter, array in (("A", a), ("B", b)):
            leaf = f"lora_embedding_{letter}" if table else f"lora_{letter}.weight"
            tensors[f"{stem}.{leaf}"] = array
    save(directory / "adapter_model.safetensors", tensors)
    config = foreign.peft_config(r=2, lora_alpha=8, target_modules=[*ranks])
    (directory / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return factors


def weights(checkpoint, directory):
    """Write plain weights, and read them by transformers' names."""
    write_checkpoint(checkpoint, directory, "xlm-roberta")
    return load_file(directory / "model.safetensors")


def check_weights(found, factors, scale_of):
    """Compare with the dense sum, W + scale · B A, of every adapted module."""
    assert found.keys() == BASE.keys()
    for key, weight in BASE.items():
        name = key.removesuffix(".weight")
        expected = weight.astype(np.float64)
        if name in factors:
            a, b = (factor.astype(np.float64) for factor in factors[name])
            update = scale_of(name, len(a)) * (b @ a)
            expected += update.T if name in TABLES else update
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-6, err_msg=key)


CASES = {
    "query and value": (dict.fromkeys(QUERY_VALUE, 2), {}, lambda name, r: 4),
    "everything": (dict.fromkeys([*LINEAR, *TABLES], 2), {}, lambda name, r: 4),
    "rsLoRA": (
        {**dict.fromkeys(LINEAR, 2), QUERY_VALUE[1]: 5},
        {"use_rslora": True, "rank_pattern": {"encoder.layer.0.attention.self.value": 5}},
        lambda name, r: 8 / math.sqrt(r),
    ),
    "patterns": (
        {name: 3 if "query" in name else 2 for name in QUERY_VALUE},
        {"rank_pattern": {"quer.": 3}, "alpha_pattern": {r"layer\.1\..*": -1, "value": 0}},
        lambda name, r: (-1 if "layer.1" in name else 0 if "value" in name else 8) / r,
    ),
    "a larger model's": (
        dict.fromkeys(LINEAR[:-1], 2),
        {"target_modules": r"roberta\..*(query|key|value|dense)", "prefix": "roberta."},
        lambda name, r: 4,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_top", [True, False])
def test_weights_are_those_of_the_dense_sum(tmp_path, case, at_top):
    assert LINEAR[-1] == "pooler.dense"
    ranks, fields, scale_of = CASES[case]
    folder = base(tmp_path / "base") / ("" if at_top else "legal")
    factors = adapter(folder, ranks, **fields)
    checkpoint = open_checkpoint(tmp_path / "base")
    if not at_top:
        checkpoint = merge_checkpoint(checkpoint, "legal")
    check_weights(weights(checkpoint, tmp_path / "out"), factors, scale_of)


def test_different_a_side_by_side_and_equal_ones_once(tmp_path):
    folder = base(tmp_path) / "legal"
    factors = adapter(folder, dict.fromkeys(QUERY_VALUE[:2], 2))
    a, b = (
        open_checkpoint(tmp_path).tensors[f"layers.0.attention.qkv_proj.{leaf}"].read()[0]
        for leaf in ("lora_a", "lora_b")
    )
    (qa, qb), (va, vb) = factors.values()
    np.testing.assert_array_equal(a, np.concatenate([qa, va]).T)
    zero = np.zeros((2, 64), np.float32)
    np.testing.assert_array_equal(b, np.block([[qb.T, zero, zero], [zero, zero, vb.T]]))
    tensors = load_file(folder / "adapter_model.safetensors")
    keys = [key for key in tensors if key.endswith("lora_A.weight")]
    save(folder / "adapter_model.safetensors", {**tensors, keys[0]: tensors[keys[1]]})
    config = open_checkpoint(tmp_path).config
    assert (config.lora_rank, config.lora_alpha) == (2, 8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_what_was_read(tmp_path, dtype):
    """To the bit, with the same modules and ranks."""
    ranks = {**dict.fromkeys(QUERY_VALUE, 2), TABLES[0]: 2, LINEAR[-1]: 2}
    adapter(base(tmp_path / "a") / "one", ranks, dtype)
    fields = {"rank_pattern": {"key": 5}, "alpha_pattern": {"key": 20}}
    key = SELF.format(1, "key")
    adapter(tmp_path / "a" / "two", {key: 5, LINEAR[3]: 2}, dtype, **fields)
    write_checkpoint(open_checkpoint(tmp_path / "a"), tmp_path / "b", "xlm-roberta")
    for folder in ("one", "two"):
        before, after = (
            load_file(tmp_path / name / folder / "adapter_model.safetensors") for name in "ab"
        )
        assert after.keys() == before.keys()
        for name, array in before.items():
            assert array.tobytes() == after[name].tobytes(), name
    config = json.loads((tmp_path / "b" / "two" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {2, 5}
    assert {config["lora_alpha"], *config["alpha_pattern"].values()} == {8, 20}


def test_scales_that_differ_are_folded_into_b_in_float32(tmp_path):
    base(tmp_path)
    adapter(tmp_path / "one", dict.fromkeys(QUERY_VALUE, 2), "float16")
    three = adapter(tmp_path / "two", dict.fromkeys(LINEAR[:3], 2), "float16", lora_alpha=3)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.lora_scale == 4
    stem = "layers.{}.attention.qkv_proj.lora_b"
    assert checkpoint.tensors[stem.format(1)].dtype == np.float16  # none of the second there
    b = checkpoint.tensors[stem.format(0)].read()
    expected = three[LINEAR[0]][1].T.astype(np.float32) * np.float32(3 / 8)
    np.testing.assert_array_equal(b[1, :2, :64], expected)


# --- Where the files lie


def test_a_trainers_checkpoints_are_left_alone_and_load_by_themselves(tmp_path):
    base(tmp_path / "model")
    factors = adapter(
        tmp_path / "model" / "checkpoint-500",
        dict.fromkeys(QUERY_VALUE, 2),
        base_model_name_or_path=str(tmp_path / "model"),
    )
    assert open_checkpoint(tmp_path / "model").config.num_tasks == 0
    found = weights(open_checkpoint(tmp_path / "model" / "checkpoint-500"), tmp_path / "out")
    check_weights(found, factors, lambda name, r: 4)


def test_adapters_alone_are_those_of_the_base_that_they_name(tmp_path, caplog):
    caplog.set_level(logging.INFO, "jina_jax")
    write(tmp_path / "base" / "1_Pooling", {"pooling_mode_cls_token": True}, {})
    (tmp_path / "base" / "1_Pooling" / "model.safetensors").unlink()
    base(tmp_path / "base")
    named = {"base_model_name_or_path": str(tmp_path / "base")}
    factors = adapter(tmp_path / "alone", dict.fromkeys(QUERY_VALUE, 2), **named)
    checkpoint = open_checkpoint(tmp_path / "alone")
    check_weights(weights(checkpoint, tmp_path / "out"), factors, lambda name, r: 4)
    assert checkpoint.config.emb_pooler == "cls"
    assert checkpoint.tokenizer == tmp_path / "base" / "tokenizer.json"
    assert "adapter_config.json: merged into" in caplog.text
    # Settings and a tokenizer of its own come first.
    (tmp_path / "alone" / "tokenizer.json").write_text("{}")
    (tmp_path / "alone" / "config_sentence_transformers.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "alone")
    assert checkpoint.config.emb_pooler == "mean"
    assert checkpoint.tokenizer == tmp_path / "alone" / "tokenizer.json"
    for folder in ("one", "two"):
        adapter(tmp_path / "several" / folder, dict.fromkeys(QUERY_VALUE, 2), **named)
    assert open_checkpoint(tmp_path / "several").config.lora_adaptations == ("one", "two")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "an adapter without its base model"),
        ("/no/such/model", r"base model is missing \(.*no such directory"),
        ("someone/else", r"base model is missing \(.*not in the Hub's cache"),
        (".", "but . has none"),
    ],
)
def test_a_base_that_is_missing_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "alone", dict.fromkeys(QUERY_VALUE, 2), base_model_name_or_path=name)
    expected = rf"adapter_config\.json: base_model_name_or_path={name!r}: .*{message}"
    with pytest.raises((CheckpointError, ConfigError), match=expected):
        open_checkpoint(tmp_path / "alone", cache_dir=tmp_path / "cache", local_files_only=True)


def test_adapters_that_cannot_be_both_are_refused(tmp_path):
    base(tmp_path / "base")
    adapter(tmp_path / "base", dict.fromkeys(QUERY_VALUE, 2))
    adapter(tmp_path / "base" / "legal", dict.fromkeys(QUERY_VALUE, 2))
    with pytest.raises(CheckpointError, match=r"an adapter at the top .* and others in \['legal'"):
        open_checkpoint(tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "legal")
    write_checkpoint(open_checkpoint(tmp_path / "base"), tmp_path / "native", "native")
    adapter(tmp_path / "native", dict.fromkeys(QUERY_VALUE, 2))
    with pytest.raises(CheckpointError, match="is native, and PEFT folders beside it"):
        open_checkpoint(tmp_path / "native")


def test_adapters_of_other_models_are_refused(tmp_path):
    folder = base(tmp_path) / "legal"
    adapter(folder, dict.fromkeys(QUERY_VALUE, 2), prefix="deberta.", target_modules=["query"])
    with pytest.raises(ConfigError, match=r"does not name these, .*value"):
        open_checkpoint(tmp_path)
    (name, *_) = adapter(folder, dict.fromkeys(QUERY_VALUE, 2))
    tensors = load_file(folder / "adapter_model.safetensors")
    key = f"base_model.model.{name}.lora_B.weight"
    for changed, message in (
        ({key: tensors[key][:, :1]}, r"expected lora_A \[2, 64\] and lora_B \[64, 2\]"),
        ({key: tensors[key].astype(np.int32)}, "expected 'float32', .* got int32"),
        ({"base_model.model.x.lora_C": tensors[key]}, r"\+ base_model\.model\.x\.lora_C .*unknown"),
    ):
        save(folder / "adapter_model.safetensors", {**tensors, **changed})
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)


def moved(model, *names):
    """Move files into 0_Transformer, which modules.json names, as older releases wrote models."""
    folder = model / "0_Transformer"
    folder.mkdir(parents=True)
    for name in names:
        shutil.move(model / name, folder / name)
    listed = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [
        {"name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(listed)
    ]
    (model / "modules.json").write_text(json.dumps(entries))
    (model / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode": "cls"}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("has_base", [True, False])
def test_an_adapter_in_the_folder_that_modules_json_names_is_merged(tmp_path, has_base):
    base(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "top")
    ranks = dict.fromkeys(QUERY_VALUE, 2)
    adapter(tmp_path / "top", ranks)
    folder = moved(base(tmp_path / "model"), "config.json", "model.safetensors")
    adapter(folder, ranks, base_model_name_or_path=str(tmp_path / "base"))
    if not has_base:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    found = open_checkpoint(tmp_path / "model")
    assert (found.config.num_tasks, found.config.emb_pooler) == (0, "cls")
    expected = weights(open_checkpoint(tmp_path / "top"), tmp_path / "expected")
    for name, array in weights(found, tmp_path / "found").items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    adapter(tmp_path / "model" / "legal", ranks)
    with pytest.raises(CheckpointError, match=r"has an adapter at the top .*legal"):
        open_checkpoint(tmp_path / "model")


def test_a_link_to_nothing_in_the_place_of_an_adapter_is_named(tmp_path):
    base(tmp_path)
    adapter(tmp_path / "legal", dict.fromkeys(QUERY_VALUE, 2))
    (tmp_path / "legal" / "adapter_config.json").unlink()
    (tmp_path / "legal" / "adapter_config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: .*a link to nothing"):
        open_checkpoint(tmp_path)
