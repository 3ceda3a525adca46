"""Settings of all tests: strict dtype and rank promotion, no network, no traces."""

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import jax
import pytest
from xla_flags import FLAGS

if TYPE_CHECKING:
    from jina_jax import JinaEmbeddings

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[2] / "shared"))

_CACHE = tempfile.TemporaryDirectory()


def pytest_configure(config: pytest.Config) -> None:
    """Set what must be set before the test files are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["JINA_JAX_CACHE"] = _CACHE.name
    if not hasattr(config, "workerinput"):  # workers inherit the flags
        _compile_quickly()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, for one
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_finish() -> None:
    """Leave the libraries out of all later collections of garbage; the library asks for some."""
    gc.collect()
    gc.freeze()


def _compile_quickly() -> None:
    """Set XLA's flags for this process and all that it starts, unless the release lacks one."""
    accelerators = any(map(importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin")))
    if accelerators or os.environ.get("JINA_JAX_OPTIMIZED_TESTS"):
        return  # the flags would be those of accelerators, too
    flags = " ".join(f"--{name}={value}".lower() for name, value, _ in FLAGS)
    environment = {**os.environ, "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}"}
    parse = [sys.executable, "-c", "from jaxlib import xla_client as xla; xla.CompileOptions()"]
    # With an unknown flag XLA ends the process.
    if subprocess.run(parse, env=environment, capture_output=True).returncode == 0:
        os.environ["XLA_FLAGS"] = environment["XLA_FLAGS"]


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


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    with api.sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, whom containers run as.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open addresses; at the end, compare their requests and console with what is allowed."""
    contexts, messages, hosts = [], [], set()

    def open_page(address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(address)
        page.wait_for_load_state("networkidle")
        return page

    open_page.messages = messages
    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    assert hosts == {"127.0.0.1"}
