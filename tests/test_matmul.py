"""Products and their gradients against NumPy float64, for every product of the network."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jina_jax
from jina_jax.nn.matmul import einsum

SUBSCRIPTS = (
    *("bti,io->bto", "bti,kir->btkr", "btkr,kro->bto"),  # linear layers and adapters
    *("bti,ipo->btpo", "btkr,krpo->btpo"),  # the same for queries, keys and values
    *("btnh,bsnh->bnts", "bnts,bsnh->btnh", "bth,bsh->bts", "bts,bsh->bth"),  # attention
    *("bti,ir->btr", "btr,ro->bto"),  # adapters joined to the weights
    *("bst,btd->bsd", "bd,de->be"),  # pooling, and the maps behind it
    "bmd,vd->bmv",  # the head of masked language modelling
    *("bd,bd->b", "bd,cd->bc", "qd,td->qt"),  # similarities
)
INDICES = "bckmdehinopqrstv"
SIZES = dict(zip(INDICES, (2, 5, 3, 7, 16, 12, 8, 6, 4, 10, 3, 5, 4, 11, 9, 13), strict=True))
RTOL = 1e-6


def arrays(subscripts: str, dtype) -> list[np.ndarray]:
    """Draw both operands and a float32 cotangent of the result."""
    rng = np.random.default_rng([*subscripts.encode()])
    names = re.split(",|->", subscripts)
    drawn = [rng.standard_normal([SIZES[index] for index in name], np.float32) for name in names]
    return [drawn[0].astype(dtype), drawn[1].astype(dtype), drawn[2]]


def formula(subscripts: str, left, right, cotangent) -> list[np.ndarray]:
    """Return the product and both gradients, float64."""
    left, right, cotangent = (np.asarray(array, np.float64) for array in (left, right, cotangent))
    a, b, c = re.split(",|->", subscripts)
    return [
        np.einsum(subscripts, left, right),
        np.einsum(f"{c},{b}->{a}", cotangent, right),
        np.einsum(f"{a},{c}->{b}", left, cotangent),
    ]


def product_and_gradients(subscripts: str):
    def run(left, right, cotangent):
        product, pull_back = jax.vjp(lambda a, b: einsum(subscripts, a, b), left, right)
        return product, *pull_back(cotangent)

    return run


def assert_close(found, expected) -> None:
    found = np.asarray(found, np.float64)
    assert np.abs(found - expected).max() <= RTOL * np.abs(expected).max()


def test_every_product_of_the_network_is_tested():
    found = set()
    for file in Path(jina_jax.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r'(?<!jnp\.)\beinsum\(\s*"([^"]+)"', file.read_text("utf-8")))
    assert found == set(SUBSCRIPTS)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_float32(subscripts):
    operands = arrays(subscripts, np.float32)
    found = jax.jit(product_and_gradients(subscripts))(*operands)
    for ours, exact in zip(found, formula(subscripts, *operands), strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, exact)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_bfloat16_gradients_are_products_of_rounded_arrays(subscripts):
    left, right, cotangent = arrays(subscripts, ml_dtypes.bfloat16)
    product, *gradients = jax.jit(product_and_gradients(subscripts))(left, right, cotangent)
    rounded = cotangent.astype(ml_dtypes.bfloat16)
    exact, *exact_gradients = formula(subscripts, left, right, rounded)
    assert product.dtype == jnp.float32
    assert_close(product, exact)
    for ours, gradient in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == jnp.bfloat16
        once = gradient.astype(np.float32).astype(ml_dtypes.bfloat16)
        # A sum in float32 may fall on the other side of a tie.
        assert (np.asarray(ours) != once).mean() < 0.01
        np.testing.assert_allclose(np.asarray(ours, np.float64), gradient, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_bfloat16_is_multiplied_as_bfloat16(subscripts):
    left, right, cotangent = arrays(subscripts, ml_dtypes.bfloat16)
    program = jax.jit(product_and_gradients(subscripts)).lower(left, right, cotangent)
    dots = re.findall(
        r"dot_general.*: \(tensor<(.*?)>, tensor<(.*?)>\) -> tensor<(.*?)>", program.as_text()
    )
    assert len(dots) >= 3
    for operands in dots:
        dtypes = [operand.split("x")[-1] for operand in operands]
        assert dtypes == ["bf16", "bf16", "f32"], operands


def test_float32_is_multiplied_in_full():
    program = jax.jit(product_and_gradients("bti,io->bto")).lower(
        *arrays("bti,io->bto", np.float32)
    )
    dots = [line for line in program.as_text().splitlines() if "dot_general" in line]
    assert len(dots) == 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in dots)
