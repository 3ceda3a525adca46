"""The kernel of sums and LayerNorm, interpreted on CPU, against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jina_jax.nn.lanes import join_first, join_second, lane_tasks, split_first, split_second
from jina_jax.nn.sum_norm import Following, Terms, Update, does_not_suit, sum_norm
from jina_jax.nn.tpu.norm import pallas_sum_norm

K, R, WIDTH = 5, 4, 256
EPSILON, SCALE = 1e-5, 0.25


def draw(*shape, seed=0, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def terms(rows, tokens, *, low="behind", dtype=jnp.bfloat16):
    """Terms of every kind: tasks mixed per token, -1 included."""
    wide = WIDTH + 128 if low == "behind" else WIDTH
    own = lane_tasks(K, R)
    return Terms(
        addend=draw(rows, tokens, wide, dtype=dtype),
        scale=draw(WIDTH, seed=1, dtype=dtype),
        bias=draw(WIDTH, seed=2, dtype=dtype),
        residual=draw(rows, tokens, WIDTH, seed=3, dtype=dtype),
        row=draw(WIDTH, seed=4, dtype=dtype),
        task_ids=jnp.asarray(np.random.default_rng(0).integers(-1, K, (rows, tokens)), jnp.int32),
        update=Update(
            None if low == "behind" else draw(rows, tokens, 128, seed=5, dtype=dtype),
            join_second(draw(K, R, WIDTH, seed=6, dtype=dtype)),
            own,
        ),
        following=Following(join_first(draw(K, WIDTH, R, seed=7, dtype=dtype)) / 16, own),
    )


def both(given, **options):
    """The kernel's result and the plain form's, float64."""
    kernel = pallas_sum_norm(given, EPSILON, SCALE, interpret=True, **options)
    plain = sum_norm(given, EPSILON, SCALE)
    assert kernel.dtype == plain.dtype
    assert kernel.shape == plain.shape
    return np.asarray(kernel, np.float64), np.asarray(plain, np.float64)


def without(given, *names):
    given = given._replace(**dict.fromkeys(names))
    if "update" in names and given.addend.shape[-1] > WIDTH:
        given = given._replace(addend=given.addend[..., :WIDTH])
    return given


LEFT_OUT = {
    "all": (),
    "layer without tasks": ("update", "following", "task_ids", "row"),
    "last norm": ("following",),
    "first half only": ("update",),
    "addend only": ("residual", "row", "update", "following", "task_ids"),
}


@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
def test_float32_equals_numpy(names):
    given = without(terms(2, 40, dtype=jnp.float32), *names)
    found, _ = both(given)
    np.testing.assert_allclose(found, numpy_sum_norm(given), atol=2e-4)


def numpy_sum_norm(given):
    """The formulas, one token after another, in float64."""
    arrays = jax.tree.map(lambda a: np.asarray(a, np.float64), given)
    rows = []
    for index in np.ndindex(given.addend.shape[:2]):
        task = None if given.task_ids is None else int(given.task_ids[index])
        total = arrays.addend[index][:WIDTH]
        total = total + (0 if given.residual is None else arrays.residual[index])
        total = total + (0 if given.row is None else arrays.row)
        own = slice(0, 0) if task in (None, -1) else slice(task * R, (task + 1) * R)
        if given.update is not None:
            low = (
                arrays.addend[index][WIDTH:]
                if given.update.low is None
                else arrays.update.low[index]
            )
            total = total + SCALE * low[own] @ arrays.update.lora_b[own]
        centred = total - total.mean()
        out = centred / np.sqrt(np.square(centred).mean() + EPSILON) * arrays.scale + arrays.bias
        if given.following is not None:
            low = np.zeros(128)
            low[own] = SCALE * out @ arrays.following.lora_a[:, own]
            out = np.concatenate((out, low))
        rows.append(out)
    return np.reshape(rows, (*given.addend.shape[:2], -1))


@pytest.mark.parametrize("low", ["behind", "apart"])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (2, 256), (3, 200)])
def test_bfloat16_equals_the_plain_form(rows, tokens, low):
    found, expected = both(terms(rows, tokens, low=low))
    # One rounding to bfloat16 apart, where a sum was near the middle of two numbers.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-7)
    assert (found != expected).mean() < 0.02


def test_gradients_are_those_of_the_plain_form():
    given = terms(2, 8, dtype=jnp.float32)
    direction = draw(2, 8, WIDTH + 128, seed=9, dtype=jnp.float32)

    def gradients(function, **options):
        def objective(scale, addend, lora_b, lora_a):
            changed = given._replace(
                scale=scale,
                addend=addend,
                update=given.update._replace(lora_b=lora_b),
                following=given.following._replace(lora_a=lora_a),
            )
            return (function(changed, EPSILON, SCALE, **options) * direction).sum()

        operands = given.scale, given.addend, given.update.lora_b, given.following.lora_a
        return jax.grad(objective, argnums=(0, 1, 2, 3))(*operands)

    found, expected = gradients(pallas_sum_norm, interpret=True), gradients(sum_norm)
    for ours, plain in zip(found, expected, strict=True):
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_mesh_changes_nothing():
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axes, devices=jax.devices()[:4])
    given = terms(2, 16)
    alone, _ = both(given)
    split, _ = both(given, mesh=mesh)
    np.testing.assert_array_equal(split, alone)


def test_what_does_not_suit():
    assert does_not_suit(1024, 128) is None
    assert does_not_suit(384, 0) is None
    assert "a multiple of 256" in does_not_suit(384, 256)


def test_lanes_and_back():
    assert lane_tasks(2, 3).tolist()[0][:8] == [0, 0, 0, 1, 1, 1, -2, -2]
    assert lane_tasks(2, 1, repeats=2).tolist()[0][:5] == [0, 1, 0, 1, -2]
    assert lane_tasks(5, 32).shape == (1, 256)
    for stacked in ((), (3,)):
        first, second = draw(*stacked, K, 8, R), draw(*stacked, K, R, 3, 8)
        columns, rows = join_first(first), join_second(second, len(stacked))
        assert columns.shape == (*stacked, 8, 128)
        assert rows.shape == (*stacked, 128, 3, 8)
        np.testing.assert_array_equal(columns[..., R : 2 * R], first[..., 1, :, :])
        np.testing.assert_array_equal(split_first(columns, K, R), first)
        np.testing.assert_array_equal(split_second(rows, K, R, len(stacked)), second)
