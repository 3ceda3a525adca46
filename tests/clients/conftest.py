"""A server on loopback for released clients, and the examples of docs/serving.md."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from client_cases import DOCUMENTS, KEY, QUERY, assert_equal

from jina_jax import JinaEmbeddings, make_mesh
from jina_jax.serving import Server, run

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> None:
    """Keep clients from reporting their use, and from fetching prices."""
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    os.environ["ANONYMIZED_TELEMETRY"] = "False"
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.fixture(scope="session")
def model() -> JinaEmbeddings:
    return JinaEmbeddings.from_pretrained(
        "tiny", dtype="float32", mesh=make_mesh(1, jax.devices()[:1])
    )


@pytest.fixture(scope="session")
def server(model: JinaEmbeddings) -> Iterator[Server]:
    with run(model, warmup_length=32, api_keys=(KEY,)) as server:
        yield server


@pytest.fixture
def example(server: Server) -> Callable[[str], str]:
    """Read the example of docs/serving.md under a title, with the server's address and key."""

    def read(title: str) -> str:
        text = DOCS.read_text(encoding="utf-8")
        pattern = rf"^### {title}\n(?:(?!^#).)*?^```(?:python|sh)\n(.*?)^```"
        code = re.search(pattern, text, re.DOTALL | re.MULTILINE)
        assert code, f"docs/serving.md has no example of {title}"
        return code[1].replace("http://localhost:8080", server.url).replace("YOUR-KEY", KEY)

    return read


@pytest.fixture
def check_example(example: Callable[[str], str], model: JinaEmbeddings) -> Callable[[str], None]:
    """Run an example in Python; compare its vectors with those of ``encode``."""

    def check(title: str) -> None:
        found: dict[str, Any] = {}
        exec(compile(example(title), f"docs/serving.md: {title}", "exec"), found)
        assert_equal(found["query"], model.encode(QUERY, task="retrieval.query"))
        assert_equal(found["documents"], model.encode(DOCUMENTS, task="retrieval.passage"))

    return check
