"""jaxlib 0.10.2 returns wrong sums on CPU; whatever is installed must not."""

import jax
import jax.numpy as jnp
import numpy as np


def test_sum_of_matmul_is_right():
    total = jax.jit(lambda x: (x @ jnp.ones((64, 64))).sum(-1))(jnp.ones((256, 64)))
    np.testing.assert_array_equal(total, np.full(256, 64.0 * 64.0))
