"""The built site in Chromium: it fits, fetches nothing from others, and axe finds no fault."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytest.importorskip("mkdocs", reason="needs the extra docs")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]

ROOT = Path(__file__).parents[1]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = ("", "quickstart/", "serving/", "files/", "design/", "performance/", "api/embeddings/")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the site, and serve it on loopback."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def visit(open_page: Callable[..., Any], url: str) -> Callable[..., Any]:
    return lambda path, **options: open_page(f"{url}/{path}", **options)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
@pytest.mark.parametrize("path", PAGES)
def test_pages_fit_their_window(visit, path, size):
    page = visit(path, viewport=size)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= size["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "quickstart/"])
def test_axe_finds_no_serious_fault(visit, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(visit(path, color_scheme=scheme)).response["violations"]
    serious = {own["id"]: own["nodes"] for own in found if own["impact"] in ("serious", "critical")}
    nodes = {name: [node["html"] for node in nodes][:3] for name, nodes in serious.items()}
    assert nodes == {}


def test_search_finds_a_page(visit):
    page = visit("")
    page.keyboard.press("/")
    page.keyboard.type("late chunking", delay=20)
    page.wait_for_selector(".md-search-result__item", timeout=20_000)
    assert "late" in page.inner_text(".md-search-result__list").lower()
