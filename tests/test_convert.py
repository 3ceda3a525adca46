"""Every layout read and written, to the bit."""

import json
import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from foreign import (
    FOLDERS,
    native_tensors,
    peft_tensors,
    plain_tensors,
    published_tensors,
    save,
    transformers_config,
    transformers_tensors,
    write,
    write_adapters,
    xlm_roberta_config,
    xlm_roberta_tensors,
)
from published import PROMPTS, SMALL, TASKS, published_config

from jina_jax.checkpoints.tensors import open_safetensors
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint

PUBLISHED = published_tensors()
CONFIG = published_config(SMALL)
NATIVE = native_tensors(PUBLISHED)
DTYPES = ("float32", "float16", "bfloat16")


def same(tensors, expected) -> None:
    """Check names, shapes, dtypes and every bit."""
    assert tensors.keys() == expected.keys()
    for path, tensor in tensors.items():
        array, wanted = tensor.read(), expected[path]
        assert array.shape == tensor.shape == wanted.shape, path
        assert array.dtype == tensor.dtype == wanted.dtype, path
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(wanted).tobytes(), path


def arrays(checkpoint) -> dict[str, np.ndarray]:
    return {path: tensor.read().copy() for path, tensor in checkpoint.tensors.items()}


def plain_native(task=None) -> dict[str, np.ndarray]:
    return native_tensors({f"roberta.{k}": v for k, v in plain_native_source(task).items()})


def plain_native_source(task):
    """Plain weights under the published names that ``native_tensors`` understands."""
    plain = plain_tensors(PUBLISHED, task)
    renamed = {}
    for key, value in plain.items():
        stem = key.removesuffix(".weight")
        adapted = f"roberta.{stem}.parametrizations.weight.original" in PUBLISHED
        renamed[f"{stem}.parametrizations.weight.original" if adapted else key] = value
    return renamed


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("published"), CONFIG, PUBLISHED)


@pytest.fixture(scope="module")
def transformers(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("transformers")
    write(directory, transformers_config(), transformers_tensors(plain_tensors(PUBLISHED)))
    return write_adapters(directory, PUBLISHED)


# --- Reading


@pytest.mark.parametrize("prefix", ["", "roberta.", "model.", "auto_model.", "0.auto_model."])
def test_published_layout_with_any_prefix(tmp_path, prefix):
    tensors = {key.removeprefix("roberta."): value for key, value in PUBLISHED.items()}
    checkpoint = open_checkpoint(write(tmp_path, CONFIG, tensors, prefix))
    assert checkpoint.layout == "published"
    assert checkpoint.config.lora_adaptations == TASKS
    assert checkpoint.config.rotary_emb_base == 20000.0
    assert checkpoint.config.add_pooling_layer
    same(checkpoint.tensors, NATIVE)


def test_resaved_fine_tune(tmp_path):
    config = {**CONFIG, "model_type": "xlm-roberta", "dtype": "float32", "head_dim": 16}
    del config["torch_dtype"]
    prefixed = {f"roberta.{key}": value for key, value in PUBLISHED.items()}
    checkpoint = open_checkpoint(write(tmp_path, config, prefixed))
    same(checkpoint.tensors, NATIVE)


def test_sharded_safetensors(tmp_path):
    keys = [*PUBLISHED]
    shards = {"model-1-of-2.safetensors": keys[::2], "model-2-of-2.safetensors": keys[1::2]}
    for name, part in shards.items():
        save(tmp_path / name, {key: PUBLISHED[key] for key in part})
    write_index(tmp_path, {key: name for name, part in shards.items() for key in part})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout == "published"
    same(checkpoint.tensors, NATIVE)


def write_index(directory: Path, weight_map) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG))
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)


def test_without_pooler(tmp_path):
    tensors = {key: value for key, value in PUBLISHED.items() if "pooler" not in key}
    checkpoint = open_checkpoint(write(tmp_path, CONFIG, tensors))
    assert not checkpoint.config.add_pooling_layer
    same(checkpoint.tensors, {k: v for k, v in NATIVE.items() if "pooler" not in k})


