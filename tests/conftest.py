"""Settings of all tests: strict dtype promotion, no network, no progress bars."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the public data in {SHARED} (or in $JINA_JAX_SHARED)")
    return SHARED
