"""Facts about the machine, for ``jina-jax info --devices``."""

from __future__ import annotations

from typing import Any

import jax
import jaxlib

from jina_jax.cache import cache_folder, programs_folder, programs_in_use
from jina_jax.cli.report import columns
from jina_jax.nn.kernels import IMPLEMENTATIONS, choose
from jina_jax.runtime.batching import DEFAULTS
from jina_jax.runtime.compiling import platform_of

_HEAD_DIM = 64  # of the published model
_LENGTHS = (128, 512, 2048, 8192)
_ROWS = {"one text per row": 1, "packed rows": 8}  # kind → texts per row
_DTYPES = ("bfloat16", "float32")
_NO_FOLDER = "none (no home; set JINA_JAX_CACHE)"


def describe() -> dict[str, Any]:
    """Collect the devices that JAX found and the kernels that run on them, as JSON values."""
    platform = platform_of(jax.numpy.zeros(()))
    kernels = {
        name: {dtype: _refusal(platform, dtype, name) for dtype in _DTYPES}
        for name in IMPLEMENTATIONS
    }
    chosen = {
        f"{dtype}, {kind}": {
            length: choose(platform, dtype, length, texts, _HEAD_DIM).name for length in _LENGTHS
        }
        for dtype in _DTYPES
        for kind, texts in _ROWS.items()
    }
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": platform,
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "attention": kernels,
        "chosen": chosen,
        "batching": DEFAULTS[platform]._asdict(),
        "cache": str(cache_folder() or _NO_FOLDER),
        "compilation_cache": programs_in_use() or str(programs_folder() or _NO_FOLDER),
    }


def as_text(facts: dict[str, Any]) -> str:
    """Lay out the facts of ``describe`` for reading."""
    batching = ", ".join(f"{name} {value}" for name, value in facts["batching"].items())
    lines = [
        ("jax", f"{facts['jax']}, jaxlib {facts['jaxlib']}"),
        ("platform", f"{facts['platform']}, {facts['processes']} process(es)"),
        *(("device", kind) for kind in facts["devices"]),
        *(
            (f"kernel {name}", "; ".join(f"{dtype}: {why or 'runs'}" for dtype, why in by.items()))
            for name, by in facts["attention"].items()
        ),
        *(
            (f"used for {rows}", ", ".join(f"{t} tokens {name}" for t, name in by.items()))
            for rows, by in facts["chosen"].items()
        ),
        ("batching", batching),
        ("cache", facts["cache"]),
        ("programs", facts["compilation_cache"]),
    ]
    return columns(lines)


def _refusal(platform: str, dtype: str, name: str) -> str | None:
    """Return the reason why a kernel cannot run here, or None if it can."""
    try:
        choose(platform, dtype, _LENGTHS[-1], 1, _HEAD_DIM, None, name)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None
