"""What is trained, what is frozen, and in which dtype each is kept and used."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from foreign import native_tensors, published_tensors
from published import PROMPTS, TASKS
from tiny import TINY, write_tiny

from jina_jax.convert import open_checkpoint
from jina_jax.nn.encoder import Encoder, abstract_encoder
from jina_jax.runtime.sharding import make_mesh
from jina_jax.training.parameters import is_trained, load_network
from jina_jax.training.vocabulary import TRAINABLE

SIZE = {**TINY, "layers": 2}
PAIR = ("separation", "retrieval.query")  # neither in the checkpoint's order nor side by side

TABLES = ("word_embeddings", "token_type_embeddings")
LINEARS = ("attention.qkv_proj", "attention.out_proj", "mlp.fc1", "mlp.fc2")
MODULES = ("pooler", *(f"layers.{i}.{linear}" for i in range(2) for linear in LINEARS))
NORMS = ("embedding_norm", *(f"layers.{i}.norm{k}" for i in range(2) for k in (1, 2)))
ADAPTERS = {f"{module}.lora_{x}" for module in (*TABLES, *MODULES) for x in "ab"}
EMBEDDINGS = {f"{table}.embedding" for table in TABLES}
OTHERS = {f"{module}.{leaf}" for module in MODULES for leaf in ("kernel", "bias")}
OTHERS |= {f"{norm}.{leaf}" for norm in NORMS for leaf in ("scale", "bias")}
TRAINED = {
    "adapters": ADAPTERS,
    "all": ADAPTERS | EMBEDDINGS | OTHERS,
    "all-but-embeddings": ADAPTERS | OTHERS,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("model"), SIZE))


@pytest.fixture(scope="module")
def tensors():
    """The same tensors by our paths, without any of our code."""
    return native_tensors(published_tensors(SIZE))


def test_choices():
    assert tuple(TRAINED) == TRAINABLE


@pytest.mark.parametrize("train", TRAINABLE)
def test_is_trained(train):
    every = ADAPTERS | EMBEDDINGS | OTHERS
    assert {path for path in every if is_trained(path, train)} == TRAINED[train]
    # Of XLM-RoBERTa, and of layers that are stacked.
    assert is_trained("position_embeddings.embedding", train) == (train == "all")
    assert is_trained("layers.mlp.fc1.kernel", train) == (train != "adapters")
    assert is_trained("layers.mlp.fc1.lora_a", train)


@pytest.mark.parametrize(
    ("train", "tasks"),
    [
        *((train, tasks) for train in TRAINED for tasks in (PAIR, ("text-matching",))),
        *(("all", ()), ("all-but-embeddings", ())),
    ],
)
def test_leaves_and_values(checkpoint, tensors, train, tasks):
    _, trained, frozen = load_network(checkpoint, tasks, train, dtype="bfloat16")
    without = set() if tasks else ADAPTERS
    assert trained.keys() == TRAINED[train] - without
    assert frozen.keys() == TRAINED["all"] - TRAINED[train] - without
    indices = [TASKS.index(task) for task in tasks]
    for path, array in {**trained, **frozen}.items():
        expected = tensors[path][indices] if ".lora_" in path else tensors[path]
        if path in frozen:
            expected = expected.astype(ml_dtypes.bfloat16)
        assert array.dtype == expected.dtype, path
        if ".qkv_proj." in path and not path.endswith(".lora_a"):  # queries, keys, values
            expected = expected.reshape(*expected.shape[:-1], 3, -1)
        np.testing.assert_array_equal(array, expected, err_msg=path)


def test_config_is_of_the_trained_tasks_alone(checkpoint):
    config = load_network(checkpoint, PAIR, "adapters")[0].config
    assert config.lora_adaptations == PAIR
    assert config.prompt("retrieval.query") == PROMPTS["retrieval.query"]
    assert config.lora_scale == checkpoint.config.lora_scale
    assert load_network(checkpoint, (), "all")[0].config.num_tasks == 0
    assert checkpoint.config.lora_adaptations == TASKS


@pytest.mark.parametrize(
    ("stored", "dtype", "used"),
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "float16", "float16"),
    ],
)
def test_dtype(tmp_path, stored, dtype, used):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "model", dtype=stored))
    network, trained, frozen = load_network(checkpoint, ("separation",), "adapters", dtype=dtype)
    assert network.dtype == used
    assert {array.dtype.name for array in trained.values()} == {"float32"}
    assert {array.dtype.name for array in frozen.values()} == {used}
    path = "layers.0.mlp.fc1.lora_a"
    np.testing.assert_array_equal(
        trained[path][0], np.asarray(checkpoint.tensors[path].read()[2], np.float32)
    )


# ---------------------------------------------------------------- the encoder's state


@pytest.mark.parametrize("train", TRAINABLE)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_state_is_the_encoders_in_the_dtype_of_computing(checkpoint, train, scan_layers):
    network, trained, frozen = load_network(
        checkpoint, PAIR, train, dtype="bfloat16", scan_layers=scan_layers
    )
    state = jax.eval_shape(network.state, trained, frozen)
    graph, abstract = abstract_encoder(network.config, "bfloat16", scan_layers=scan_layers)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    assert network.graph == graph
    for (keys, ours), (_, theirs) in zip(
        nnx.to_flat_state(state), nnx.to_flat_state(abstract), strict=True
    ):
        ours, theirs = ours.get_value(), theirs.get_value()
        path = ".".join(map(str, keys))
        assert ours.shape == theirs.shape, path
        # Rows are gathered from tables before they are rounded.
        gathered = "_embeddings" in path and path.endswith(("embedding", "lora_a"))
        in_float32 = gathered and is_trained(path, train)
        assert ours.dtype == (jnp.float32 if in_float32 else jnp.bfloat16), path


def test_state_takes_what_it_is_given(checkpoint):
    network, trained, frozen = load_network(checkpoint, PAIR, "adapters")
    trained, frozen = (
        {path: jnp.full_like(array, number) for path, array in part.items()}
        for number, part in ((1, trained), (2, frozen))
    )
    state = network.state(trained, frozen)
    for keys, variable in nnx.to_flat_state(state):
        expected = 1 if keys[-1] in ("lora_a", "lora_b") else 2
        assert (variable.get_value() == expected).all(), keys


def test_gradients_of_a_table_add_up_in_float32(checkpoint):
    """A thousand small gradients of one row: in bfloat16 a sum would stop growing at 256."""
    network, trained, frozen = load_network(checkpoint, ("separation",), "all", dtype="bfloat16")
    ids = jnp.full((1, 1000), 7)

    def total(trained):
        encoder = nnx.merge(network.graph, network.state(trained, frozen))
        return encoder.word_embeddings(ids).sum()

    gradient = jax.grad(total)(trained)["word_embeddings.embedding"]
    np.testing.assert_array_equal(gradient[7], np.full(SIZE["width"], 1000, np.float32))


def test_stacked_layers(checkpoint):
    _, *looped = load_network(checkpoint, PAIR, "all-but-embeddings", dtype="bfloat16")
    network, trained, frozen = load_network(
        checkpoint, PAIR, "all-but-embeddings", dtype="bfloat16", scan_layers=True
    )
    assert network.scan_layers
    for ours, theirs in zip((trained, frozen), looped, strict=True):
        for path, array in ours.items():
            if not path.startswith("layers."):
                np.testing.assert_array_equal(array, theirs[path])
                continue
            inner = path.removeprefix("layers.")
            layers = [theirs[f"layers.{i}.{inner}"] for i in range(2)]
            np.testing.assert_array_equal(array, np.stack(layers))
    outside = {path for path in TRAINED["all-but-embeddings"] if not path.startswith("layers.")}
    inside = {path.split(".", 2)[2] for path in TRAINED["all-but-embeddings"] - outside}
    assert trained.keys() == outside | {f"layers.{path}" for path in inside}


# ---------------------------------------------------------------- rotary base, meshes


def test_rotary_base_is_that_of_training_alone(checkpoint):
    network, trained, frozen = load_network(checkpoint, PAIR, "adapters", rotary_emb_base=10_000)
    encoder = nnx.merge(network.graph, network.state(trained, frozen))
    assert isinstance(encoder, Encoder)
    assert encoder.config.rotary_emb_base == network.config.rotary_emb_base == 10_000.0
    assert checkpoint.config.rotary_emb_base == 20_000.0
    assert load_network(checkpoint, PAIR, "adapters")[0].config.rotary_emb_base == 20_000.0


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_device_of_a_mesh_has_all_parameters(checkpoint, scan_layers):
    _, trained, frozen = load_network(
        checkpoint, PAIR, "all", mesh=make_mesh(), scan_layers=scan_layers
    )
    for array in {**trained, **frozen}.values():
        assert len(array.addressable_shards) == 8
        assert {shard.data.shape for shard in array.addressable_shards} == {array.shape}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((PAIR, "everything"), {}, r"train='everything': expected one of 'adapters', 'all', 'all-"),
        (((), "adapters"), {}, "train='adapters': expected tasks"),
        ((("summary",), "all"), {}, r"task='summary': this checkpoint has 'retrieval.query'"),
        ((("separation", "separation"), "all"), {}, "distinct task names"),
        ((PAIR, "all"), {"dtype": "int8"}, "dtype='int8': expected 'float32'"),
        ((PAIR, "all"), {"dtype": "float64"}, "dtype='float64': expected 'float32'"),
        ((PAIR, "all"), {"rotary_emb_base": -1.0}, "rotary_emb_base=-1.0: expected a positive"),
    ],
)
def test_refusals(checkpoint, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        load_network(checkpoint, *arguments, **options)


def test_meshes_that_would_split_weights(checkpoint):
    with pytest.raises(ValueError, match="mesh: expected a model axis of 1, got 2"):
        load_network(checkpoint, PAIR, "all", mesh=make_mesh(2))
    with pytest.raises(ValueError, match=r"mesh: expected axes \('data', 'model'\)"):
        load_network(checkpoint, PAIR, "all", mesh=jax.make_mesh((8,), ("devices",)))


def test_rotary_base_of_absolute_positions(checkpoint):
    config = dataclasses.replace(
        checkpoint.config, position_embedding_type="absolute", rotary_emb_base=None
    )
    absolute = dataclasses.replace(checkpoint, config=config)
    with pytest.raises(ValueError, match=r"rotary_emb_base=10000: .* has absolute positions"):
        load_network(absolute, PAIR, "adapters", rotary_emb_base=10_000)
