"""What users do, on a GPU: embed in every dtype and form of batch, verify, train, resume.

Run ``pytest -m gpu -n 0``, with all tests in one process: each process would reserve the GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from runs import PAIRS, settings, train, write_data

from jina_jax import Batching, JinaEmbeddings
from jina_jax.cli.main import main
from jina_jax.nn.names import QUANTIZATIONS
from jina_jax.nn.quantized import quantize_kernel, quantize_tokens, quantized_product
from jina_jax.training.metrics import read_metrics
from jina_jax.training.run import METRICS
from jina_jax.training.trainer import Trainer

pytestmark = pytest.mark.gpu
TASKS = (None, "retrieval.query", "retrieval.passage", "separation", "text-matching")
SENTENCE = "The ferry to the islands leaves at nine, 船は九時に出る, el barco sale a las nueve. "
TEXTS = ["", "a", *(SENTENCE * count for count in (1, 2, 3, 5, 8, 13, 40)), *TASKS[1:]]
STEPS = 20


@pytest.fixture(autouse=True)
def _on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip(f"needs a GPU, jax runs on {jax.default_backend()}")


def encode(**options):
    model = JinaEmbeddings.from_pretrained("tiny", **options)
    return model.encode(TEXTS, task=[TASKS[i % len(TASKS)] for i in range(len(TEXTS))])


@pytest.fixture(scope="module")
def expected():
    return encode(dtype="float32", attn_implementation="reference")


@pytest.mark.parametrize(
    "batching",
    [None, Batching(packing=True, row_lengths=(128, 1024)), Batching(packing=False)],
    ids=["default", "packed", "padded"],
)
@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 1e-5), ("bfloat16", 2e-3), ("float16", 1e-4)]
)
def test_vectors_are_those_of_float32(expected, dtype, most, batching):
    vectors = encode(dtype=dtype, batching=batching)
    assert (1 - (vectors * expected).sum(axis=-1)).max() < most


@pytest.mark.parametrize("batching", [None, Batching(packing=False)], ids=["default", "padded"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_vectors_of_8_bits_are_near_those_of_bfloat16(quantization, batching):
    plain, quantized = (
        encode(dtype="bfloat16", batching=batching, quantization=own)
        for own in (None, quantization)
    )
    assert not np.array_equal(plain, quantized)
    cosines = (plain * quantized).sum(axis=-1)
    # One channel of tiny has nearly all of a token's length, which leaves int8 few steps for the
    # others: on a CPU too, a text of one letter has 0.9984.
    letter = TEXTS.index("a")
    assert np.delete(cosines, letter).min() >= 0.999
    assert cosines[letter] >= 0.997


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_products_in_8_bits_are_those_of_the_cpu(quantization):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 64, 192)).astype(np.float32)
    kernel = (0.02 * rng.standard_normal((192, 3, 64))).astype(np.float32)
    codes, scale = quantize_kernel(kernel, quantization)
    found = np.asarray(jax.jit(quantized_product)(x, codes, scale))
    tokens = [np.asarray(own, np.float32) for own in quantize_tokens(jnp.asarray(x), codes.dtype)]
    expected = np.einsum("bti,poi->btpo", tokens[0], codes.astype(np.float32))
    expected *= tokens[1][..., None, None] * scale
    # float8: sums are rounded to bfloat16, and added up in fewer bits than float32.
    most = {"int8": 1e-6, "fp8": 1e-2}[quantization]
    assert np.abs(found - expected).max() < most * np.abs(expected).max()


def test_one_task_in_every_batch_or_all_in_one(expected):
    model = JinaEmbeddings.from_pretrained("tiny", dtype="bfloat16")
    for number, task in enumerate(TASKS):
        own = slice(number, None, len(TASKS))
        vectors = model.encode(TEXTS[own], task=task)
        assert (1 - (vectors * expected[own]).sum(axis=-1)).max() < 2e-3


def test_verify_tiny():
    result = CliRunner().invoke(main, ["verify", "--model", "tiny"])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("gpu"))


PAIR = ["retrieval.query", "retrieval.passage"]


@pytest.mark.parametrize(
    ("name", "rate", "model"),
    [
        ("adapter", 1e-2, {"tasks": ["text-matching"]}),
        ("pair", 1e-2, {"tasks": PAIR}),
        ("whole", 3e-3, {"tasks": PAIR, "train": "all"}),
    ],
)
def test_twenty_steps_of_training_lower_the_loss(root, name, rate, model):
    optimizer = {"steps": STEPS, "learning_rate": rate}
    model = {**model, "dtype": "bfloat16"}
    wanted = settings(root, name, model=model, optimizer=optimizer)
    train(wanted)
    losses = [line["loss"] for line in read_metrics(wanted.output / METRICS)]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]


def test_a_resumed_run_continues(root, monkeypatch):
    def run(name):
        model = {"tasks": PAIR, "dtype": "bfloat16"}
        return settings(root, name, [PAIRS], steps=STEPS, model=model, log={"save_every": 5})

    def losses(wanted):
        return [line["loss"] for line in read_metrics(wanted.output / METRICS)]

    train(run("uninterrupted"))
    take = Trainer._run

    def stop(self, batch):
        if batch.step == STEPS - 7:
            raise KeyboardInterrupt
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train(run("interrupted"))
    assert train(run("interrupted"), resume=True).step == STEPS
    # cuDNN adds gradients in any order.
    np.testing.assert_allclose(losses(run("interrupted")), losses(run("uninterrupted")), rtol=0.05)