def test_transformers_layout_with_peft_folders(transformers):
    checkpoint = open_checkpoint(transformers)
    assert checkpoint.layout == "transformers"
    config = checkpoint.config
    assert config.lora_adaptations == TASKS
    assert (config.lora_rank, config.lora_alpha) == (4, 1)
    assert dict(config.task_instructions) == PROMPTS
    assert (config.position_embedding_type, config.rotary_emb_base) == ("rotary", 20000.0)
    same(checkpoint.tensors, NATIVE)


@pytest.mark.parametrize("prefix", ["", "roberta.", "model."])
def test_transformers_saves_base_weights_under_published_names_too(tmp_path, prefix):
    write(tmp_path, transformers_config(), plain_tensors(PUBLISHED), prefix)
    checkpoint = open_checkpoint(write_adapters(tmp_path, PUBLISHED))
    assert checkpoint.layout == "published"
    same(checkpoint.tensors, NATIVE)


@pytest.mark.parametrize("prefix", ["", "roberta.", "0.auto_model."])
def test_transformers_layout_without_adapters(tmp_path, prefix):
    tensors = transformers_tensors(plain_tensors(PUBLISHED))
    checkpoint = open_checkpoint(write(tmp_path, transformers_config(), tensors, prefix))
    assert checkpoint.config.num_tasks == 0
    same(checkpoint.tensors, plain_native())


def test_unknown_folders_are_tasks_of_that_name(tmp_path):
    """Known tasks come first, in the published order."""
    write(tmp_path, transformers_config(), transformers_tensors(plain_tensors(PUBLISHED)))
    write_adapters(tmp_path, PUBLISHED, folders=["legal-search", "separation", "a_b"])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.lora_adaptations == ("separation", "a_b", "legal-search")
    assert checkpoint.config.prompt("legal-search") == ""
    order = [1, 2, 0]
    for path, array in arrays(checkpoint).items():
        expected = NATIVE[path][order] if ".lora_" in path else NATIVE[path]
        np.testing.assert_array_equal(array, expected, err_msg=path)


def test_adapters_may_have_another_dtype_than_the_base(tmp_path):
    base = {k: v.astype(ml_dtypes.bfloat16) for k, v in plain_tensors(PUBLISHED).items()}
    write(tmp_path, transformers_config(), transformers_tensors(base))
    checkpoint = open_checkpoint(write_adapters(tmp_path, PUBLISHED))
    assert checkpoint.dtype.name == "bfloat16"
    expected = {k: v if ".lora_" in k else v.astype(ml_dtypes.bfloat16) for k, v in NATIVE.items()}
    same(checkpoint.tensors, expected)


XLM_ROBERTA = {
    "xlm-roberta-large": {"pooler": False, "prefix": "roberta.", "head": True, "cls": False},
    "multilingual-e5": {"pooler": True, "prefix": "", "head": False, "cls": False},
    "bge-m3": {"pooler": True, "prefix": "", "head": False, "cls": True},
}


def write_xlm_roberta(directory, *, pooler=True, prefix="", head=False, cls=False, **changes):
    """Write plain XLM-R with what the checkpoints of that kind have beside it."""
    tensors = xlm_roberta_tensors(pooler=pooler)
    write(directory, xlm_roberta_config(**changes), tensors, prefix)
    extra = {}
    if head:
        extra = {f"lm_head.{name}": np.ones(4, np.float32) for name in ("bias", "dense.weight")}
        extra[f"{prefix}embeddings.position_ids"] = np.arange(514)[None]
    if cls:
        (directory / "1_Pooling").mkdir()
        modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    prefixed = {prefix + key: value for key, value in tensors.items()}
    save(directory / "model.safetensors", {**prefixed, **extra})
    return directory


