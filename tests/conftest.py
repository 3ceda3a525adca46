"""Settings of all tests: strict dtype promotion, no network, no traces."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[2] / "shared"))

_CACHE = tempfile.TemporaryDirectory()


def pytest_configure() -> None:
    """Set what must be set before the test files are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["JINA_JAX_CACHE"] = _CACHE.name
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def untold() -> Iterator[None]:
    """Let the warning that no model was named, which comes once a process, come in this test."""
    from jina_jax import hub

    hub._tell_unnamed.cache_clear()
    yield
    hub._tell_unnamed.cache_clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the public data in {SHARED} (or in $JINA_JAX_SHARED)")
    return SHARED
