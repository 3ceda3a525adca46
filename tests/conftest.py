"""Settings of all tests: strict dtype and rank promotion, no network, no traces."""

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest

if TYPE_CHECKING:
    from jina_jax import JinaEmbeddings

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[2] / "shared"))

_CACHE = tempfile.TemporaryDirectory()


def pytest_configure() -> None:
    """Set what must be set before the test files are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["JINA_JAX_CACHE"] = _CACHE.name
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, for one
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights in the published layout, with a tokenizer."""
    from tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(directory: Path) -> "JinaEmbeddings":
    from jina_jax import JinaEmbeddings

    return JinaEmbeddings.from_pretrained(directory)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the public data in {SHARED} (or in $JINA_JAX_SHARED)")
    return SHARED
