"""Choice of the kernels of a program, with the reasons against others."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax

from jina_jax.nn import cudnn
from jina_jax.nn.attention import HeadKernel, attention, blocked_attention
from jina_jax.nn.protocol import Kernels, by_heads
from jina_jax.nn.tpu import attention as tpu

IMPLEMENTATIONS = ("reference", "blocked", "cudnn", "cudnn_packed", "pallas", "pallas_fused")
_PALLAS = ("pallas_fused", "pallas")

# For each platform the kernels in the order of preference; the last one takes every program.
_PREFERRED = {
    "cpu": ("blocked",),
    "gpu": ("cudnn", "cudnn_packed", "blocked"),
    # Blocks are sized for a processor's cache: on short rows of a TPU they are many small steps.
    "tpu": ("pallas", "reference", "blocked"),
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


class _Asked(NamedTuple):
    """The program that kernels are chosen for: arguments of ``choose``."""

    platform: str
    dtype: str
    tokens: int
    segments: int
    head_dim: int
    mesh: jax.sharding.Mesh | None
    heads: int | None


@functools.lru_cache(maxsize=256)
def choose(
    platform: str,
    dtype: str,
    tokens: int,
    segments: int,
    head_dim: int,
    mesh: jax.sharding.Mesh | None = None,
    implementation: str | None = None,
    *,
    heads: int | None = None,
) -> KernelChoice:
    """Choose the kernels of a program.

    On a TPU a kernel's first choice in a process runs its check, ``jina_jax.nn.tpu.check``.

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: of query, key and value.
      tokens: T.
      segments: most texts per row; 1 for rows of one text, padded on the right.
      head_dim: H.
      mesh: where the program runs, for kernels that XLA does not partition; None for one device.
      implementation: one of ``IMPLEMENTATIONS`` to insist on, wherever it suits the rows; None for
        the platform's first choice that can run.
      heads: N; None if it is a multiple of whatever a kernel takes at once.

    Raises:
      ValueError: for an unknown platform or implementation, or an implementation that cannot run
        on these devices, with the reason.
    """
    if platform not in _PREFERRED:
        raise ValueError(f"platform={platform!r}: expected one of {tuple(_PREFERRED)}")
    preferred, wanted = _PREFERRED[platform], implementation
    asked = _Asked(platform, dtype, tokens, segments, head_dim, mesh, heads)
    if wanted is not None:
        _check_implementation(wanted, asked)
        preferred = _PALLAS + preferred[1:] if wanted == "pallas_fused" else (wanted, "blocked")
    refusals: dict[str, str] = {}
    for name in preferred:
        insisted = name == wanted == "reference"
        reason = _cannot_run(name, asked) or (None if insisted else _does_not_suit(name, asked))
        if reason is None:
            found = KernelChoice(name, _kernels(name, segments, mesh), refusals)
            is_tpu = (platform, dtype) == ("tpu", "bfloat16")
            return _with_tpu_norms(found, mesh) if is_tpu else found
        refusals[name] = reason
    raise AssertionError("the last of the preferred kernels takes every program")


def _check_implementation(name: str, asked: _Asked) -> None:
    """Refuse an implementation that is unknown or cannot run."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation={name!r}: expected None or one of {IMPLEMENTATIONS}")
    if (reason := _cannot_run(name, asked)) is not None:
        raise ValueError(f"attn_implementation={name!r}: {reason}")


def _kernels(name: str, segments: int, mesh: jax.sharding.Mesh | None) -> Kernels:
    if name in _PALLAS:
        found = Kernels(functools.partial(tpu.attention, mesh=mesh), tpu.prepare)
        if name == "pallas":
            return found
        from jina_jax.nn.tpu.fused import fused_layer

        return found._replace(layer=functools.partial(fused_layer, mesh=mesh))
    return Kernels(by_heads(head_kernels(segments)[name]))


