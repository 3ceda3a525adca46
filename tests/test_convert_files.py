"""The files of a checkpoint besides the usual one: PyTorch files, PEFT folders, settings."""

import itertools
import json
from pathlib import Path

import foreign
import numpy as np
import pytest
from foreign import FOLDERS, native_tensors, plain_tensors, published_tensors
from published import PROMPTS, SMALL, published_config, write_published
from test_torch_pickle import archive, state_dict, storage, tensor

from jina_jax.checkpoints.native import WEIGHTS_FILE
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint
from jina_jax.convert.layouts import TABLES, bindings
from jina_jax.nn.parameters import parameter_shapes

CONFIG = published_config(SMALL)
PUBLISHED = published_tensors()
NATIVE = native_tensors(PUBLISHED)
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}
SETTINGS = "config_sentence_transformers.json"


def assert_same(tensors, expected: dict[str, np.ndarray]) -> None:
    assert tensors.keys() == expected.keys()
    for key, array in expected.items():
        read = tensors[key].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape), key
        assert read.tobytes() == array.tobytes(), key


def write_bin(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a state dict as PyTorch does, by hand."""
    items, entries = {}, {}
    for k, (key, array) in enumerate(tensors.items()):
        array = np.ascontiguousarray(array)
        stored = storage(str(k), array.size, STORAGES[array.dtype.name])
        stride = [step // array.itemsize for step in array.strides]
        items[key] = tensor(stored, shape=array.shape, stride=stride)
        entries[f"data/{k}"] = array.tobytes()
    archive(path, state_dict(**items), entries)


def write_json(path: Path, values) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def published(tmp_path) -> Path:
    return write_published(tmp_path / "published")


@pytest.fixture
def bare(tmp_path) -> Path:
    """A directory with the published config and no weights."""
    (tmp_path / "bare").mkdir()
    write_json(tmp_path / "bare" / "config.json", CONFIG)
    return tmp_path / "bare"


@pytest.mark.parametrize("dtype", STORAGES)
def test_torch_file(bare, dtype):
    tensors = published_tensors(dtype=dtype)
    write_bin(bare / "pytorch_model.bin", tensors)
    checkpoint = open_checkpoint(bare)
    assert (checkpoint.layout, checkpoint.dtype.name) == ("published", dtype)
    assert_same(checkpoint.tensors, native_tensors(tensors))


def test_sharded_torch_files(bare):
    weight_map = {}
    for k in range(3):
        part = dict(itertools.islice(PUBLISHED.items(), k, None, 3))
        write_bin(bare / f"pytorch_model-{k}.bin", part)
        weight_map |= dict.fromkeys(part, f"pytorch_model-{k}.bin")
    write_json(bare / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    assert_same(open_checkpoint(bare).tensors, NATIVE)
    (bare / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"not beside it: pytorch_model-1\.bin"):
        open_checkpoint(bare)


def test_torch_file_goes_the_whole_way(bare, tmp_path):
    write_bin(bare / "pytorch_model.bin", PUBLISHED)
    write_checkpoint(open_checkpoint(bare), tmp_path / "native", "native")
    assert_same(open_checkpoint(tmp_path / "native").tensors, NATIVE)


def test_hostile_torch_file_is_refused(bare):
    archive(bare / "pytorch_model.bin", b"cos\nsystem\n(X\x05\x00\x00\x00falsetR")
    with pytest.raises(CheckpointError, match=r"refused, UnpicklingError: it names os\.system"):
        open_checkpoint(bare)


def test_safetensors_come_before_a_torch_file(published):
    (published / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_same(open_checkpoint(published).tensors, NATIVE)


def test_native_weights_come_before_all_others(published, tmp_path):
    write_checkpoint(open_checkpoint(published), tmp_path / "native", "native")
    (tmp_path / "native" / "model.safetensors").write_bytes(b"not looked at")
    assert open_checkpoint(tmp_path / "native").layout == "native"


def test_peft_torch_files(tmp_path):
    tensors = foreign.transformers_tensors(plain_tensors(PUBLISHED))
    directory = foreign.write(tmp_path, foreign.transformers_config(), tensors)
    foreign.write_adapters(directory, PUBLISHED)
    for task, folder in enumerate(FOLDERS):
        (directory / folder / "adapter_model.safetensors").unlink()
        write_bin(directory / folder / "adapter_model.bin", foreign.peft_tensors(PUBLISHED, task))
    assert_same(open_checkpoint(directory).tensors, NATIVE)


def test_peft_folders_follow_the_tasks_of_the_config(tmp_path):
    """Names, order and prompts are the config's, where it has them."""
    prompts = {"b.two": "second: ", "a-one": "first: "}
    config = foreign.transformers_config(lora_adaptations=[*prompts], task_instructions=prompts)
    tensors = foreign.transformers_tensors(plain_tensors(PUBLISHED))
    directory = foreign.write(tmp_path, config, tensors)
    foreign.write_adapters(directory, PUBLISHED, ["a_one", "b_two"])
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config.task_instructions == tuple(prompts.items())
    loaded = checkpoint.tensors["pooler.lora_a"].read()
    np.testing.assert_array_equal(loaded, NATIVE["pooler.lora_a"][[1, 0]])


@pytest.mark.parametrize("layout", ["native", "published", "transformers"])
@pytest.mark.parametrize("task", ["retrieval.query", "separation"])
def test_merged_prompt_replaces_the_default_one(published, tmp_path, layout, task):
    """For sentence-transformers too, and even if it is the empty one."""
    write_json(published / SETTINGS, {"prompts": {"q": "query: "}, "default_prompt_name": "q"})
    checkpoint = open_checkpoint(published)
    assert checkpoint.config.default_prompt == "query: "
    write_checkpoint(merge_checkpoint(checkpoint, task), tmp_path / "merged", layout)
    assert open_checkpoint(tmp_path / "merged").config.default_prompt == PROMPTS[task]
    if layout != "native":
        settings = json.loads((tmp_path / "merged" / SETTINGS).read_text())
        named = settings["default_prompt_name"]
        assert settings["prompts"].get(named, "") == PROMPTS[task]
        assert (named is None) == (PROMPTS[task] == "")


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MODULES = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", SETTINGS)


@pytest.mark.parametrize("layout", ["native", "published", "transformers"])
def test_exactly_these_files_are_written(published, tmp_path, layout):
    for name in TOKENIZER:
        write_json(published / name, {"tokenizer": 1})
    (published / "pytorch_model.bin").write_bytes(b"stale")
    checkpoint, target = open_checkpoint(published), tmp_path / "target"
    write_checkpoint(checkpoint, target, layout)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    own = {"config.json", WEIGHTS_FILE if layout == "native" else "model.safetensors"}
    if layout == "transformers":
        names = ("adapter_config.json", "adapter_model.safetensors")
        own |= {f"{folder}/{name}" for folder in FOLDERS for name in names}
    assert found == own | {*TOKENIZER, *(MODULES if layout != "native" else ())}
    for name in TOKENIZER:
        assert (target / name).read_bytes() == (published / name).read_bytes()
    assert open_checkpoint(target).config == checkpoint.config


def test_merged_checkpoint_keeps_the_classes_that_fit(published, tmp_path):
    classes = {
        "AutoConfig": "jinaai/code--configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": "jinaai/code--modeling_lora.XLMRobertaLoRA",
    }
    write_json(published / "config.json", {**CONFIG, "auto_map": classes})
    checkpoint = open_checkpoint(published)
    write_checkpoint(merge_checkpoint(checkpoint, "separation"), tmp_path / "merged", "published")
    write_checkpoint(checkpoint, tmp_path / "whole", "published")
    merged, whole = (
        json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        for name in ("merged", "whole")
    )
    assert whole == classes
    plain = "jinaai/code--modeling_xlm_roberta.XLMRobertaModel"
    assert merged == {**classes, "AutoModel": plain}


@pytest.mark.parametrize("layout", TABLES)
def test_every_row_of_a_table_undoes_itself(tmp_path, layout):
    """split(join(x)) is x for every row, on numbers that are all different."""
    if layout in ("xlm-roberta", "bert"):
        tensors = foreign.xlm_roberta_tensors(pooler=True)
        directory = foreign.write(tmp_path, foreign.xlm_roberta_config(model_type=layout), tensors)
        config = open_checkpoint(directory).config
    else:
        config = open_checkpoint(write_published(tmp_path)).config
    seen, shapes = [], parameter_shapes(config)
    for binding in bindings(layout, config, stacked=layout == "published"):
        values = np.random.default_rng(0).permutation(int(np.prod(shapes[binding.path])))
        ours = values.reshape(shapes[binding.path])
        theirs = binding.split(ours)
        assert [part.shape for part in theirs] == [*binding.shapes]
        np.testing.assert_array_equal(binding.join(theirs), ours, err_msg=binding.path)
        seen += binding.keys
    assert len(seen) == len(set(seen))
