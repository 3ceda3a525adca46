"""Linear layers in 8 bits: the arithmetic against NumPy, the encoder and tiny against bfloat16."""

import csv
import functools
import json
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from published import SMALL, published_config
from tiny import TINY, write_tiny

from jina_jax import Batching, JinaEmbeddings, make_mesh, merge_task
from jina_jax.checkpoints.hub import PACKAGED
from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.native import save_native
from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.cli.main import main
from jina_jax.config import Config
from jina_jax.nn.encoder import Encoder, abstract_encoder
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.names import QUANTIZATIONS
from jina_jax.nn.parameters import checkpoint_shape, to_dict
from jina_jax.nn.protocol import REFERENCE
from jina_jax.nn.quantized import quantize_kernel, quantize_tokens, quantized_product
from jina_jax.runtime import quantizing
from jina_jax.verify.record import TEXTS

DTYPES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
MOST = {"int8": 127.0, "fp8": 448.0}
TASKS = (None, "retrieval.query", "retrieval.passage", "separation", "classification")


def cosines(first, second):
    first, second = (np.asarray(own, np.float64) for own in (first, second))
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / norms


def check_codes(values, codes, scale, quantization):
    """Check codes and scales of the last axis; return what they stand for, float64."""
    values, codes = np.asarray(values, np.float64), np.asarray(codes, np.float64)
    most = np.abs(values).max(axis=-1) / MOST[quantization]
    scale = np.asarray(scale, np.float64)
    np.testing.assert_allclose(scale[most > 0], most[most > 0], rtol=1e-6)
    scaled = values / scale[..., None]
    nearest, around = np.rint(scaled), 2e-4
    if quantization == "fp8":
        nearest = scaled.astype(np.float32).astype(DTYPES["fp8"]).astype(np.float64)
        around = 2e-4 + 2.0**-10 * np.abs(scaled)  # XLA for CPU may round to float16 before
    # In the middle between two codes either may be taken.
    assert (np.abs(np.abs(codes - scaled) - np.abs(nearest - scaled)) <= around).all()
    assert (codes != nearest).mean() < 0.01
    return codes * scale[..., None]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("out", [(24,), (3, 8)], ids=["plain", "parts"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_product_is_that_of_the_formula(quantization, out, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 48)).astype(np.float32)
    x[0, 1] *= 1000
    x[1, 2] = 0
    kernel = (0.02 * rng.standard_normal((48, *out))).astype(np.float32)
    kernel[:, ..., 1] = 0
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    codes, scale = quantize_kernel(kernel, quantization)
    assert (codes.dtype, codes.shape) == (DTYPES[quantization], (*out, 48))
    assert (scale.dtype, scale.shape) == (np.float32, out)
    found = jax.jit(quantized_product)(jnp.asarray(x), codes, scale)
    assert (found.dtype, found.shape) == (jnp.float32, (2, 5, *out))
    tokens = quantize_tokens(jnp.asarray(x), codes.dtype)
    left = check_codes(x, *tokens, quantization)
    right = check_codes(np.moveaxis(kernel, 0, -1), codes, scale, quantization)
    expected = np.tensordot(left, right, (-1, -1))
    size = np.abs(expected).reshape(2, 5, -1).max(axis=-1).reshape(2, 5, *(1 for _ in out)) + 1e-30
    np.testing.assert_allclose(found / size, expected / size, atol=5e-6)
    exact = np.tensordot(np.asarray(x, np.float64), np.asarray(kernel, np.float64), (-1, 0))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < {"int8": 0.012, "fp8": 0.05}[quantization]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_tokens_use_the_whole_range_and_zeros_stay_zero(quantization):
    x = jnp.asarray([[[0.5, -2.0, 1.0], [0, 0, 0], [3e-5, 0, 1e-5]]], jnp.float32)
    codes, scale = quantize_tokens(x, DTYPES[quantization])
    largest = np.abs(np.asarray(codes, np.float32)).max(axis=-1)
    np.testing.assert_array_equal(largest, [[MOST[quantization], 0, MOST[quantization]]])
    np.testing.assert_allclose(scale[0, 0], 2 / MOST[quantization], rtol=1e-6)


def test_gradients_are_refused():
    codes, scale = quantize_kernel(np.ones((4, 2), np.float32), "int8")
    with pytest.raises(ValueError, match="quantization: expected None where gradients"):
        jax.grad(lambda x: quantized_product(x, codes, scale).sum())(jnp.ones((1, 1, 4)))


# ---------------------------------------------------------------- the encoder

FIELDS = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
SIZE = {**SMALL, "width": 256, "inner": 1024, "layers": 4}
OUTLIERS = (7, 64, 130, 201)  # the same channels in every layer, as in XLM-R
PADDED = np.array([[[0, 32]], [[0, 19]]], np.int32)
PACKED = np.array([[[0, 9], [9, 10], [10, 27]], [[0, 32], [0, 0], [0, 0]]], np.int32)
FORMS = {
    "padded": (PADDED, None),
    "padded, tasks": (PADDED, np.array([[3], [-1]], np.int32)),
    "packed": (PACKED, None),
    "packed, tasks": (PACKED, np.array([[4, -1, 0], [2, -1, -1]], np.int32)),
}


CONFIG = Config.from_dict({**published_config(SIZE), **FIELDS})


@functools.cache
def realistic(outliers):
    """Draw tensors: weights of 0.02, adapters of half of that, LayerNorm near one.

    With outliers, a few channels of LayerNorm are 20 times as large.
    """
    rng = np.random.default_rng(0)
    tensors = {}
    for path, leaf in to_dict(abstract_encoder(CONFIG)[1]).items():
        values = 0.02 * rng.standard_normal(leaf.shape)
        if path.endswith(".lora_b"):
            values *= 50
        if path.endswith(".scale"):
            values = 1 + 5 * values
            values[[*OUTLIERS]] *= 20 if outliers else 1
        values = values.astype(np.float32).reshape(checkpoint_shape(path, leaf.shape))
        tensors[path] = LazyTensor.of(values)
    return tensors


@functools.cache
def state_of(quantization, outliers):
    return to_state(CONFIG, realistic(outliers), "bfloat16", quantization=quantization)


@functools.cache
def vectors(quantization, form, outliers):
    graph, _ = abstract_encoder(CONFIG, quantization=quantization)
    ids = np.random.default_rng(1).integers(4, SIZE["vocab"], (2, 32)).astype(np.int32)
    spans, tasks = FORMS[form]
    state, inputs = state_of(quantization, outliers), Inputs(ids, spans, tasks)
    found = encode_batch(graph, state, inputs, pooling="mean", kernels=REFERENCE)
    return np.asarray(found)[spans[..., 1] > spans[..., 0]]


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outliers"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_vectors_of_random_weights(quantization, form, outliers):
    expected, found = (vectors(own, form, outliers) for own in (None, quantization))
    assert not np.array_equal(found, expected)
    cosine = cosines(found, expected)
    if outliers:  # also without the few channels that make up most of a vector's length
        found, expected = (np.delete(own, OUTLIERS, axis=-1) for own in (found, expected))
        cosine = np.minimum(cosine, cosines(found, expected))
    print(f"{quantization}, {form}, outliers {outliers}: {cosine.min():.6f}")
    assert cosine.min() >= 0.999


def test_the_state_has_codes_where_weights_were():
    tensors, plain = realistic(False), to_dict(state_of(None, False))
    arrays = to_dict(state_of("int8", False))
    linear = {path for path in plain if path.endswith(".kernel") and path.startswith("layers.")}
    assert len(linear) == 4 * CONFIG.num_hidden_layers
    added = {f"{path}_{leaf}" for path in linear for leaf in ("codes", "scale")}
    assert arrays.keys() == plain.keys() - linear | added
    for path in linear:
        weight = tensors[path].read()
        codes, scale = quantize_kernel(weight.reshape(plain[path].shape), "int8")
        np.testing.assert_array_equal(arrays[f"{path}_codes"], codes)
        np.testing.assert_array_equal(arrays[f"{path}_scale"], scale)
    options = {"scan_layers": True, "quantization": "int8"}
    stacked = to_dict(to_state(CONFIG, tensors, "bfloat16", **options))
    for name in ("attention.qkv_proj.kernel_codes", "mlp.fc2.kernel_scale"):
        own = [arrays[f"layers.{i}.{name}"] for i in range(CONFIG.num_hidden_layers)]
        np.testing.assert_array_equal(stacked[f"layers.{name}"], np.stack(own))


def test_random_encoders():
    config = Config.from_dict({**published_config(EIGHT), **FIELDS})
    options = {"dtype": jnp.bfloat16, "quantization": "fp8"}
    drawn = to_dict(nnx.split(Encoder(config, rngs=nnx.Rngs(0), **options))[1])
    shapes = to_dict(abstract_encoder(config, **options)[1])
    assert {k: (v.shape, v.dtype) for k, v in drawn.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }


LINES = ["A man is playing a guitar.", "", "Ein Mann spielt.", "!?", "x" * 40, "one", "six"]
MIXED = ["retrieval.query", None, "separation", "text-matching", None, "classification", None]
EIGHT = {**TINY, "layers": 2, "heads": 8}
ONE_LENGTH = Batching(token_budget=128, row_lengths=(128,))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model"), EIGHT)


def load(directory, devices=1, parts=1, **options):
    mesh = make_mesh(parts, jax.devices()[:devices])
    options = {"quantization": "int8", "mesh": mesh, "batching": ONE_LENGTH, **options}
    return JinaEmbeddings.from_pretrained(directory, **options)


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


@pytest.fixture(scope="module")
def expected(model):
    return model.encode(LINES, task=MIXED)


def test_a_model_of_int8(directory, model, expected):
    assert (model.engine.quantization, model.engine.dtype) == ("int8", "float32")
    assert "float32 with int8 on cpu" in repr(model)
    plain = load(directory, quantization=None).encode(LINES, task=MIXED)
    assert 1e-6 < 1 - cosines(expected, plain).min() < 1e-3


def test_one_vector_whatever_the_devices_and_layers(directory, expected):
    for options in ({"devices": 8, "parts": 2}, {"scan_layers": True}):
        found = load(directory, **options).encode(LINES, task=MIXED)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_weight_is_split_as_its_channels_are(directory):
    arrays = to_dict(load(directory, 2, 2).state)
    width, inner = EIGHT["width"], EIGHT["inner"]
    expected = {
        "attention.qkv_proj.kernel_codes": (3, width // 2, width),
        "attention.qkv_proj.kernel_scale": (3, width // 2),
        "attention.out_proj.kernel_codes": (width, width // 2),
        "attention.out_proj.kernel_scale": (width,),
        "mlp.fc1.kernel_codes": (inner // 2, width),
        "mlp.fc1.kernel_scale": (inner // 2,),
        "mlp.fc2.kernel_codes": (width, inner // 2),
        "mlp.fc2.kernel_scale": (width,),
    }
    for name, shape in expected.items():
        array = arrays[f"layers.1.{name}"]
        assert array.sharding.shard_shape(array.shape) == shape, name


def test_copies_and_functions(model, expected):
    other = pickle.loads(pickle.dumps(model))
    assert other.engine.quantization == "int8"
    np.testing.assert_array_equal(other.encode(LINES, task=MIXED), expected)
    apply, parameters = model.functional()
    assert parameters["layers.0.mlp.fc1.kernel_codes"].dtype == jnp.int8
    ids = np.array([model.tokenize("a guitar")], np.int32)
    pooled = np.asarray(apply(parameters, ids))
    assert cosines(pooled, model.encode(["a guitar"])).min() > 0.99999


def test_weights_are_needed_elsewhere(directory, model, tmp_path):
    message = "expected floating-point weights, got those of quantization='int8'"
    plain = load(directory, quantization=None)
    for refused in (
        lambda: model.with_state(plain.state),
        lambda: plain.with_state(model.state),
        lambda: save_native(tmp_path / "saved", model.config, model.state),
        lambda: merge_task(model.state, "separation", model.config),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "saved").exists()


def test_other_names_and_devices_are_refused(directory):
    with pytest.raises(ValueError, match="quantization='int4': expected None or one of"):
        load(directory, quantization="int4")
    with pytest.raises(ValueError, match=r"quantization='fp8': expected an NVIDIA GPU .*'cpu'"):
        load(directory, quantization="fp8")
    for version in ("8.9", "9.0", "10.0"):
        device = SimpleNamespace(platform="gpu", compute_capability=version)
        quantizing.check_device("fp8", device)
    for version in ("8.0", "7.5", "gfx942"):
        device = SimpleNamespace(platform="gpu", compute_capability=version)
        quantizing.check_device("int8", device)
        with pytest.raises(ValueError, match=f"of compute capability {version}, where 'int8'"):
            quantizing.check_device("fp8", device)


def test_the_command_line(directory, model):
    args = ["encode", "--model", str(directory), "--quantization"]
    done = CliRunner().invoke(main, [*args, "int8", "one"])
    found = json.loads(done.stdout)["embedding"]
    assert cosines(found, model.encode("one")) > 0.99999
    refused = CliRunner().invoke(main, [*args, "fp8", "one"])
    assert refused.exit_code != 0
    assert "--quantization 'fp8': expected an NVIDIA GPU" in refused.output


# ---------------------------------------------------------------- tiny


@pytest.fixture
def float8_anywhere(monkeypatch):
    """Let a CPU run float8, which XLA widens there."""
    monkeypatch.setattr(quantizing, "check_device", lambda *_: None)


def tiny(quantization):
    options = {"dtype": "bfloat16", "quantization": quantization}
    return JinaEmbeddings.from_pretrained(PACKAGED, **options)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_vectors_of_tiny(float8_anywhere, quantization):
    texts = [text for text in TEXTS.values() for _ in TASKS]
    found, expected = (
        tiny(own).encode(texts, task=[*TASKS] * len(TEXTS)) for own in (quantization, None)
    )
    print(f"{quantization}: {cosines(found, expected).min():.6f}")
    assert cosines(found, expected).min() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_similarities_of_tiny(float8_anywhere, shared, quantization):
    from jina_jax.evaluation import sts

    with (shared / "eval" / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        first, second, scores = zip(*csv.reader(file), strict=True)
    found, expected = (
        sts(tiny(own), first, second, [*map(float, scores)])["spearman"]
        for own in (quantization, None)
    )
    print(f"{quantization}: {found:.5f}, bfloat16: {expected:.5f}")
    assert abs(found - expected) < 0.002
