"""Where linear layers can multiply in 8 bits, and how such programs are compiled."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.nn.names import QUANTIZATIONS

_FP8_CAPABILITY = (8, 9)  # of NVIDIA's first GPUs with units for float8
# XLA's own matmuls for GPU widen float8 to float16, at half the rate; cuBLAS multiplies it.
_GPU_OPTIONS: dict[str | None, dict[str, Any]] = {"fp8": {"xla_gpu_enable_triton_gemm": False}}


def check_quantization(quantization: str | None, mesh: Mesh | None) -> None:
    """Check that devices multiply in 8 bits.

    Args:
      quantization: one of ``QUANTIZATIONS``, or None.
      mesh: the devices that a model will lie on; None for JAX's default one.

    Raises:
      ValueError: as ``check_device``.
    """
    check_device(quantization, jax.devices()[0] if mesh is None else mesh.devices.flat[0])


def check_device(quantization: str | None, device: jax.Device) -> None:
    """Check that a device multiplies in 8 bits.

    Args:
      quantization: as for ``check_quantization``.
      device: any.

    Raises:
      ValueError: for another name, or "fp8" on a device without units for it.
    """
    if quantization not in (None, *QUANTIZATIONS):
        raise ValueError(f"quantization={quantization!r}: expected None or one of {QUANTIZATIONS}")
    if quantization != "fp8":
        return
    version = str(getattr(device, "compute_capability", ""))
    digits = version.split(".")
    known = len(digits) == 2 and all(map(str.isdigit, digits))
    if not known or tuple(map(int, digits)) < _FP8_CAPABILITY:
        found = repr(device.platform) + (f" of compute capability {version}" if version else "")
        raise ValueError(
            "quantization='fp8': expected an NVIDIA GPU of compute capability 8.9 or more (Ada, "
            f"Hopper and later), the platform is {found}, where 'int8' runs"
        )


def compiler_options(quantization: str | None, platform: str) -> dict[str, Any]:
    """Return the compiler options for programs that multiply in 8 bits.

    Args:
      quantization: one of ``QUANTIZATIONS``, or None.
      platform: "cpu", "gpu" or "tpu".
    """
    return dict(_GPU_OPTIONS.get(quantization, {})) if platform == "gpu" else {}
