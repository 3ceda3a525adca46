"""Sums are right with whatever jaxlib is installed, at sizes where some releases fuse them."""

import ast
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xla_flags import usual_options

import jina_jax
from jina_jax import JaxlibError, compiler_options
from jina_jax.nn.matmul import einsum
from jina_jax.nn.pooling import pool
from jina_jax.runtime import compiling
from jina_jax.runtime.compiling import jit
from jina_jax.search.nearest import nearest
from jina_jax.training import losses

ROOT = Path(__file__).parents[1] / "jina_jax"
# Each of a product of its own: a product that is used twice is not fused.
REDUCTIONS = [(name, axis) for name in ("sum", "mean", "max") for axis in (-1, 0, None)]
ROWS = (256, 4096)
# Every product of two arrays in the library, with the axes of its operands.
MATMULS = {
    "bti,io->bto": ("4 t 64", "64 96"),
    "bti,kir->btkr": ("4 t 64", "5 64 4"),
    "btkr,kro->bto": ("4 t 5 4", "5 4 96"),
    "bst,btd->bsd": ("4 8 t", "4 t 96"),
    "bth,bsh->bts": ("4 t 64", "4 96 64"),
    "bts,bsh->bth": ("4 t 96", "4 96 64"),
    "qd,td->qt": ("t 64", "96 64"),
    "bd,cd->bc": ("t 64", "96 64"),
    "bd,bd->b": ("t 64", "t 64"),
    "mi,io->mo": ("t 64", "64 96"),
    "md,vd->mv": ("t 64", "96 64"),
}


@pytest.fixture(scope="module", autouse=True)
def compile_as_users():
    """Compile as XLA does by itself, and not quickly as in the other tests."""
    usual, right, checked = usual_options(), compiling._sums_are_right, compiling.compiler_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_sums_are_right", lambda options: right({**usual, **options}))
        for module in (compiling, jina_jax):
            patch.setattr(module, "compiler_options", lambda *args: {**checked(*args), **usual})
        compiling._checked_cpu_options.cache_clear()
        yield
    compiling._checked_cpu_options.cache_clear()


@pytest.fixture
def unchecked():
    """Let the check, which runs once per process, run in this test."""
    compiling._checked_cpu_options.cache_clear()
    yield
    compiling._checked_cpu_options.cache_clear()


def shape_of(axes, rows):
    """Return a shape of the given number of rows: in the axis t, or in 4 batches of it."""
    return tuple(rows if axis == "t" else int(axis) for axis in axes.split())


def operands(xp, drawn, uniform, factor):
    """Return both operands: those drawn times a factor, or of one number throughout."""
    return [
        xp.full(array.shape, factor, np.float32) if side in uniform else factor * array
        for side, array in zip(("left", "right"), drawn, strict=True)
    ]


