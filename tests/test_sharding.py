"""How parameters lie on meshes, and that a mesh changes no vector."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from tiny import TINY, write_tiny

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.native import save_native
from jina_jax.convert import open_checkpoint
from jina_jax.nn.attention import blocked_attention
from jina_jax.nn.kernels import KernelChoice
from jina_jax.nn.parameters import parameter_shapes
from jina_jax.nn.protocol import Kernels, by_heads
from jina_jax.runtime.sharding import (
    RULES,
    abstract_state,
    check_mesh,
    partition_spec,
    placer,
)

EIGHT_HEADS = {**TINY, "layers": 2, "heads": 8}
TEXTS = ["A man is playing a guitar.", "", "Ein Mann spielt Gitarre.", "!?", "x" * 40, "one", "six"]
MIXED = ["retrieval.query", None, "separation", "text-matching", None, "classification", None]
# One length of rows each, so that few programs are compiled.
PACKED = Batching(token_budget=128, row_lengths=(8, 128))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model"), EIGHT_HEADS)


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def config(checkpoint):
    return checkpoint.config


def encode(model, count):
    """Vectors of the first texts, of mixed tasks: packed, and padded in steps of three rows."""
    texts, tasks = TEXTS[:count], MIXED[:count]
    packed = model.encode(texts, task=tasks, prompt=None)
    return packed, model.encode(texts, task=tasks, prompt=None, batch_size=3)


@pytest.fixture(scope="module")
def single(checkpoint, directory):
    """Vectors of all texts from one device, without a mesh."""
    tokenizer = JinaEmbeddings.from_pretrained(directory).tokenizer
    state = to_state(checkpoint.config, checkpoint.tensors)
    model = JinaEmbeddings(checkpoint.config, state, tokenizer, batching=PACKED)
    assert model.engine.mesh is None
    packed, padded = encode(model, len(TEXTS))
    np.testing.assert_allclose(packed, padded, atol=1e-5)
    return packed


# ---------------------------------------------------------------- the table

COLUMNS, ROWS = P(None, "model"), P("model", None)
LAYER = {
    "attention.qkv_proj.kernel": P(None, None, "model"),
    "attention.qkv_proj.bias": P(None, "model"),
    "attention.qkv_proj.lora_a": P(),
    "attention.qkv_proj.lora_b": P(None, None, None, "model"),
    "attention.out_proj.kernel": ROWS,
    "attention.out_proj.bias": P(),
    "attention.out_proj.lora_a": P(None, "model", None),
    "attention.out_proj.lora_b": P(),
    "norm1.scale": P(),
    "norm1.bias": P(),
    "mlp.fc1.kernel": COLUMNS,
    "mlp.fc1.bias": P("model"),
    "mlp.fc1.lora_a": P(),
    "mlp.fc1.lora_b": P(None, None, "model"),
    "mlp.fc2.kernel": ROWS,
    "mlp.fc2.bias": P(),
    "mlp.fc2.lora_a": P(None, "model", None),
    "mlp.fc2.lora_b": P(),
    "norm2.scale": P(),
    "norm2.bias": P(),
}


def test_every_parameter_of_a_layer_is_split_as_written_and_all_others_are_copied(config):
    specs = {path: partition_spec(path) for path in parameter_shapes(config)}
    inside = {path for path in specs if path.startswith("layers.")}
    assert {path: specs[path] for path in inside} == {
        f"layers.{i}.{path}": spec for i in range(2) for path, spec in LAYER.items()
    }
    assert {specs[path] for path in specs.keys() - inside} == {P()}
    assert set(specs.values()) == {spec for _, spec in RULES}  # no rule is idle


def test_paths_of_stacked_layers_match_too():
    stacked = {path: partition_spec(f"layers.{path}") for path in LAYER}
    assert stacked == {path: P(None, *spec) for path, spec in LAYER.items()}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_weights_are_really_split(checkpoint, config, scan_layers):
    mesh = make_mesh(model=2)
    place = placer(mesh)
    state = to_state(config, checkpoint.tensors, place=place, scan_layers=scan_layers)
    flat = {".".join(map(str, keys)): leaf[...] for keys, leaf in nnx.to_flat_state(state)}
    layers, stack = ("layers", (2,)) if scan_layers else ("layers.0", ())

    def parts(path):
        shapes = {shard.data.shape for shard in flat[path].addressable_shards}
        assert len(flat[path].addressable_shards) == 8
        (shape,) = shapes
        return shape

    assert parts("word_embeddings.embedding") == (120, 64)
    assert parts(f"{layers}.attention.qkv_proj.kernel") == (*stack, 64, 3, 32)
    assert parts(f"{layers}.attention.qkv_proj.bias") == (*stack, 3, 32)
    assert parts(f"{layers}.attention.qkv_proj.lora_b") == (*stack, 5, 4, 3, 32)
    assert parts(f"{layers}.attention.out_proj.kernel") == (*stack, 32, 64)
    assert parts(f"{layers}.mlp.fc1.kernel") == (*stack, 64, 32)
    assert parts(f"{layers}.mlp.fc2.kernel") == (*stack, 32, 64)
    assert parts(f"{layers}.mlp.fc2.lora_a") == (*stack, 5, 32, 4)
    assert parts(f"{layers}.mlp.fc2.bias") == (*stack, 64)


def test_a_device_has_queries_keys_and_values_of_its_heads(checkpoint, config):
    path = "layers.1.attention.qkv_proj.kernel"
    kernel = checkpoint.tensors[path].read()
    placed = placer(make_mesh(model=2))(path, kernel.reshape(64, 3, 64))
    first, second = (shard.data for shard in placed.addressable_shards[:2])
    queries, keys, values = kernel[:, :64], kernel[:, 64:128], kernel[:, 128:]
    for shard, columns in ((first, np.s_[:32]), (second, np.s_[32:])):
        own = np.stack([a[:, columns] for a in (queries, keys, values)], axis=1)
        np.testing.assert_array_equal(shard, own)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_abstract_state_is_that_of_the_weights(checkpoint, config, scan_layers):
    mesh = make_mesh(model=2)
    place = placer(mesh)
    state = to_state(config, checkpoint.tensors, "bfloat16", place=place, scan_layers=scan_layers)
    abstract = abstract_state(config, "bfloat16", mesh, scan_layers=scan_layers)
    found, expected = ([*nnx.to_flat_state(s)] for s in (abstract, state))
    assert [keys for keys, _ in found] == [keys for keys, _ in expected]
    for (keys, ours), (_, theirs) in zip(found, expected, strict=True):
        ours, theirs = ours.get_value(), theirs.get_value()
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), keys
        assert ours.sharding == theirs.sharding, keys


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("model", "scan_layers"), [(1, False), (1, True), (2, False), (2, True), (8, False)]
)
def test_vectors_are_those_of_one_device(directory, single, model, scan_layers):
    model = JinaEmbeddings.from_pretrained(
        directory, mesh=make_mesh(model=model), batching=PACKED, scan_layers=scan_layers
    )
    packed, padded = encode(model, len(TEXTS))  # 7 texts: no multiple of 8, 4 or 3
    np.testing.assert_allclose(packed, single, atol=1e-5)
    np.testing.assert_allclose(padded, single, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_numbers_of_texts_that_do_not_fill_the_devices(directory, single, count):
    model = JinaEmbeddings.from_pretrained(directory, mesh=make_mesh(), batching=PACKED)
    for vectors in encode(model, count):
        np.testing.assert_allclose(vectors, single[:count], atol=1e-5)


def test_attention_in_blocks_on_a_mesh(directory, single, monkeypatch):
    monkeypatch.setattr("jina_jax.nn.attention._WHOLE_BYTES", 0)
    monkeypatch.setattr("jina_jax.nn.attention._BLOCK_BYTES", 0)
    monkeypatch.setattr("jina_jax.nn.attention._SMALLEST_BLOCK", 24)
    traced = []

    def kernel(*arrays):  # new to jax, which would take an earlier test's blocks otherwise
        traced.append(str(jax.make_jaxpr(blocked_attention)(*arrays)).count("scan["))
        return blocked_attention(*arrays)

    choice = KernelChoice("blocked", Kernels(by_heads(kernel)), {})
    monkeypatch.setattr("jina_jax.runtime.engine.choose", lambda *_, **__: choice)
    model = JinaEmbeddings.from_pretrained(directory, mesh=make_mesh(model=2), batching=PACKED)
    vectors = model.encode(TEXTS, task=MIXED, prompt=None)
    np.testing.assert_allclose(vectors, single, atol=1e-5)
    assert traced == [2]  # in the layer, traced once, a loop over blocks and one over heads


def test_all_devices_are_used_without_a_word(directory):
    model = JinaEmbeddings.from_pretrained(directory)
    assert dict(model.engine.mesh.shape) == {"data": 8, "model": 1}
    assert model.engine.row_multiple == 8


# ---------------------------------------------------------------- refusals


def test_make_mesh():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(2).shape) == {"data": 4, "model": 2}
    mesh = make_mesh(2, jax.devices()[2:6])
    assert mesh.devices.tolist() == [jax.devices()[2:4], jax.devices()[4:6]]


@pytest.mark.parametrize("model", [3, 16])
def test_model_axis_must_divide_the_devices(model):
    with pytest.raises(ValueError, match=rf"model={model}: expected a divisor of the 8 devices"):
        make_mesh(model)


@pytest.mark.parametrize("model", [0, -1, True, 2.0, "2"])
def test_model_axis_must_be_a_positive_integer(model):
    with pytest.raises(ValueError, match=rf"model={model!r}: expected an integer of at least 1"):
        make_mesh(model)


@pytest.mark.parametrize("devices", [[], "cpu", 2, [0]])
def test_devices_of_a_mesh_must_be_devices(devices):
    message = f"devices={devices!r}: expected None, or one jax.Device or more"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mesh(devices=devices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 4}, "divides num_attention_heads=4, got 8"),
        ({"intermediate_size": 60}, "divides intermediate_size=60, got 8"),
    ],
)
def test_model_axis_must_divide_heads_and_width(config, changes, message):
    with pytest.raises(ValueError, match=f"mesh: expected a model axis that {message}"):
        check_mesh(make_mesh(8), dataclasses.replace(config, **changes))
    check_mesh(make_mesh(4), dataclasses.replace(config, **changes))


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.parametrize(
    ("shape", "axes", "types"),
    [
        ((8,), ("data",), (AUTO,)),
        ((4, 2), ("model", "data"), (AUTO, AUTO)),
        ((4, 2), ("data", "tensor"), (AUTO, AUTO)),
        ((4, 2), ("data", "model"), (EXPLICIT, AUTO)),
    ],
)
def test_other_axes_are_refused_before_anything_is_loaded(directory, shape, axes, types):
    mesh = jax.make_mesh(shape, axes, axis_types=types)
    with pytest.raises(ValueError, match=r"mesh: expected axes \('data', 'model'\) of type Auto"):
        JinaEmbeddings.from_pretrained(directory, mesh=mesh)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("model", [1, 2, 8])
def test_weights_on_a_mesh_are_saved_to_the_bit(checkpoint, config, tmp_path, model):
    state = to_state(config, checkpoint.tensors, place=placer(make_mesh(model)))
    save_native(tmp_path / "copy", config, state)
    copy = open_checkpoint(tmp_path / "copy")
    assert (copy.layout, copy.config) == ("native", config)
    assert copy.tensors.keys() == checkpoint.tensors.keys()
    for path, tensor in copy.tensors.items():
        np.testing.assert_array_equal(tensor.read(), checkpoint.tensors[path].read(), err_msg=path)
