"""What the converter refuses: damaged or foreign weights, configs, adapters, and targets."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from foreign import (
    FOLDERS,
    peft_config,
    peft_tensors,
    plain_tensors,
    save,
    transformers_config,
    transformers_tensors,
    write,
    write_adapters,
)
from published import TASKS
from test_convert import CONFIG, PUBLISHED, write_index, write_xlm_roberta

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import ConfigError
from jina_jax.convert import LAYOUTS, merge_checkpoint, open_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("published"), CONFIG, PUBLISHED)


# --- Refusals: weights


def refused(directory, *messages, error=CheckpointError) -> None:
    with pytest.raises(error) as caught:
        open_checkpoint(directory)
    for message in messages:
        assert re.search(message, str(caught.value)), (message, str(caught.value))


def test_every_key_at_fault_is_listed_in_one_error(tmp_path):
    tensors = dict(PUBLISHED)
    del tensors["roberta.encoder.layers.1.norm2.bias"]
    del tensors["roberta.encoder.layers.2.mixer.Wqkv.parametrizations.weight.0.lora_A"]
    tensors["roberta.encoder.layers.3.norm1.bias"] = np.zeros(64, np.float32)
    tensors["roberta.embeddings.extra"] = np.zeros(3, np.float32)
    tensors["roberta.pooler.dense.bias"] = np.zeros(63, np.float32)
    tensors["roberta.emb_ln.bias"] = np.zeros(64, np.int8)
    refused(
        write(tmp_path, CONFIG, tensors),
        r"model\.safetensors: 6 keys do not fit its config",
        r"- roberta\.encoder\.layers\.1\.norm2\.bias \[64\]: missing",
        r"- \S+layers\.2\.mixer\.Wqkv\.parametrizations\.weight\.0\.lora_A \[5, 4, 64\]: missing",
        r"\+ roberta\.encoder\.layers\.3\.norm1\.bias \[64\]: unknown",
        r"\+ roberta\.embeddings\.extra \[3\]: unknown",
        r"! roberta\.pooler\.dense\.bias: expected shape \[64\], got \[63\]",
        r"! roberta\.emb_ln\.bias: expected 'float32', 'bfloat16', 'float16', got int8",
    )


def test_keys_with_another_prefix_are_unknown(tmp_path):
    tensors = {**PUBLISHED, "model.emb_ln.bias": np.zeros(64, np.float32)}
    refused(write(tmp_path, CONFIG, tensors), r"\+ model\.emb_ln\.bias \[64\]: unknown")


def test_key_in_two_shards_is_refused(tmp_path):
    save(tmp_path / "a.safetensors", PUBLISHED)
    save(tmp_path / "b.safetensors", {"roberta.emb_ln.bias": PUBLISHED["roberta.emb_ln.bias"]})
    weight_map = dict.fromkeys(PUBLISHED, "a.safetensors")
    write_index(tmp_path, {**weight_map, "roberta.emb_ln.bias": "b.safetensors"})
    refused(tmp_path, r"1 keys do not fit", r"! roberta\.emb_ln\.bias: found twice")


@pytest.mark.parametrize(
    "name", ["missing.safetensors", "../outside.safetensors", "/etc/passwd", ""]
)
def test_shards_that_are_not_beside_the_index_are_refused(tmp_path, name):
    directory = tmp_path / "model"
    directory.mkdir()
    save(tmp_path / "outside.safetensors", PUBLISHED)
    write_index(directory, dict.fromkeys(PUBLISHED, name))
    refused(directory, rf"these shards are not beside it: {re.escape(name)}")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, "model.safetensors"])
def test_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    refused(tmp_path, "expected an object 'weight_map'")


def test_directory_without_config_or_weights_is_refused(tmp_path):
    refused(tmp_path / "nothing", "expected a checkpoint directory with a config.json")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path, "expected one of model.safetensors, .*pytorch_model.bin.*; found none")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"h.0.attn.c_attn.weight": np.zeros(2)}, "expected one '…embeddings.word_embeddings"),
        ({"embeddings.word_embeddings.weight": np.zeros((2, 2))}, "not a known layout"),
        (
            {f"{x}.embeddings.word_embeddings.weight": np.zeros((2, 2)) for x in "ab"},
            "expected one '…embeddings.word_embeddings.weight', found 2",
        ),
    ],
)
def test_unknown_layout_is_refused(tmp_path, tensors, message):
    refused(write(tmp_path, CONFIG, tensors), message)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:4], lambda d: d[:8] + b"x" + d[9:]]
)
def test_damaged_safetensors_is_refused(tmp_path, damage):
    path = write(tmp_path, CONFIG, PUBLISHED) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, r"model\.safetensors: not a valid safetensors file")


def test_projections_of_different_dtypes_are_listed(tmp_path):
    tensors = transformers_tensors(plain_tensors(PUBLISHED))
    for key in ("layers.0.self_attn.k_proj.weight", "layers.2.self_attn.v_proj.bias"):
        tensors[key] = tensors[key].astype(np.float16)
    refused(
        write(tmp_path, transformers_config(), tensors),
        "expected one dtype for all tensors of a line",
        r"layers\.0\.self_attn\.q_proj\.weight, layers\.0\.self_attn\.k_proj\.weight",
        r"layers\.2\.self_attn\.q_proj\.bias",
    )


# --- Refusals: config


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


CONFIGS = {
    "rotary without base": (without(CONFIG, "rotary_emb_base"), "rotary_emb_base is missing"),
    "no position type": (
        without(CONFIG, "position_embedding_type"),
        "position_embedding_type is missing",
    ),
    "missing fields": (
        without(CONFIG, "hidden_size", "lora_rank", "task_instructions"),
        "hidden_size is missing; lora_rank is missing; task_instructions is missing",
    ),
    "activation": ({**CONFIG, "hidden_act": "gelu_new"}, "hidden_act='gelu_new': expected one of"),
    "decoder": ({**CONFIG, "is_decoder": True}, "is_decoder=True is not supported"),
    "scaling": ({**CONFIG, "rope_scaling": {"factor": 2}}, "rope_scaling=.* is not supported"),
    "rope type": (
        {**CONFIG, "rope_parameters": {"rope_theta": 20000.0, "rope_type": "yarn"}},
        "only a plain rope_theta is supported",
    ),
    "rope is a list": ({**CONFIG, "rope_parameters": [1]}, "only a plain rope_theta"),
    "two bases": (
        {**CONFIG, "rope_parameters": {"rope_theta": 10000.0}},
        r"rotary_emb_base and rope_theta differ: \[10000\.0, 20000\.0\]",
    ),
    "head dimension": ({**CONFIG, "head_dim": 32}, "head_dim=32: expected 16"),
    "prompts of other tasks": (
        {**CONFIG, "task_instructions": {}},
        "task_instructions=.*: expected one prompt for each",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_cannot_be_used_is_refused(tmp_path, case):
    config, message = CONFIGS[case]
    refused(write(tmp_path, config, PUBLISHED), message, error=ConfigError)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_bad_json_is_refused(tmp_path, text):
    write(tmp_path, CONFIG, PUBLISHED)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, r"config\.json: ", error=ConfigError)


def test_transformers_config_without_base_is_refused(tmp_path):
    tensors = transformers_tensors(plain_tensors(PUBLISHED))
    for rope in (None, {}, {"rope_type": "default"}):
        write(tmp_path, transformers_config(rope_parameters=rope), tensors)
        refused(tmp_path, "rotary_emb_base is missing", error=ConfigError)


def test_adapted_config_with_plain_weights_is_refused(tmp_path):
    config = transformers_config(lora_adaptations=list(TASKS))
    tensors = transformers_tensors(plain_tensors(PUBLISHED))
    refused(write(tmp_path, config, tensors), "the weights have no adapters", error=ConfigError)


def test_other_models_and_other_kinds_of_positions_are_refused(tmp_path):
    write_xlm_roberta(tmp_path, model_type="electra")
    refused(tmp_path, r"model_type='electra': .*'xlm-roberta'.*'bert'", error=ConfigError)
    for changes in ({"position_embedding_type": "relative_key"}, {"is_decoder": True}):
        write_xlm_roberta(tmp_path, **changes)
        refused(tmp_path, next(iter(changes)), error=ConfigError)


def test_other_pooling_is_refused(tmp_path):
    write_xlm_roberta(tmp_path, cls=True)
    path = tmp_path / "1_Pooling" / "config.json"
    for raw, message in (
        ({"pooling_mode_min_tokens": True}, "pooling_mode_min_tokens=True: unknown"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "one pooling mode"),
        ({"pooling_mode": "first"}, "pooling_mode='first': expected one of 'mean', 'cls'"),
        ({"pooling_mode": ["mean", "max"]}, r"pooling_mode=\['mean', 'max'\]: expected one of"),
    ):
        path.write_text(json.dumps(raw))
        refused(tmp_path, message, error=ConfigError)


def test_unknown_default_prompt_is_refused(tmp_path):
    write_xlm_roberta(tmp_path)
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text('{"prompts": {}, "default_prompt_name": "search"}')
    refused(tmp_path, "default_prompt_name='search' is not among", error=ConfigError)


# --- Refusals: PEFT folders


@pytest.fixture
def folders(tmp_path) -> Path:
    """A transformers checkpoint with PEFT folders, to be damaged."""
    tensors = transformers_tensors(plain_tensors(PUBLISHED))
    return write_adapters(write(tmp_path, transformers_config(), tensors), PUBLISHED)


def set_adapter(directory: Path, folder: str, **changes) -> None:
    (directory / folder / "adapter_config.json").write_text(json.dumps(peft_config(**changes)))


ADAPTER_CONFIGS = {
    "dora": ({"use_dora": True}, "use_dora=True: not supported"),
    "kasa": ({"kasa_config": {}}, r"kasa_config=\{\}: not supported"),
    "modules to save": ({"modules_to_save": ["pooler"]}, "modules_to_save=.*: not supported"),
    "a field of later": ({"use_magic": {"a": 1}}, r"use_magic=\{'a': 1\}: not supported"),
    "bias of B": ({"lora_bias": True}, "lora_bias=True: not supported"),
    "other method": ({"peft_type": "IA3"}, "peft_type='IA3': expected 'LORA'"),
    "bias": ({"bias": "all", "fan_in_fan_out": True}, "bias='all'.*; fan_in_fan_out=True"),
    "rank is a list": ({"r": [4]}, r"r=\[4\]: expected a positive integer"),
    "rank is true": ({"r": True}, "r=True: expected a positive integer"),
    "alpha is NaN": ({"lora_alpha": float("nan")}, "lora_alpha=nan: expected a finite number"),
    "targets": ({"target_modules": None}, "target_modules=None: expected a list of names"),
    "pattern": ({"target_modules": "(fc1"}, r"target_modules='\(fc1': expected a list of names"),
    "rank pattern": ({"rank_pattern": {"fc1": 0}}, "rank_pattern=.*: expected null, or an object"),
    "alpha pattern": ({"alpha_pattern": ["fc1"]}, "alpha_pattern=.*: expected null, or an object"),
    "layers": ({"layers_to_transform": "1"}, "layers_to_transform='1': expected null, a number"),
    "layers alone": ({"layers_pattern": "layers"}, "layers_pattern='layers': expected layers_to"),
    "start": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': expected true, false"),
    "fewer targets": (
        {"target_modules": ["fc1", "fc2"]},
        "target_modules=.* does not name these, of which there are tensors: embeddings.token_type",
    ),
    "more targets": (
        {"target_modules": r".*(proj|fc\d|dense|embeddings|LayerNorm)", "exclude_modules": ["fc1"]},
        r"target_modules=.* does not name these, .*: layers\.0\.mlp\.fc1, layers\.1\.mlp\.fc1",
    ),
}


@pytest.mark.parametrize("case", ADAPTER_CONFIGS)
def test_adapter_of_another_kind_is_refused(folders, case):
    changes, message = ADAPTER_CONFIGS[case]
    set_adapter(folders, "separation", **changes)
    refused(folders, message, error=ConfigError)


def test_adapter_without_rank_or_weights_is_refused(folders):
    path = folders / "separation" / "adapter_config.json"
    path.write_text("{}")
    message = "peft_type is missing; r is missing; lora_alpha is missing; target_modules is missing"
    refused(folders, message, error=ConfigError)
    set_adapter(folders, "separation")
    (folders / "separation" / "adapter_model.safetensors").unlink()
    refused(folders, "expected adapter_model.safetensors or adapter_model.bin")


def test_rank_that_the_tensors_do_not_have_is_refused(folders):
    for folder in FOLDERS:
        set_adapter(folders, folder, r=8)
    refused(
        folders,
        r"adapter_model\.safetensors: .*expected lora_A \[8, .*by r or rank_pattern, got \[4, ",
    )


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 8), ("lora_alpha", 4)])
def test_config_and_adapters_that_disagree_are_refused(folders, name, value):
    (folders / "config.json").write_text(json.dumps(transformers_config(**{name: value})))
    refused(folders, f"{name}={value}: the PEFT folders have", error=ConfigError)


def test_config_that_lists_other_tasks_than_the_folders_is_refused(folders):
    config = transformers_config(lora_adaptations=["separation", "search"])
    (folders / "config.json").write_text(json.dumps(config))
    refused(folders, r"expected PEFT folders \['search', 'separation'\], got", error=ConfigError)


def test_adapter_with_other_keys_is_refused(folders):
    tensors = peft_tensors(PUBLISHED, 2)
    key = "base_model.model.pooler.dense.lora_A.weight"
    tensors["base_model.model.emb_ln.lora_A.weight"] = tensors.pop(key)
    save(folders / "separation" / "adapter_model.safetensors", tensors)
    refused(
        folders,
        r"- pooler\.dense: expected lora_A and lora_B, got lora_B only",
        r"\+ emb_ln: the base model has no such module",
    )


def test_adapters_in_both_places_are_refused(folders):
    save(folders / "model.safetensors", PUBLISHED)
    (folders / "config.json").write_text(json.dumps(CONFIG))
    refused(folders, "has adapters, and PEFT folders beside it")


# --- Refusals: writing


def test_unknown_target_layout_is_refused(tmp_path, published):
    with pytest.raises(ValueError, match=r"layout='onnx': expected one of 'native', 'published'"):
        write_checkpoint(open_checkpoint(published), tmp_path / "out", "onnx")
    assert LAYOUTS == ("native", "published", "transformers", "xlm-roberta", "bert")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_existing_directory_is_refused_and_kept(tmp_path, published, layout):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="exists already"):
        write_checkpoint(open_checkpoint(published), tmp_path, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_layouts_without_a_place_are_refused(tmp_path, published):
    rotary = open_checkpoint(published)
    absolute = open_checkpoint(write_xlm_roberta(tmp_path / "absolute"))
    zero = open_checkpoint(write_xlm_roberta(tmp_path / "zero", model_type="bert"))
    cases = [
        (rotary, "xlm-roberta", "no place for rotary positions"),
        (merge_checkpoint(rotary, "separation"), "bert", "no place for rotary positions"),
        (absolute, "transformers", "no place for absolute positions"),
        (absolute, "bert", "no place for absolute positions"),
        (zero, "published", "no place for absolute_from_zero positions"),
    ]
    for checkpoint, layout, message in cases:
        with pytest.raises(CheckpointError, match=message):
            write_checkpoint(checkpoint, tmp_path / "out", layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absolute", "zero"]


def test_tasks_with_one_folder_name_are_refused(tmp_path, published):
    checkpoint = open_checkpoint(published)
    tasks = ("a.b", "a-b", "c", "d", "e")
    config = dataclasses.replace(
        checkpoint.config, lora_adaptations=tasks, task_instructions=tuple((t, "") for t in tasks)
    )
    with pytest.raises(CheckpointError, match="same folder names"):
        write_checkpoint(
            dataclasses.replace(checkpoint, config=config), tmp_path / "out", "transformers"
        )


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("layout", ["native", "published", "transformers"])
def test_failure_halfway_leaves_nothing_behind(tmp_path, published, layout, error):
    checkpoint = open_checkpoint(published)

    def fail():
        raise error

    path = "layers.2.mlp.fc1.kernel"
    broken = dataclasses.replace(checkpoint.tensors[path], read=fail)
    checkpoint = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, path: broken})
    with pytest.raises(error):
        write_checkpoint(checkpoint, tmp_path / "a" / "out", layout)
    assert list(tmp_path.iterdir()) == []