@pytest.mark.parametrize(
    ("uniform", "rows"),
    [*(("right", rows) for rows in ROWS), ("left", 256), ("left and right", 256), ("", 256)],
)
@pytest.mark.parametrize("subscripts", MATMULS)
def test_reductions_of_every_matmul(subscripts, uniform, rows):
    """Operands of one number throughout are what releases got wrong."""
    rng = np.random.default_rng(rows)
    shapes = [shape_of(axes, rows) for axes in MATMULS[subscripts]]
    drawn = [rng.integers(-2, 3, shape).astype(np.float32) for shape in shapes]

    @jit
    def reductions(*drawn):
        results = []
        for factor, (name, axis) in enumerate(REDUCTIONS, start=1):
            dtype = (jnp.float32, jnp.bfloat16)[factor % 2]
            pair = operands(jnp, drawn, uniform, factor)
            product = einsum(subscripts, *(operand.astype(dtype) for operand in pair))
            results.append(getattr(product, name)(axis=axis))
        return results

    expected = []
    for factor, (name, axis) in enumerate(REDUCTIONS, start=1):
        pair = operands(np, [array.astype(np.float64) for array in drawn], uniform, factor)
        product = np.einsum(subscripts, *pair, optimize=True)
        expected.append(getattr(product, name)(axis=axis))
    for got, wanted in zip(reductions(*drawn), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rows", ROWS[:1])
@pytest.mark.parametrize("name", ["info_nce", "triplet", "cosent", "separation"])
def test_losses_of_many_rows(name, rows):
    """Rows of one number throughout, so that every cosine is 1 and every loss is known."""

    def loss():
        ones = jnp.full((rows, 64), 0.5)
        if name == "info_nce":
            return losses.info_nce(ones, ones)
        if name == "triplet":
            return losses.triplet_info_nce(ones, ones, jnp.full((rows, 1, 64), 0.5))
        if name == "cosent":
            return losses.cosent(ones, ones, scores=jnp.arange(rows, dtype=jnp.float32))
        return losses.separation(ones, labels=jnp.arange(rows) % 2)

    pairs = rows * (rows - 1) / 2
    same = 2 * (rows / 2) * (rows / 2 - 1) / 2
    expected = {
        "info_nce": 2 * np.log(rows),
        "triplet": np.log(2 * rows) + np.log(rows),
        "cosent": np.log1p(pairs),
        "separation": np.log1p(same * (pairs - same)),
    }
    np.testing.assert_allclose(jit(loss)(), expected[name], rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS[:1])
@pytest.mark.parametrize("name", ["cosine", "similarity", "contrastive"])
def test_distillation_of_many_rows(name, rows):
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, rows, 64))
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (student, teacher)]
    cosines, target = (v @ units[1].T for v in units)
    shares = np.exp(target / 0.05) / np.exp(target / 0.05).sum(axis=1, keepdims=True)
    logs = np.log(np.exp(cosines / 0.05).sum(axis=1)) - (shares * cosines / 0.05).sum(axis=1)
    expected = {
        "cosine": np.mean(1 - np.diagonal(cosines)),
        "similarity": np.square(units[0] @ units[0].T - target).sum() / (rows * (rows - 1)),
        "contrastive": logs.mean(),
    }
    function = getattr(losses, f"{name}_distillation")
    found = jit(lambda x, t: function(x, teacher=t))(
        student.astype(np.float32), teacher.astype(np.float32)
    )
    np.testing.assert_allclose(found, expected[name], rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_masked_language_model_of_many_tokens(rows):
    def loss(hidden):
        logits = einsum("md,vd->mv", hidden, jnp.full((512, 64), 2.0))
        labels = jnp.zeros(rows, jnp.int32)
        return losses.masked_lm(logits, labels=labels, weights=jnp.ones(rows))

    hidden = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    np.testing.assert_allclose(jit(loss)(hidden), rows * np.log(512), rtol=1e-5)
    np.testing.assert_allclose(jit(jax.grad(loss))(hidden), np.zeros_like(hidden), atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pooling_of_many_tokens(rows, dtype):
    def pooled():
        spans = jnp.asarray([[[0, rows], [1, rows // 2]]], jnp.int32)
        return pool(jnp.full((1, rows, 64), 1.5, dtype), spans, "mean").sum(axis=-1)

    np.testing.assert_allclose(jit(pooled)(), [[96.0, 96.0]], rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_nearest_of_many_texts(rows):
    rng = np.random.default_rng(0)
    queries, texts = rng.standard_normal((256, 64)), rng.standard_normal((rows, 64))
    found = nearest(queries.astype(np.float32), texts.astype(np.float32), 5)
    for (scores, numbers), row in zip(found, queries @ texts.T, strict=True):
        order = np.argsort(-row)[:5]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(scores, row[order], rtol=1e-5)


def test_the_installed_jaxlib_is_right_with_our_options(unchecked):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jina_jax.JaxlibWarning)
        assert isinstance(compiler_options("cpu"), dict)
        assert compiler_options() == compiler_options("cpu")


def test_options_are_for_cpu_alone():
    assert compiler_options("gpu") == compiler_options("tpu") == compiler_options("cuda") == {}
    with pytest.raises(ValueError, match="platform='CPU': expected 'cpu', 'gpu', 'tpu' or None"):
        compiler_options("CPU")


def test_threads_share_one_check(unchecked, monkeypatch):
    checks = []
    monkeypatch.setattr(compiling, "_sums_are_right", lambda options: checks.append(1) or True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(compiler_options, ["cpu"] * 8))
    assert len(checks) == 1


def test_a_release_that_is_right_by_itself_gets_no_options(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "_sums_are_right", lambda options: True)
    assert compiler_options("cpu") == {}


def test_wrong_sums_and_an_option_that_the_release_does_not_know(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    real = compiling._sums_are_right
    monkeypatch.setattr(
        compiling, "_sums_are_right", lambda options: real(options) if options else False
    )
    with pytest.raises(JaxlibError, match="returns wrong sums"):
        compiler_options("cpu")


def test_wrong_sums_are_an_error_that_names_release_and_way_out(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "_sums_are_right", lambda options: False)
    monkeypatch.setattr(compiling.jaxlib, "__version__", "0.13.0")
    with pytest.raises(JaxlibError, match=r"jaxlib 0\.13\.0 returns wrong sums .*jax==0\.10\.1"):
        compiler_options("cpu")


def test_a_process_that_sums_wrongly_is_warned_of_once(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "_sums_are_right", bool)  # right with options alone
    with pytest.warns(jina_jax.JaxlibWarning, match="XLA_FLAGS=.*-reduce before Python starts"):
        assert compiler_options("cpu") == compiling._CPU_OPTIONS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiler_options("cpu")


def test_a_wrong_sum_is_seen():
    """The check itself: with reductions that are off by a little, it says so."""
    assert compiling._sums_are_right(compiler_options("cpu"))
    right = compiling._reductions

    def off(values):
        first, *others = right(values)
        return (first + 1, *others)

    try:
        compiling._reductions = off
        assert not compiling._sums_are_right(compiler_options("cpu"))
    finally:
        compiling._reductions = right


def test_every_program_is_compiled_in_one_place():
    """``jax.jit`` is called in compiling.py; in stablehlo.py, where StableHLO is made; in
    tracing.py, within a program; and where a TPU's kernels are checked on one.
    """
    callers = set()
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "convert").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap"):
                callers.add(path.name)
    assert callers == {"compiling.py", "stablehlo.py", "tracing.py", "check.py", "sample.py"}