def _with_tpu_norms(choice: KernelChoice, mesh: jax.sharding.Mesh | None) -> KernelChoice:
    """Add the kernel of sums and norms, or the reason against it."""
    # Imported on first use: on other platforms Pallas is slow to import and not needed.
    from jina_jax.nn.tpu import check
    from jina_jax.nn.tpu.norm import pallas_sum_norm

    _, here = _devices(mesh)
    if here is not None and (reason := check.norm_refusal(here)) is not None:
        return choice._replace(refusals={**choice.refusals, "sum_norm": reason})
    sum_norm = functools.partial(pallas_sum_norm, mesh=mesh)
    return choice._replace(kernels=choice.kernels._replace(sum_norm=sum_norm))


def head_kernels(segments: int) -> dict[str, HeadKernel]:
    """Map the names of kernels that take heads apart to their functions."""
    return {
        "reference": attention,
        "blocked": blocked_attention,
        "cudnn": cudnn.cudnn_attention,
        "cudnn_packed": functools.partial(cudnn.cudnn_packed_attention, segments=segments),
    }


def _cannot_run(name: str, asked: _Asked) -> str | None:
    """Return why a kernel cannot run on these devices, or None if it can."""
    if name in ("cudnn", "cudnn_packed"):
        if asked.platform != "gpu":
            return f"needs an NVIDIA GPU, the platform is {asked.platform!r}"
        return cudnn.cannot_run(name, asked.dtype, asked.head_dim)
    if name not in _PALLAS:
        return None
    if asked.platform != "tpu":
        return f"needs a TPU, the platform is {asked.platform!r}"
    reason = tpu.cannot_run(asked.dtype, asked.head_dim, asked.heads, asked.mesh)
    if name == "pallas_fused":
        return reason or _cannot_fuse(asked.dtype, asked.mesh)
    return reason


def _does_not_suit(name: str, asked: _Asked) -> str | None:
    """Return why a kernel does not suit rows of this kind, or None if it does."""
    if name == "cudnn" and asked.segments > 1:
        return f"takes rows of one text, these have up to {asked.segments}"
    if name == "cudnn_packed" and asked.segments == 1:
        return "takes packed rows, these have one text"
    if name == "reference" and asked.tokens > _LONGEST_WHOLE:
        return f"takes memory by the square of the length, these rows have {asked.tokens} tokens"
    return _does_not_suit_tpu(name, asked) if name in _PALLAS else None


def _cannot_fuse(dtype: str, mesh: jax.sharding.Mesh | None) -> str | None:
    """Return why the kernels of whole sub-layers cannot run, where the others can."""
    if dtype != "bfloat16":
        return f"takes weights in bfloat16, these are {dtype}"
    if mesh is not None and mesh.shape["model"] > 1:
        return f"takes all heads on one device, these are on {mesh.shape['model']}"
    return None


def _does_not_suit_tpu(name: str, asked: _Asked) -> str | None:
    """Return why a TPU's kernel does not suit a device, one that is not here included."""
    devices, here = _devices(asked.mesh)
    reason = tpu.does_not_suit(asked.tokens, asked.dtype, devices[0].device_kind)
    if name == "pallas_fused":
        reason = reason or tpu.does_not_fuse(asked.tokens, devices[0].device_kind)
    if reason is not None or here is None:
        return reason
    from jina_jax.nn.tpu import check  # imports Pallas

    if name == "pallas_fused":
        return check.fused_refusal(here)
    return check.refusal(check.row_of(asked.tokens), asked.dtype, here)


def _devices(mesh: jax.sharding.Mesh | None) -> tuple[list[jax.Device], jax.Device | None]:
    """Return the devices that a program is for, and a TPU of this process among them, if any."""
    own = jax.local_devices()
    devices = own if mesh is None else list(mesh.devices.flat)
    here = (device for device in devices if device in own and device.platform == "tpu")
    return devices, next(here, None)
