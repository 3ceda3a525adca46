import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from jina_jax.nn import cudnn
from jina_jax.nn.attention import _block_size, attention, blocked_attention
from jina_jax.nn.cudnn import cudnn_attention, cudnn_packed_attention, packed_layout
from jina_jax.nn.kernels import BLOCKED, choose
from jina_jax.nn.protocol import Kernels, by_heads
from jina_jax.nn.tpu import attention as tpu


def numpy_attention(query, key, value, mask):
    """Attention in float64, a head and a query at a time; as with padding, zero for no key."""
    out = np.zeros(query.shape)
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    for b, t, n in np.ndindex(query.shape[:3]):
        kept = mask[b] if mask.dtype == bool else mask[b] == mask[b, t]
        if kept.any():
            scores = key[b, kept, n] @ query[b, t, n] / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ value[b, kept, n]
    return out


def draw(rows, tokens, heads=3, width=8):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(rows, tokens, heads, width)).astype(np.float32) for _ in range(3)]


def masks(tokens):
    """One mask of each kind for two rows: a full and a padded one, and three texts and one."""
    padded = np.arange(tokens) < np.array([[tokens], [max(tokens // 2, 1)]])
    packed = np.repeat([[1], [1]], tokens, axis=1)
    packed[0, tokens // 3 :] = 2
    packed[0, tokens // 3 + 1 :] = 3
    packed[0, tokens - tokens // 4 :] = 0
    return [padded, packed]


def arguments(mask):
    """Return attention mask and segment ids of a bool mask, or of the numbers of texts."""
    mask = np.asarray(mask)
    ids = None if mask.dtype == bool else jnp.asarray(mask, jnp.int32)
    return jnp.asarray(mask > 0), ids


def compiled(kernel):
    """Compile a kernel as it is now: jax remembers what it traced by the function."""
    return jax.jit(lambda *arrays: kernel(*arrays))


@pytest.fixture
def qkv():
    return draw(2, 7)


@pytest.fixture
def in_blocks(monkeypatch):
    """``blocked_attention`` in blocks of four queries, however short the rows are."""
    monkeypatch.setattr("jina_jax.nn.attention._WHOLE_BYTES", 0)
    monkeypatch.setattr("jina_jax.nn.attention._BLOCK_BYTES", 0)
    monkeypatch.setattr("jina_jax.nn.attention._SMALLEST_BLOCK", 4)
    return compiled(blocked_attention)


@pytest.fixture(params=["reference", "blocked, short", "blocked, long"])
def kernel(request):
    """Every kernel that runs on CPU, in each of its branches."""
    if request.param == "blocked, long":
        return request.getfixturevalue("in_blocks")
    return compiled(attention if request.param == "reference" else blocked_attention)


def test_equals_numpy(qkv):
    mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
    out = attention(*map(jnp.asarray, qkv), jnp.asarray(mask))
    np.testing.assert_allclose(out, numpy_attention(*qkv, mask), atol=1e-6)


@pytest.mark.parametrize("kind", [0, 1], ids=["padded", "packed"])
@pytest.mark.parametrize("tokens", [1, 7, 8, 13])  # in blocks of 4: even and uneven ones
def test_every_kernel_equals_numpy(kernel, tokens, kind):
    qkv, mask = draw(2, tokens), masks(tokens)[kind]
    out = np.asarray(kernel(*map(jnp.asarray, qkv), *arguments(mask)))
    assert (out.shape, out.dtype) == (qkv[0].shape, np.float32)
    np.testing.assert_allclose(out, numpy_attention(*qkv, mask), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "tokens", "block"),
    [(1, 1000, 1000), (1, 1100, 550), (1, 2048, 512), (1, 8192, 128), (2, 8192, 64), (16, 99, 99)],
)
def test_blocks_are_even_and_their_scores_4_mib(rows, tokens, block):
    # 2**20 / (rows · tokens) queries at most, yet never less than 64.
    assert _block_size(rows, tokens) == block


def test_masked_keys_and_values_do_not_matter(qkv):
    mask = jnp.asarray([[True] * 7, [True, False, True] + [False] * 4])
    query, key, value = map(jnp.asarray, qkv)
    before = attention(query, key, value, mask)
    hidden = ~mask[..., None, None]
    after = attention(query, jnp.where(hidden, 99.0, key), jnp.where(hidden, -99.0, value), mask)
    np.testing.assert_array_equal(before, after)


def test_mask_keeps_exactly_its_keys():
    # One-hot values show each query's weights: even over the kept keys, as all scores are equal.
    zeros = jnp.zeros((1, 4, 1, 4))
    mask = jnp.asarray([[False, True, True, False]])
    weights = attention(zeros, zeros, jnp.eye(4).reshape(1, 4, 1, 4), mask)[0, :, 0]
    np.testing.assert_allclose(weights, np.tile([0.0, 0.5, 0.5, 0.0], (4, 1)))


def test_packed_mask_is_a_square_for_each_text(kernel):
    # One-hot values as above; padding attends to padding.
    zeros = jnp.zeros((1, 5, 1, 5))
    texts = arguments([[1, 1, 2, 2, 0]])
    weights = kernel(zeros, zeros, jnp.eye(5).reshape(1, 5, 1, 5), *texts)[0, :, 0]
    expected = [
        [0.5, 0.5, 0, 0, 0],
        [0.5, 0.5, 0, 0, 0],
        [0, 0, 0.5, 0.5, 0],
        [0, 0, 0.5, 0.5, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(weights, np.float32(expected))


def assert_no_leak(kernel, dtype=jnp.float32):
    """Check that tokens 5 … 9, text 2, change no bit of what text 1 gets."""
    texts = np.array([[1] * 5 + [2] * 5 + [0] * 3])
    query, key, value = (jnp.asarray(a, dtype) for a in draw(1, 13, width=64))
    second = jnp.asarray(texts == 2)[..., None, None]
    other = [jnp.where(second, jnp.asarray(x, dtype), a) for x, a in ((3, query), (9, key))]
    value_ = jnp.where(second, jnp.asarray(-9, dtype), value)
    before = np.asarray(kernel(query, key, value, *arguments(texts)))
    after = np.asarray(kernel(*other, value_, *arguments(texts)))
    np.testing.assert_array_equal(before[texts == 1], after[texts == 1])
    assert (before[texts == 2] != after[texts == 2]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_texts_do_not_see_each_other(kernel, dtype):
    assert_no_leak(kernel, dtype)


def test_row_without_tokens_is_finite(qkv):
    out = attention(*map(jnp.asarray, qkv), jnp.zeros((2, 7), bool))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("mask", [np.zeros((2, 7), bool), np.zeros((2, 7), np.int32)])
def test_row_without_tokens_is_finite_in_every_kernel(kernel, qkv, mask):
    assert np.isfinite(kernel(*map(jnp.asarray, qkv), *arguments(mask))).all()


def test_bfloat16_accumulates_in_float32():
    # 512 keys of equal weight: a bfloat16 sum of 512 ones would stop at 256.
    query = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    key = jnp.zeros((1, 512, 1, 8), jnp.bfloat16)
    value = jnp.ones((1, 512, 1, 8), jnp.bfloat16)
    out = attention(query, key, value, jnp.ones((1, 512), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=1e-2)


@pytest.mark.parametrize("kind", [0, 1], ids=["padded", "packed"])
def test_bfloat16_equals_numpy(kernel, kind):
    qkv, mask = [a.astype(jnp.bfloat16) for a in draw(2, 13)], masks(13)[kind]
    out = kernel(*map(jnp.asarray, qkv), *arguments(mask))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, float), numpy_attention(*qkv, mask), atol=1e-2)


def test_memory_grows_with_the_length_and_not_its_square():
    def scratch(kernel, tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 4, 16), jnp.float32)
        mask, ids = (jax.ShapeDtypeStruct((1, tokens), dtype) for dtype in (jnp.bool_, jnp.int32))
        compiled = jax.jit(kernel).lower(x, x, x, mask, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(blocked_attention, 4096) < 2.6 * scratch(blocked_attention, 2048)
    assert scratch(attention, 4096) > 3.5 * scratch(attention, 2048)


# ---------------------------------------------------------------- choice


@pytest.fixture
def device(monkeypatch):
    """Set what the device refuses: name → reason."""
    refused: dict[str, str] = {}
    monkeypatch.setattr(cudnn, "_device_refusal", refused.get)
    choose.cache_clear()
    yield refused
    choose.cache_clear()


PADDED, PACKED = 1, 5
NO_FLOAT32 = "takes bfloat16 and float16, the weights are float32"
ONE_TEXT = "takes rows of one text, these have up to 5"
NO_CUDA = "needs an NVIDIA GPU, the platform is 'cpu'"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("segments", [PADDED, PACKED])
def test_cpu_takes_blocks(dtype, segments):
    assert choose("cpu", dtype, 128, segments, 64) == ("blocked", BLOCKED, {})


@pytest.mark.parametrize(
    ("dtype", "segments", "name", "refusals"),
    [
        ("bfloat16", PADDED, "cudnn", {}),
        ("float16", PADDED, "cudnn", {}),
        ("bfloat16", PACKED, "cudnn_packed", {"cudnn": ONE_TEXT}),
        ("float32", PADDED, "blocked", {"cudnn": NO_FLOAT32, "cudnn_packed": NO_FLOAT32}),
        ("float32", PACKED, "blocked", {"cudnn": NO_FLOAT32, "cudnn_packed": NO_FLOAT32}),
    ],
)
def test_gpu(device, dtype, segments, name, refusals):
    choice = choose("gpu", dtype, 128, segments, 64)
    assert (choice.name, choice.refusals) == (name, refusals)


def test_gpu_kernels_are_those_of_their_names(device):
    kernels = choose("gpu", "bfloat16", 128, PADDED, 64).kernels
    assert kernels == Kernels(by_heads(cudnn_attention))
    (kernel,) = choose("gpu", "bfloat16", 128, PACKED, 64).kernels.attention.args
    assert (kernel.func, kernel.keywords) == (cudnn_packed_attention, {"segments": PACKED})


def test_gpu_of_an_older_generation(device):
    device["cudnn_packed"] = "needs an NVIDIA GPU of compute capability 9.0"
    assert choose("gpu", "bfloat16", 128, PADDED, 64).name == "cudnn"
    choice = choose("gpu", "bfloat16", 128, PACKED, 64)
    assert (choice.name, choice.refusals) == ("blocked", {"cudnn": ONE_TEXT, **device})


@pytest.mark.parametrize(("head_dim", "name"), [(8, "cudnn"), (128, "cudnn"), (136, "blocked")])
def test_head_sizes_of_cudnn(device, head_dim, name):
    assert choose("gpu", "bfloat16", 128, PADDED, head_dim).name == name
    assert "this one is 60" in choose("gpu", "bfloat16", 128, PADDED, 60).refusals["cudnn"]


@pytest.mark.parametrize("segments", [PADDED, PACKED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tpu(dtype, segments):
    choice = choose("tpu", dtype, 512, segments, 64)
    assert (choice.name, choice.refusals) == ("pallas", {})
    assert choice.kernels.attention.func is tpu.attention
    assert choice.kernels.prepare is tpu.prepare


@pytest.mark.parametrize(("tokens", "name"), [(256, "reference"), (1000, "blocked")])
def test_tpu_heads_of_another_size(tokens, name):
    choice = choose("tpu", "bfloat16", tokens, PADDED, 32)
    assert choice.name == name
    assert choice.refusals["pallas"] == "takes heads of 64, these have 32"


def test_a_chosen_kernel_is_used_where_it_suits(device):
    assert choose("cpu", "float32", 128, PADDED, 64, implementation="reference").name == "reference"
    assert choose("gpu", "float16", 128, PADDED, 64, implementation="cudnn").name == "cudnn"
    choice = choose("gpu", "float16", 128, PADDED, 64, implementation="cudnn_packed")
    reason = "takes packed rows, these have one text"
    assert (choice.name, choice.refusals) == ("blocked", {"cudnn_packed": reason})


@pytest.mark.parametrize(
    ("platform", "dtype", "name", "reason"),
    [
        ("cpu", "bfloat16", "cudnn", NO_CUDA),
        ("cpu", "bfloat16", "cudnn_packed", NO_CUDA),
        ("cpu", "float32", "pallas", "needs a TPU, the platform is 'cpu'"),
        ("gpu", "float32", "cudnn", NO_FLOAT32),
        ("gpu", "bfloat16", "pallas", "needs a TPU, the platform is 'gpu'"),
        ("tpu", "bfloat16", "cudnn", "needs an NVIDIA GPU, the platform is 'tpu'"),
        ("cpu", "float32", "flash", r"expected None or one of \('reference', 'blocked', "),
    ],
)
def test_a_chosen_kernel_that_cannot_run_is_refused(device, platform, dtype, name, reason):
    with pytest.raises(ValueError, match=f"attn_implementation='{name}': {reason}"):
        choose(platform, dtype, 128, PADDED, 64, implementation=name)


def test_an_unknown_platform_is_refused():
    with pytest.raises(
        ValueError, match=r"platform='metal': expected one of \('cpu', 'gpu', 'tpu'"
    ):
        choose("metal", "float32", 128, PADDED, 64)


@pytest.fixture
def asked():
    """``_device_refusal`` without what it remembers."""
    cudnn._device_refusal.cache_clear()
    yield cudnn._device_refusal
    cudnn._device_refusal.cache_clear()


def test_device_is_asked_for_its_generation(asked, monkeypatch):
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda needed: needed == "8.0")
    assert asked("cudnn") is None
    assert asked("cudnn_packed") == "needs an NVIDIA GPU of compute capability 9.0"


def test_whatever_jax_says_about_cudnn_is_a_reason(asked, monkeypatch):
    def check():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused, "check_cudnn_version", check)
    reason = "jax finds no usable cuDNN (RuntimeError: cuDNN is not detected.)"
    assert asked("cudnn") == reason


# ---------------------------------------------------------------- cuDNN, without and with a GPU


def test_packed_layout():
    texts = jnp.asarray([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1], [0] * 7])
    lengths, offsets = packed_layout(texts, 4)
    assert lengths.dtype == offsets.dtype == jnp.int32
    assert lengths.tolist() == [[2, 3, 1, -1], [7, -1, -1, -1], [-1] * 4]
    assert offsets.tolist() == [[0, 2, 5, -1, -1], [0, -1, -1, -1, -1], [-1] * 5]


@jax.custom_vjp
def as_cudnn(query, key, value, text_ids):
    """Attention within the texts of a row, numbered from 1, as cuDNN leaves it.

    Where there is no text, 0, it writes nothing: NaN, in the output and in the gradients.
    """
    inside = text_ids > 0
    mixed = attention(query, key, value, inside, text_ids)
    return jnp.where(inside[..., None, None], mixed, jnp.nan)


def forward_as_cudnn(query, key, value, text_ids):
    return as_cudnn(query, key, value, text_ids), (query, key, value, text_ids)


def backward_as_cudnn(operands, gradient):
    *qkv, text_ids = operands
    inside = text_ids > 0
    _, pull_back = jax.vjp(lambda *qkv: attention(*qkv, inside, text_ids), *qkv)
    inside = inside[..., None, None]
    gradients = pull_back(jnp.where(inside, gradient, 0))
    return *(jnp.where(inside, gradient, jnp.nan) for gradient in gradients), None


as_cudnn.defvjp(forward_as_cudnn, backward_as_cudnn)


def arguments_of(function, args, kwargs):
    """Bind a call to the function's own signature, and return its arguments by name."""
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)


@pytest.fixture
def padded_cudnn(monkeypatch):
    """The kernel over an emulation of jax's entry to cuDNN for padded rows."""
    real = jax.nn.dot_product_attention

    def emulate(*args, **kwargs):
        given = arguments_of(real, args, kwargs)
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        lengths = given.pop("query_seq_lengths")
        assert (lengths.shape, lengths.dtype) == ((len(query),), jnp.int32)
        assert given.pop("key_value_seq_lengths") is lengths
        assert given == {"implementation": "cudnn"}  # no mask, no bias; the usual scale
        inside = jnp.arange(query.shape[1])[None] < lengths[:, None]
        return as_cudnn(query, key, value, inside.astype(jnp.int32))

    monkeypatch.setattr(jax.nn, "dot_product_attention", emulate)
    return cudnn_attention


@pytest.fixture
def packed_cudnn(monkeypatch):
    """The kernel over an emulation of jax's entry to cuDNN for packed rows."""
    real = fused.dot_product_attention

    def emulate(*args, **kwargs):
        given = arguments_of(real, args, kwargs)
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        lengths, offsets = given.pop("q_seqlen"), given.pop("q_offsets")
        assert lengths.shape[0] == len(query)
        assert offsets.shape == (len(query), lengths.shape[1] + 1)
        assert given.pop("kv_seqlen") is lengths
        assert given.pop("kv_offsets") is offsets
        assert given.pop("mask_type") is fused.MaskType.NO_MASK
        assert given.pop("scale") == query.shape[-1] ** -0.5
        assert all(value is None for value in given.values()), given
        position = jnp.arange(query.shape[1])[None, None]
        start, length = offsets[:, :-1, None], lengths[..., None]
        inside = (start >= 0) & (start <= position) & (position < start + length)
        numbers = jnp.arange(1, lengths.shape[1] + 1)[None, :, None]
        return as_cudnn(query, key, value, jnp.where(inside, numbers, 0).sum(1))

    monkeypatch.setattr(fused, "dot_product_attention", emulate)
    return functools.partial(cudnn_packed_attention, segments=4)


def assert_equals_where_kept(kernel, mask, dtype=jnp.float32, atol=1e-6):
    """Compare outputs at tokens, and gradients everywhere; padding is finite, without gradient."""
    qkv = [jnp.asarray(a, dtype) for a in draw(*mask.shape, width=64)]
    texts, kept = arguments(mask), mask.astype(bool)
    weight = jnp.asarray(draw(*mask.shape, width=64)[0] * kept[..., None, None], jnp.float32)

    def outputs_and_gradients(kernel):
        def total(*qkv):
            out = kernel(*qkv, *texts)
            return (out.astype(jnp.float32) * weight).sum(), out

        gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
        assert {a.dtype for a in (out, *gradients)} == {jnp.dtype(dtype)}
        return np.asarray(out, np.float32), *(np.asarray(a, np.float32) for a in gradients)

    (out, *gradients), (expected, *others) = map(outputs_and_gradients, (kernel, attention))
    np.testing.assert_allclose(out[kept], expected[kept], atol=atol)
    assert np.isfinite(out).all()
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(gradient, other, atol=atol)
        np.testing.assert_array_equal(gradient[~kept], 0.0)


PADDED_MASK = np.arange(13) < np.array([[13], [6], [1], [0]])
PACKED_MASK = np.array(
    [
        [1] * 5 + [2] * 5 + [0] * 3,
        [1] * 3 + [2] + [3] * 7 + [4] * 2,
        [1] * 13,
        [1] * 4 + [0] * 9,
        [0] * 13,
    ]
)


def test_cudnn_equals_the_reference_with_its_gradients(padded_cudnn):
    assert_equals_where_kept(padded_cudnn, PADDED_MASK)
    mixed = padded_cudnn(*map(jnp.asarray, draw(4, 13)), *arguments(PADDED_MASK))
    np.testing.assert_array_equal(mixed[~PADDED_MASK], 0.0)


def test_cudnn_refuses_packed_rows_that_are_for_the_other_kernel():
    with pytest.raises(ValueError, match="segment_ids: expected None, rows of one text each"):
        cudnn_attention(*map(jnp.asarray, draw(5, 13)), *arguments(PACKED_MASK))


def test_cudnn_packed_equals_the_reference_with_its_gradients(packed_cudnn):
    assert_equals_where_kept(packed_cudnn, PACKED_MASK)


@pytest.mark.parametrize("mask", [PADDED_MASK, PACKED_MASK], ids=["padded", "packed"])
def test_gradients_of_the_other_kernels_equal_the_reference(kernel, mask):
    assert_equals_where_kept(kernel, mask)


def test_cudnn_packed_texts_do_not_see_each_other(packed_cudnn):
    assert_no_leak(packed_cudnn)


@pytest.fixture
def gpu():
    """Skip without a GPU; what is returned, without one that can run the kernel of a name."""

    if jax.default_backend() != "gpu":
        pytest.skip(f"needs a GPU, jax runs on {jax.default_backend()}")

    def need(name):
        if reason := cudnn.cannot_run(name, "bfloat16", 64):
            pytest.skip(f"{name}: {reason}")

    return need


HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


@pytest.mark.gpu
@HALVES
def test_gpu_cudnn_equals_the_reference_with_its_gradients(gpu, dtype):
    gpu("cudnn")
    assert_equals_where_kept(cudnn_attention, PADDED_MASK, dtype, 2e-2)


@pytest.mark.gpu
@HALVES
def test_gpu_cudnn_packed_equals_the_reference_with_its_gradients(gpu, dtype):
    gpu("cudnn_packed")
    kernel = functools.partial(cudnn_packed_attention, segments=4)
    assert_equals_where_kept(kernel, PACKED_MASK, dtype, 2e-2)


@pytest.mark.gpu
@HALVES
@pytest.mark.parametrize("tokens", [64, 512, 1536])
def test_gpu_cudnn_packed_in_many_tiles(gpu, tokens, dtype):
    gpu("cudnn_packed")
    rng = np.random.default_rng(tokens)
    mask = np.sort(rng.integers(1, 30, (3, tokens)), axis=1)
    mask = 1 + np.cumsum(np.diff(mask, axis=1, prepend=mask[:, :1]) > 0, axis=1)
    mask[1, -tokens // 5 :] = 0
    kernel = functools.partial(cudnn_packed_attention, segments=32)
    assert_equals_where_kept(kernel, mask, dtype, 3e-2)


@pytest.mark.gpu
def test_gpu_cudnn_packed_texts_do_not_see_each_other(gpu):
    gpu("cudnn_packed")
    kernel = jax.jit(functools.partial(cudnn_packed_attention, segments=4))
    assert_no_leak(kernel, jnp.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gpu_blocks_equal_the_reference(gpu, in_blocks, dtype):
    qkv = [jnp.asarray(a, dtype) for a in draw(5, 13)]
    out, expected = (k(*qkv, *arguments(PACKED_MASK)) for k in (in_blocks, attention))
    np.testing.assert_allclose(np.asarray(out, float), np.asarray(expected, float), atol=2e-2)
