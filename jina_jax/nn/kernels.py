"""Choice of the kernels of a program, with the reasons against others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from jina_jax.nn import cudnn, splash
from jina_jax.nn.attention import HeadKernel, attention, blocked_attention
from jina_jax.nn.protocol import Kernels, by_heads

IMPLEMENTATIONS = ("reference", "blocked", "cudnn", "cudnn_packed", "splash")

# For each platform the kernels in the order of preference; the last one takes every program.
_PREFERRED = {
    "cpu": ("blocked",),
    "gpu": ("cudnn", "cudnn_packed", "blocked"),
    # Blocks are sized for a processor's cache: on short rows of a TPU they are many small steps.
    "tpu": ("splash", "reference", "blocked"),
}
_LONGEST_WHOLE = 512  # tokens of a row for which the reference may be chosen

# For rows of any length, on every platform.
BLOCKED = Kernels(by_heads(blocked_attention))


class KernelChoice(NamedTuple):
    """The kernels of a program, and why others were passed over.

    Attributes:
      name: that of attention, one of ``IMPLEMENTATIONS``.
      kernels: all of them.
      refusals: name → reason, for each kernel that was preferred to one of these.
    """

    name: str
    kernels: Kernels
    refusals: dict[str, str]


@functools.lru_cache(maxsize=256)
def choose(
    platform: str,
    dtype: str,
    tokens: int,
    segments: int,
    head_dim: int,
    mesh: jax.sharding.Mesh | None = None,
    implementation: str | None = None,
) -> KernelChoice:
    """Choose the kernels of a program.

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: of query, key and value.
      tokens: T.
      segments: most texts per row; 1 for rows of one text, padded on the right.
      head_dim: H.
      mesh: where the program runs, for kernels that XLA does not partition; None for one device.
      implementation: one of ``IMPLEMENTATIONS`` to insist on, wherever it suits the rows; None for
        the platform's first choice that can run.

    Raises:
      ValueError: for an unknown platform or implementation, or an implementation that cannot run
        on these devices, with the reason.
    """
    if platform not in _PREFERRED:
        raise ValueError(f"platform={platform!r}: expected one of {tuple(_PREFERRED)}")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"attn_implementation={implementation!r}: expected None or one of {IMPLEMENTATIONS}"
        )
    kernels = head_kernels(segments, mesh)
    cannot = {name: _cannot_run(name, platform, dtype, head_dim) for name in kernels}
    if implementation is not None and cannot[implementation] is not None:
        raise ValueError(f"attn_implementation={implementation!r}: {cannot[implementation]}")
    preferred = _PREFERRED[platform] if implementation is None else (implementation, "blocked")
    refusals: dict[str, str] = {}
    for name in preferred:
        insisted = name == implementation == "reference"
        reason = cannot[name] or (None if insisted else _does_not_suit(name, tokens, segments))
        if reason is None:
            own = _tpu_kernels(mesh) if (platform, dtype) == ("tpu", "bfloat16") else {}
            return KernelChoice(name, Kernels(by_heads(kernels[name]), **own), refusals)
        refusals[name] = reason
    raise AssertionError("the last of the preferred kernels takes every program")


@functools.cache
def _tpu_kernels(mesh: jax.sharding.Mesh | None) -> dict[str, Callable]:
    """Map the parts that have a kernel on TPUs, beside attention, to it."""
    # Imported on first use: on other platforms Pallas is slow to import and not needed.
    from jina_jax.nn.tpu.norm import pallas_sum_norm

    return {"sum_norm": functools.partial(pallas_sum_norm, mesh=mesh)}


def head_kernels(segments: int, mesh: jax.sharding.Mesh | None = None) -> dict[str, HeadKernel]:
    """Map the names of kernels that take heads apart to their functions."""
    return {
        "reference": attention,
        "blocked": blocked_attention,
        "cudnn": cudnn.cudnn_attention,
        "cudnn_packed": functools.partial(cudnn.cudnn_packed_attention, segments=segments),
        "splash": functools.partial(splash.splash_attention, mesh=mesh),
    }


def _cannot_run(name: str, platform: str, dtype: str, head_dim: int) -> str | None:
    """Return why a kernel cannot run on these devices, or None if it can."""
    if name in ("cudnn", "cudnn_packed"):
        if platform != "gpu":
            return f"needs an NVIDIA GPU, the platform is {platform!r}"
        return cudnn.cannot_run(name, dtype, head_dim)
    if name == "splash" and platform != "tpu":
        return f"needs a TPU, the platform is {platform!r}"
    return None


def _does_not_suit(name: str, tokens: int, segments: int) -> str | None:
    """Return why a kernel does not suit rows of this kind, or None if it does."""
    if name == "cudnn" and segments > 1:
        return f"takes rows of one text, these have up to {segments}"
    if name == "cudnn_packed" and segments == 1:
        return "takes packed rows, these have one text"
    if name == "reference" and tokens > _LONGEST_WHOLE:
        return f"takes memory by the square of the length, these rows have {tokens} tokens"
    return splash.does_not_suit(tokens) if name == "splash" else None
