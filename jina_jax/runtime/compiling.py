"""How the library compiles: the options of every program, and a check that its sums are right.

jaxlib 0.10.2 to 0.12.0.1 fuse a matmul with what follows it into one call of YNNPACK. On CPU that
call returns wrong values where the right operand is one number throughout (``jnp.ones``, or what a
gradient makes of a mean) and the product is reduced. Told to hand over matmuls one by one, they are
right; without YNNPACK bfloat16 takes two to four times as long. A release that is right by itself
gets no options.
``benchmarks/jaxlib_sums.py`` prints which release is right on which pattern.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from jina_jax.runtime.forks import refuse_fork

_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}  # JAX's names of what is one platform here
_lock = threading.Lock()  # the check runs once, whichever thread is first
_FLAG = "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce"


class JaxlibError(RuntimeError):
    """A jaxlib that computes wrong sums, whatever it is told."""


class JaxlibWarning(UserWarning):
    """A jaxlib that computes wrong sums in programs of others than this library."""


def jit(
    function: Callable,
    platform: str | None = None,
    more: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return ``jax.jit(function, **options)`` with the compiler options of a platform.

    Args:
      function: not to be called inside another ``jax.jit``, which JAX would refuse.
      platform: that it will run on, as ``compiler_options`` takes it.
      more: compiler options beside those.

    Raises:
      JaxlibError, RuntimeError: as ``compiler_options``.
    """
    refuse_fork()
    compiler = {**compiler_options(platform), **(more or {})}
    return jax.jit(function, compiler_options=compiler, **options)


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Return the options that a program needs to be right, for ``jax.jit(compiler_options=)``.

    The first call for a CPU runs the check of this module.

    Args:
      platform: "cpu", "gpu" or "tpu"; None for that of JAX's default device.

    Raises:
      ValueError: for another platform.
      JaxlibError: if the installed jaxlib returns wrong sums with these options too.
      RuntimeError: in a forked process, see ``refuse_fork``.
    """
    if platform is None:
        device = jax.config.jax_default_device  # type: ignore[attr-defined]
        platform = getattr(device, "platform", device) or jax.default_backend()
    platform = _PLATFORMS.get(platform, platform)
    if platform not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"platform={platform!r}: expected 'cpu', 'gpu', 'tpu' or None")
    if platform != "cpu":
        return {}
    refuse_fork()
    with _lock:
        return dict(_checked_cpu_options())


def platform_of(array: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Return "cpu", "gpu" or "tpu" for where an array lies."""
    platform = next(iter(array.sharding.device_set)).platform
    return _PLATFORMS.get(platform, platform)


@functools.cache
def _checked_cpu_options() -> dict[str, str]:
    """Return the options for CPU without which this jaxlib's sums are wrong, if any."""
    if _sums_are_right({}):
        return {}
    try:
        is_right = _sums_are_right(_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "option" not in str(error):
            raise
        is_right = False  # a release without the option, or with other values for it
    if not is_right:
        raise JaxlibError(
            f"jaxlib {jaxlib.__version__} returns wrong sums on CPU; install jax==0.10.1, or set "
            f"{_FLAG} before Python starts"
        )
    warnings.warn(
        f"jaxlib {jaxlib.__version__} returns wrong sums on CPU for a reduced matmul whose "
        f"right operand is one number throughout. jina_jax compiles around it; for jitted code "
        f"of your own, set {_FLAG} before Python starts, or use "
        f"jax.jit(f, compiler_options=jina_jax.compiler_options())",
        JaxlibWarning,
        stacklevel=3,
    )
    return _CPU_OPTIONS


def _sums_are_right(options: dict[str, str]) -> bool:
    """Compare reduced matmuls on a CPU with their values, which float32 holds exactly."""
    values = np.arange(256 * 64, dtype=np.float32).reshape(256, 64) % 3
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = jax.jit(_reductions, compiler_options=options)(values)
    totals = values.sum(axis=1)
    expected = (64 * totals, 2 * totals, 64 * np.square(3 * totals))
    return all(map(np.array_equal, found, expected))


def _reductions(values: jax.Array) -> tuple[jax.Array, ...]:
    """Multiply values, float32 (256, 64), by 1, 2 and 3 throughout, and reduce the products."""

    def product(factor: int, dtype) -> jax.Array:
        right = jnp.full((64, 64), factor, dtype)
        return jnp.matmul(values.astype(dtype), right, preferred_element_type=jnp.float32)

    return (
        product(1, jnp.float32).sum(axis=1),
        product(2, jnp.bfloat16).max(axis=1),
        jnp.square(product(3, jnp.float32)).sum(axis=1),
    )
