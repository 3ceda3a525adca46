"""Parameter trees: states as dicts by path, what paths mean, and stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, write_tiny

from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import (
    adapters_of,
    from_dict,
    is_adapter,
    is_stacked,
    is_table,
    merge_task,
    stacked_paths,
    to_checkpoint,
    to_dict,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("model"), {**TINY, "layers": 12}))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_state_comes_back_from_its_dict(checkpoint, scan_layers):
    state = to_state(checkpoint.config, checkpoint.tensors, scan_layers=scan_layers)
    _, abstract = abstract_encoder(checkpoint.config, scan_layers=scan_layers)
    arrays = to_dict(state)
    again = from_dict(abstract, {**arrays, "another": None})
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True))
    del arrays["pooler.bias"]
    with pytest.raises(KeyError, match=r"pooler\.bias"):
        from_dict(abstract, arrays)


@pytest.mark.parametrize(
    ("path", "adapter", "table", "stacked"),
    [
        ("word_embeddings.embedding", False, True, False),
        ("token_type_embeddings.lora_a", True, True, False),
        ("layers.10.mlp.fc1.lora_b", True, False, False),
        ("layers.mlp.fc1.lora_b", True, False, True),
        ("layers.norm1.scale", False, False, True),
        ("embedding_norm.scale", False, False, False),
        ("mlm_head.decoder.bias", False, False, False),
    ],
)
def test_what_a_path_means(path, adapter, table, stacked):
    assert (is_adapter(path), is_table(path), is_stacked(path)) == (adapter, table, stacked)


def test_adapters_of():
    paths = (
        "pooler.kernel",
        "pooler.bias",
        "pooler.lora_a",
        "pooler.lora_b",
        "norm.scale",
        "x.kernel",
    )
    found = {path: adapters_of(path, paths) for path in paths}
    factors = ("pooler.lora_a", "pooler.lora_b")
    assert found == {**dict.fromkeys(paths), "pooler.kernel": factors}


def test_layers_are_stacked_by_number_and_taken_apart_again(checkpoint):
    layers = stacked_paths(sorted(checkpoint.tensors))["layers.norm1.bias"]
    assert layers == [f"layers.{i}.norm1.bias" for i in range(12)]
    state = to_state(checkpoint.config, checkpoint.tensors, scan_layers=True)
    apart = to_checkpoint(to_dict(state))
    assert apart.keys() == checkpoint.tensors.keys()
    for path, array in apart.items():
        np.testing.assert_array_equal(array, checkpoint.tensors[path].read(), err_msg=path)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_queries_keys_and_values_have_an_axis_in_a_state_and_none_in_a_checkpoint(
    checkpoint, scan_layers
):
    """Their values are the same, in the same order."""
    state = to_dict(to_state(checkpoint.config, checkpoint.tensors, scan_layers=scan_layers))
    where = "layers" if scan_layers else "layers.7"
    for leaf, shape in {"kernel": (64, 3, 64), "bias": (3, 64), "lora_b": (5, 4, 3, 64)}.items():
        array = state[f"{where}.attention.qkv_proj.{leaf}"]
        own = array[7] if scan_layers else array
        expected = checkpoint.tensors[f"layers.7.attention.qkv_proj.{leaf}"].read()
        assert own.shape == shape
        assert expected.shape == (*shape[:-2], 192)
        queries, keys, values = np.split(expected, 3, axis=-1)
        np.testing.assert_array_equal(own, np.stack([queries, keys, values], axis=-2))


def test_a_task_merged_into_stacked_layers(checkpoint):
    config = checkpoint.config
    plain, stacked = (
        merge_task(
            to_state(config, checkpoint.tensors, scan_layers=scan_layers), "separation", config
        )
        for scan_layers in (False, True)
    )
    _, abstract = abstract_encoder(config.merged("separation"), scan_layers=True)
    assert jax.tree.structure(stacked) == jax.tree.structure(abstract)
    found, wanted = (to_checkpoint(to_dict(state)) for state in (stacked, plain))
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        np.testing.assert_allclose(array, wanted[path], atol=1e-6, err_msg=path)
    assert jnp.abs(wanted["pooler.kernel"] - checkpoint.tensors["pooler.kernel"].read()).max() > 0.1