@pytest.mark.parametrize("name", XLM_ROBERTA)
def test_plain_xlm_roberta(tmp_path, name, caplog):
    case = XLM_ROBERTA[name]
    caplog.set_level(logging.INFO, "jina_jax")
    checkpoint = open_checkpoint(write_xlm_roberta(tmp_path, **case))
    assert checkpoint.layout == "xlm-roberta"
    config = checkpoint.config
    assert (config.position_embedding_type, config.rotary_emb_base) == ("absolute", None)
    assert config.add_pooling_layer == case["pooler"]
    assert config.emb_pooler == ("cls" if case["cls"] else "mean")
    assert config.num_tasks == 0
    assert sorted(checkpoint.ignored) == (
        ["lm_head.bias", "lm_head.dense.weight", "roberta.embeddings.position_ids"]
        if case["head"]
        else []
    )
    assert all(key in caplog.text for key in checkpoint.ignored)
    source = xlm_roberta_tensors(pooler=case["pooler"])
    found = arrays(checkpoint)
    np.testing.assert_array_equal(
        found["position_embeddings.embedding"], source["embeddings.position_embeddings.weight"]
    )
    stem = "encoder.layer.2.attention.self"
    qkv = [source[f"{stem}.{name}.weight"] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(
        found["layers.2.attention.qkv_proj.kernel"].T, np.concatenate(qkv)
    )
    wide, narrow = (
        source[f"encoder.layer.1.{x}.weight"] for x in ("intermediate.dense", "output.dense")
    )
    np.testing.assert_array_equal(found["layers.1.mlp.fc1.kernel"].T, wide)
    np.testing.assert_array_equal(found["layers.1.mlp.fc2.kernel"].T, narrow)
    assert len(found) == 5 + 12 * 3 + 2 * case["pooler"]


def test_prompts_and_pooling_of_sentence_transformers(tmp_path):
    write_xlm_roberta(tmp_path, cls=True)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert open_checkpoint(tmp_path).config.default_prompt == "query: "
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert open_checkpoint(tmp_path).config.emb_pooler == "mean"


# --- Writing


def mixed_dtypes(tensors):
    """Norms in float16, adapters in float32, the rest in bfloat16."""

    def cast(key, value):
        kind = "norm" if "norm" in key or "emb_ln" in key else "lora" if "lora_" in key else ""
        dtype = {"norm": np.float16, "lora": np.float32, "": ml_dtypes.bfloat16}[kind]
        return value.astype(dtype)

    return {key: cast(key, value) for key, value in tensors.items()}


def source_tensors(dtype):
    if dtype == "mixed":
        return mixed_dtypes(PUBLISHED)
    return {key: value.astype(dtype) for key, value in PUBLISHED.items()}


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed"])
def test_round_trips_keep_every_bit(tmp_path, dtype):
    """published → native → transformers → published, then that file against the first."""
    tensors = source_tensors(dtype)
    directory = write(tmp_path / "source", CONFIG, tensors)
    config = open_checkpoint(directory).config
    for layout in ("native", "transformers", "native", "published", "transformers", "published"):
        checkpoint = open_checkpoint(directory)
        directory = tmp_path / f"{directory.name}-{layout[0]}"
        write_checkpoint(checkpoint, directory, layout)
        again = open_checkpoint(directory)
        assert again.layout == layout
        assert again.config == config
        same(again.tensors, native_tensors(tensors))
    same(open_safetensors(directory / "model.safetensors"), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_transformers_files_are_those_of_transformers_and_peft(tmp_path, dtype):
    tensors = source_tensors(dtype)
    checkpoint = open_checkpoint(write(tmp_path / "source", CONFIG, tensors))
    write_checkpoint(checkpoint, tmp_path / "out", "transformers")
    expected = transformers_tensors(plain_tensors(tensors))
    same(open_safetensors(tmp_path / "out" / "model.safetensors"), expected)
    for task, folder in enumerate(FOLDERS):
        path = tmp_path / "out" / folder / "adapter_model.safetensors"
        same(open_safetensors(path), peft_tensors(tensors, task))
        raw = json.loads((tmp_path / "out" / folder / "adapter_config.json").read_text())
        assert (raw["peft_type"], raw["r"], raw["lora_alpha"], raw["bias"]) == (
            "LORA",
            4,
            1,
            "none",
        )
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "jina_embeddings_v3"
    assert raw["rope_parameters"] == {"rope_theta": 20000.0, "rope_type": "default"}
    assert (raw["dtype"], raw["vocab_size"]) == (dtype, SMALL["vocab"])
    assert "auto_map" not in raw
    assert "torch_dtype" not in raw


def test_published_config_comes_back(tmp_path, published):
    write_checkpoint(open_checkpoint(published), tmp_path / "n", "native")
    write_checkpoint(open_checkpoint(tmp_path / "n"), tmp_path / "p", "published")
    raw = json.loads((tmp_path / "p" / "config.json").read_text())
    assert {**CONFIG, "torch_dtype": "float32"}.items() <= raw.items()


@pytest.mark.parametrize("layout", ["native", "published", "xlm-roberta"])
def test_xlm_roberta_round_trip(tmp_path, layout):
    source = open_checkpoint(write_xlm_roberta(tmp_path / "source", cls=True))
    write_checkpoint(source, tmp_path / "out", layout)
    written = open_checkpoint(tmp_path / "out")
    assert (written.layout, written.config) == (layout, source.config)
    same(written.tensors, arrays(source))
    write_checkpoint(written, tmp_path / "again", "xlm-roberta")
    same(
        open_safetensors(tmp_path / "again" / "model.safetensors"), xlm_roberta_tensors(pooler=True)
    )


@pytest.mark.parametrize("layout", ["native", "published", "transformers"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_task(tmp_path, layout, dtype):
    tensors = source_tensors(dtype)
    checkpoint = open_checkpoint(write(tmp_path / "source", CONFIG, tensors))
    write_checkpoint(merge_checkpoint(checkpoint, "retrieval.passage"), tmp_path / "out", layout)
    merged = open_checkpoint(tmp_path / "out")
    assert merged.config == checkpoint.config.merged("retrieval.passage")
    assert merged.config.default_prompt == PROMPTS["retrieval.passage"]
    source = {path: tensor.read().astype(np.float64) for path, tensor in checkpoint.tensors.items()}
    for path, tensor in merged.tensors.items():
        assert tensor.dtype.name == dtype
        exact, stem = source[path], path.rpartition(".")[0]
        if path.endswith(("kernel", "embedding")):
            exact = exact + source[f"{stem}.lora_a"][1] @ source[f"{stem}.lora_b"][1] / 4
        unit = float(ml_dtypes.finfo(tensor.dtype).eps)
        # Half a unit in the last place for the one rounding, and a little for the float32 sum.
        error = np.abs(tensor.read().astype(np.float64) - exact)
        assert (error <= (0.5 * unit) * np.abs(exact) + 1e-6).all(), path


def test_merging_an_unknown_task_is_refused(published):
    checkpoint = open_checkpoint(published)
    for task in ("search", None):
        with pytest.raises(ValueError, match=f"task={task!r}"):
            merge_checkpoint(checkpoint, task)


def test_merged_weights_do_not_ask_for_the_code_of_adapters(tmp_path, published):
    merged = merge_checkpoint(open_checkpoint(published), "separation")
    write_checkpoint(merged, tmp_path / "out", "published")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["auto_map"]["AutoModel"].endswith("--modeling_xlm_roberta.XLMRobertaModel")
    assert raw["lora_adaptations"] == []
    keys = open_safetensors(tmp_path / "out" / "model.safetensors").keys()
    assert not [key for key in keys if "parametrizations" in key or "lora" in key]


def test_tokenizer_is_carried_along(tmp_path, published):
    source = tmp_path / "source"
    write(source, CONFIG, PUBLISHED)
    (source / "tokenizer.json").write_text("{}")
    (source / "custom_st.py").write_text("print()")
    checkpoint = open_checkpoint(source)
    write_checkpoint(checkpoint, tmp_path / "same", "published")
    write_checkpoint(checkpoint, tmp_path / "other", "native")
    assert (tmp_path / "same" / "tokenizer.json").exists()
    assert (tmp_path / "other" / "tokenizer.json").exists()
    # A native config.json has everything; code is never copied, but named where it is.
    assert not (tmp_path / "other" / "modules.json").exists()
    assert not (tmp_path / "same" / "custom_st.py").exists()
    first, *_ = json.loads((tmp_path / "same" / "modules.json").read_text())
    assert first["type"] == "jinaai/jina-embeddings-v3--custom_st.Transformer"
    assert first["kwargs"] == ["task"]
