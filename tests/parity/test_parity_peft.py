"""Adapters that PEFT wrote, against PEFT: at the top of a folder, in sub-folders, and alone."""

import json
import shutil

import numpy as np
import pytest
from foreign import write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL
from theirs import PARITY, assert_equal, batch, load_transformers, run_ours, run_torch

from jina_jax.convert import open_checkpoint, write_checkpoint

pytestmark = PARITY

LENGTHS = (19, 7, 2)
IDS = batch(SMALL["vocab"], LENGTHS)
QUERY_VALUE = ["query", "value"]
CONFIGS = {
    "query and value": {"target_modules": QUERY_VALUE, "r": 4, "lora_alpha": 8},
    "every linear layer": {"target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    "a pattern": {"target_modules": r".*layer\.[12]\..*(key|output\.dense)", "r": 2},
    "embeddings": {"target_modules": ["word_embeddings", "position_embeddings", "key"], "r": 2},
    "rsLoRA": {"target_modules": [*QUERY_VALUE, "dense"], "use_rslora": True, "r": 5},
    "patterns of ranks": {
        "target_modules": [*QUERY_VALUE, "dense"],
        "rank_pattern": {"query": 7, r"layer\.0\..*dense": 1},
        "alpha_pattern": {"value": 3, "encoder.layer.1.output.dense": 0.5},
    },
    "some layers": {"target_modules": QUERY_VALUE, "layers_to_transform": [0, 2], "r": 2},
    "a pattern of layers": {
        "target_modules": QUERY_VALUE,
        "layers_to_transform": 1,
        "layers_pattern": "layer",
    },
    "all but some": {"target_modules": ["key", "dense"], "exclude_modules": ["output.dense"]},
    "negative alpha": {"target_modules": ["query", "dense"], "alpha_pattern": {"dense": -4}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain XLM-R with a pooler, as transformers saves it."""
    directory = tmp_path_factory.mktemp("base")
    return write(directory, xlm_roberta_config(), xlm_roberta_tensors(pooler=True))


def load(directory):
    return load_transformers(directory, "XLMRobertaModel")


def adapted(base, adapters: dict, directory):
    """Let PEFT make adapters that are not trivial, and save them into a directory."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = None
    for name, fields in adapters.items():
        config = LoraConfig(init_lora_weights=False, **fields)
        if model is None:
            model = get_peft_model(load(base), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.save_pretrained(directory)
    return model.eval()


def theirs(model, name):
    model.set_adapter(name)
    return run_torch(model, *IDS)


def ours(checkpoint, task=None):
    task_ids = None if task is None else np.full(len(LENGTHS), checkpoint.config.task_id(task))
    return run_ours(checkpoint, *IDS, [task_ids])[0]


@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_that_peft_wrote_computes_the_same_and_so_does_ours(base, tmp_path, case):
    model = adapted(base, {"default": CONFIGS[case]}, tmp_path / "alone")
    expected = theirs(model, "default")
    assert np.abs(expected[0] - run_torch(load(base), *IDS)[0]).max() > 0.1
    assert_equal(ours(open_checkpoint(tmp_path / "alone")), expected)
    shutil.copytree(base, tmp_path / "both")
    shutil.copytree(tmp_path / "alone", tmp_path / "both" / "legal")
    checkpoint = open_checkpoint(tmp_path / "both")
    assert checkpoint.config.lora_adaptations == ("legal",)
    assert_equal(ours(checkpoint, "legal"), expected)
    assert_equal(ours(checkpoint), run_torch(load(base), *IDS))
    write_checkpoint(checkpoint, tmp_path / "out", "xlm-roberta")
    assert_equal(run_torch(with_peft(tmp_path / "out", "legal"), *IDS), expected)
    again = open_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    for path, tensor in checkpoint.tensors.items():
        found = again.tensors[path].read()
        np.testing.assert_array_equal(found, np.array(tensor.read()), err_msg=path)


def with_peft(directory, folder):
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(directory), directory / folder)
    return model.eval()


def test_several_adapters_of_other_ranks_scales_and_modules(base, tmp_path):
    names = ("query and value", "rsLoRA", "embeddings", "patterns of ranks")
    adapters = {name.replace(" ", "-"): CONFIGS[name] for name in names}
    model = adapted(base, adapters, tmp_path / "adapters")  # without a base beside them
    shutil.copytree(base, tmp_path / "both")
    for name in adapters:
        shutil.copytree(tmp_path / "adapters" / name, tmp_path / "both" / name)
    (tmp_path / "both" / "checkpoint-500").mkdir()
    (tmp_path / "both" / "checkpoint-500" / "adapter_config.json").write_text("{}")
    for directory in ("adapters", "both"):
        checkpoint = open_checkpoint(tmp_path / directory)
        assert set(checkpoint.config.lora_adaptations) == set(adapters)
        for name in adapters:
            assert_equal(ours(checkpoint, name), theirs(model, name))
    write_checkpoint(checkpoint, tmp_path / "out", "xlm-roberta")
    for name in adapters:
        folder = name.replace("-", "_")
        found = run_torch(with_peft(tmp_path / "out", folder), *IDS)
        assert_equal(found, theirs(model, name))


def test_an_adapter_beside_its_base_is_applied_as_transformers_does(base, tmp_path):
    from transformers import AutoModel

    shutil.copytree(base, tmp_path / "both")
    model = adapted(base, {"default": CONFIGS["rsLoRA"]}, tmp_path / "both")
    expected = run_torch(AutoModel.from_pretrained(tmp_path / "both").eval(), *IDS)
    assert_equal(expected, theirs(model, "default"))
    assert_equal(ours(open_checkpoint(tmp_path / "both")), expected)


def test_an_adapter_of_a_larger_model_is_one_of_its_encoder(base, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import XLMRobertaForMaskedLM

    torch.manual_seed(0)
    larger = XLMRobertaForMaskedLM.from_pretrained(base)
    config = LoraConfig(init_lora_weights=False, target_modules=["query", "dense"], r=2)
    model = get_peft_model(larger, config)
    model.save_pretrained(tmp_path / "alone")
    keys = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert keys["base_model_name_or_path"] == str(base)
    checkpoint = open_checkpoint(tmp_path / "alone")
    hidden, _ = run_torch_hidden(model.eval().base_model.model.roberta)
    np.testing.assert_allclose(ours(checkpoint)[0], hidden, rtol=0, atol=2e-5)


def run_torch_hidden(encoder):
    import torch

    ids, mask = IDS
    with torch.no_grad():
        out = encoder(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        )
    return np.stack([h.numpy() for h in out.hidden_states]) * mask[..., None], None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True: not supported"),
        ({"modules_to_save": ["pooler"]}, r"modules_to_save=\['pooler'\]: not supported"),
        ({"bias": "lora_only"}, "bias='lora_only': expected 'none'"),
        ({"trainable_token_indices": [5]}, r"trainable_token_indices=.*: not supported"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication=.*: not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': expected"),
    ],
)
def test_other_kinds_of_adapters_that_peft_wrote_are_refused_by_name(
    base, tmp_path, fields, message
):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"target_modules": QUERY_VALUE, "r": 2, **fields})
    get_peft_model(load(base), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)
