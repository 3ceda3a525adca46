"""Files: ours read by transformers and PEFT, theirs and PyTorch's read by us."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign import FOLDERS, peft_tensors, plain_tensors, published_tensors, write
from published import SMALL, TASKS, published_config, write_published
from theirs import (
    PARITY,
    assert_equal,
    batch,
    load_merged,
    load_transformers,
    run_ours,
    run_torch,
)

from jina_jax.checkpoints.tensors import open_safetensors
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint

pytestmark = PARITY

PUBLISHED = published_tensors()
LENGTHS = (9, 3, 14)
TARGETS = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "dense"),
    *("word_embeddings", "token_type_embeddings"),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def transformers_layout(published, tmp_path_factory) -> Path:
    """Our own transformers folder."""
    directory = tmp_path_factory.mktemp("written") / "out"
    write_checkpoint(open_checkpoint(published), directory, "transformers")
    return directory


def assert_same_tensors(ours, expected) -> None:
    """Compare two open checkpoints to the bit."""
    assert ours.config == expected.config
    assert ours.tensors.keys() == expected.tensors.keys()
    for path, tensor in ours.tensors.items():
        wanted = expected.tensors[path]
        assert tensor.dtype == wanted.dtype, path
        assert np.array(tensor.read()).tobytes() == np.array(wanted.read()).tobytes(), path


def resave(model, directory: Path) -> None:
    """Save with transformers, and take the fields of adapters that are not beside it out."""
    model.save_pretrained(directory)
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    names = ("lora_adaptations", "lora_rank", "lora_alpha", "task_instructions")
    path.write_text(json.dumps({name: raw[name] for name in raw if name not in names}))


@pytest.mark.parametrize("task", range(5))
def test_peft_finds_every_key_of_our_folders_and_no_other(transformers_layout, task):
    from peft import PeftModel

    first, folder = FOLDERS[task - 1], FOLDERS[task]
    model = PeftModel.from_pretrained(
        load_transformers(transformers_layout), transformers_layout / first, adapter_name=first
    )
    found = model.load_adapter(transformers_layout / folder, adapter_name=folder)
    # PEFT calls the base model's own weights "missing" from an adapter.
    assert not [key for key in found.missing_keys if ".lora_" in key]
    assert not found.unexpected_keys
    loaded = {
        key.replace(f".{folder}", ""): value.numpy()
        for key, value in model.state_dict().items()
        if ".lora_" in key and f".{folder}" in key
    }
    expected = peft_tensors(PUBLISHED, task)
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_merged_export_equals_pefts_merge(transformers_layout, tmp_path):
    checkpoint = open_checkpoint(transformers_layout)
    write_checkpoint(merge_checkpoint(checkpoint, TASKS[3]), tmp_path / "ours", "transformers")
    merged = load_merged(transformers_layout, FOLDERS[3])
    ours = load_transformers(tmp_path / "ours").state_dict()
    theirs = merged.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-6, atol=1e-6, err_msg=key)
    ids = batch(SMALL["vocab"], LENGTHS)
    expected = run_torch(merged, *ids)
    assert_equal(run_torch(load_transformers(tmp_path / "ours"), *ids), expected)
    resave(merged, tmp_path / "theirs")
    (read,) = run_ours(open_checkpoint(tmp_path / "theirs"), *ids, [None])
    assert_equal(read, expected)


def test_base_that_transformers_saved_again_under_its_own_names(transformers_layout, tmp_path):
    resave(load_transformers(transformers_layout), tmp_path / "base")
    assert_reads_as_base(tmp_path / "base", transformers_layout, layout="transformers")


def test_base_that_transformers_saved_again_under_published_names(
    transformers_layout, published, tmp_path
):
    """Loaded from published names, transformers writes published names."""
    plain = {f"roberta.{key}": value for key, value in plain_tensors(PUBLISHED).items()}
    config = {**published_config(SMALL), "model_type": "jina_embeddings_v3"}
    del config["auto_map"]
    write(tmp_path / "plain", config, plain)
    resave(load_transformers(tmp_path / "plain"), tmp_path / "base")
    keys = open_safetensors(tmp_path / "base" / "model.safetensors").keys()
    assert any(key.endswith("encoder.layers.0.mixer.Wqkv.weight") for key in keys)
    assert_reads_as_base(tmp_path / "base", transformers_layout, layout="published")


def assert_reads_as_base(directory: Path, original: Path, layout: str) -> None:
    """Compare a checkpoint's tensors with the base weights of another."""
    again, source = open_checkpoint(directory), open_checkpoint(original)
    assert (again.layout, again.config.num_tasks) == (layout, 0)
    base = {path: tensor for path, tensor in source.tensors.items() if ".lora_" not in path}
    assert again.tensors.keys() == base.keys()
    for path, tensor in again.tensors.items():
        np.testing.assert_array_equal(tensor.read(), np.array(base[path].read()), err_msg=path)


