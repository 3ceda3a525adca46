import jax.numpy as jnp
import numpy as np

from jina_jax.nn.rope import apply_rotary, rotary_angles


def test_angles_are_position_times_frequency():
    cos, sin = rotary_angles(jnp.array([0, 1, 3]), head_dim=4, base=100.0)
    angles = np.array([[0, 0], [1, 0.1], [3, 0.3]])
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-7)


def test_base_changes_the_angles():
    one, _ = rotary_angles(jnp.arange(8), head_dim=8, base=10_000.0)
    other, _ = rotary_angles(jnp.arange(8), head_dim=8, base=20_000.0)
    assert abs(np.asarray(one) - np.asarray(other)).max() > 1e-4


def test_pairs_lie_half_a_head_apart():
    # A quarter turn takes (x0, x2) to (-x2, x0); the second pair stays.
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    cos, sin = jnp.array([[[0.0, 1.0]]]), jnp.array([[[1.0, 0.0]]])
    np.testing.assert_allclose(apply_rotary(x, cos, sin)[0, 0, 0], [-3.0, 2.0, 1.0, 4.0])


def test_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(i, j):
        rotated = [
            apply_rotary(x, *rotary_angles(jnp.array([[p]]), 8, 20_000.0))
            for x, p in ((query, i), (key, j))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    np.testing.assert_allclose(score(5, 2), score(105, 102), atol=1e-4)
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_result_is_float32_for_bfloat16_input():
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    assert apply_rotary(x, *rotary_angles(jnp.arange(2), 4, 10.0)).dtype == jnp.float32
