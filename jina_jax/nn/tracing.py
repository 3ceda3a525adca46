"""What a program for one platform need not trace: other platforms' forms, and a layer twice.

Where a program is read from the compilation cache, nearly all of the time until it is ready is that
of tracing and lowering it. Optimised, its instructions are the same with this file and without.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# The platform of the program that is being traced. It is part of the keys of JAX's caches, so that
# nothing is reused that was traced for another one.
_platform = jax.make_user_context(None)
_KNOWN = ("cpu", "tpu")  # a device that JAX calls "gpu" is CUDA's or ROCm's, whose forms differ
# XLA for TPU copies an array per layer more where layers are calls; there they are usually scanned.
_WITH_CALLS = ("cpu", "gpu")


def traced_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which one program is traced and lowered, and nothing else is computed.

    Args:
      platform: "cpu", "gpu" or "tpu", for which alone it is lowered.
    """
    return _platform(platform)


def by_platform(
    *operands: Any, default: Callable[..., jax.Array], **forms: Callable[..., jax.Array]
) -> jax.Array:
    """Compute as ``jax.lax.platform_dependent`` of the same arguments.

    That traces every form, as it must where the platform is not yet known.
    """
    if _platform.value not in _KNOWN:
        return jax.lax.platform_dependent(*operands, default=default, **forms)
    return forms.get(_platform.value, default)(*operands)


def traced_once(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Make a program trace and lower a function for the first of several equal modules alone.

    Outside ``traced_for`` it stays as it is: called op by op, it would be a program of its own,
    without the compiler options of ``jina_jax.runtime.compiling``. On TPU it does, too.

    Args:
      run: (module, *arrays) → array, where modules are equal but for their arrays.
    """
    if _platform.value not in _WITH_CALLS:
        return run

    @functools.partial(jax.jit, static_argnums=0)
    def layer(graph: nnx.GraphDef, state: nnx.State, *arrays: Any) -> jax.Array:
        return run(nnx.merge(graph, state), *arrays)

    return lambda module, *arrays: layer(*nnx.split(module), *arrays)