def random_adapter(directory: Path, name: str, *, shared_a: bool):
    """Let PEFT make, and save beside its base model, an adapter that is not trivial."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = load_transformers(directory)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    model = get_peft_model(base, config, adapter_name=name)
    for layer in base.layers if shared_a else ():
        attention = layer.self_attn
        for projection in (attention.k_proj, attention.v_proj):
            weight = attention.q_proj.lora_A[name].weight
            projection.lora_A[name].weight.data.copy_(weight)
    model.save_pretrained(directory)
    return model.eval()


@pytest.fixture
def base(transformers_layout, tmp_path) -> Path:
    resave(load_transformers(transformers_layout), tmp_path / "base")
    return tmp_path / "base"


def test_adapter_that_peft_wrote_computes_the_same(base):
    model = random_adapter(base, "legal-search", shared_a=True)
    checkpoint = open_checkpoint(base)
    assert checkpoint.config.lora_adaptations == ("legal-search",)
    assert (checkpoint.config.lora_rank, checkpoint.config.lora_alpha) == (3, 6)
    ids = batch(SMALL["vocab"], LENGTHS)
    # PEFT computes in activation space, without merging.
    adapted = run_torch(model, *ids)
    plain = run_torch(load_transformers(base), *ids)
    assert np.abs(adapted[0] - plain[0]).max() > 0.1
    ours_plain, ours_adapted = run_ours(checkpoint, *ids, [None, np.zeros(len(LENGTHS), np.int32)])
    assert_equal(ours_plain, plain)
    assert_equal(ours_adapted, adapted)


def test_adapter_with_a_separate_a_for_each_projection_computes_the_same(base):
    """PEFT trains such adapters by default; here they are one product, with a rank for each."""
    model = random_adapter(base, "legal-search", shared_a=False)
    checkpoint = open_checkpoint(base)
    assert (checkpoint.config.lora_rank, checkpoint.config.lora_alpha) == (9, 18)
    ids = batch(SMALL["vocab"], LENGTHS)
    (ours,) = run_ours(checkpoint, *ids, [np.zeros(len(LENGTHS), np.int32)])
    assert_equal(ours, run_torch(model, *ids))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_read_as_safetensors(tmp_path, dtype, shards):
    import torch
    from safetensors.torch import load_file

    source = write_published(tmp_path / "source", dtype=dtype)
    tensors = [*load_file(source / "model.safetensors").items()]
    target = tmp_path / "torch"
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    if shards == 1:
        torch.save(dict(tensors), target / "pytorch_model.bin")
    else:
        weight_map = {}
        for k in range(shards):
            name = f"pytorch_model-{k + 1:05}-of-{shards:05}.bin"
            torch.save(dict(tensors[k::shards]), target / name)
            weight_map |= dict.fromkeys(dict(tensors[k::shards]), name)
        index = {"metadata": {}, "weight_map": weight_map}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_tensors(open_checkpoint(target), open_checkpoint(source))


def test_a_modules_own_state_dict_is_read(transformers_layout, tmp_path):
    """As Trainer saves it: an OrderedDict with metadata, parameters and views of storages."""
    import torch

    model = load_transformers(transformers_layout)
    resave(model, tmp_path)
    before = open_checkpoint(tmp_path)
    expected = {path: np.array(tensor.read()) for path, tensor in before.tensors.items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    after = open_checkpoint(tmp_path)
    assert after.config == before.config
    for path, tensor in after.tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected[path], err_msg=path)
