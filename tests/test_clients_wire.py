"""Requests as clients send them, without the clients: see ``tests/clients/record.py``."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import client_of, load

from jina_jax import Batching, JinaEmbeddings
from jina_jax.serving import Server, run

KEY = "secret"
TEXTS = ["At the town hall.", "Closed on Mondays."]
RECORDED = json.loads(Path(__file__).with_name("golden").joinpath("requests.json").read_text())

# Bodies of clients that are not on PyPI or not installed, as their sources make them.
V3 = {"model": "jina-embeddings-v3"}
WRITTEN = {
    "pymilvus, to learn the dimension": {**V3, "input": [""], "task": None},
    "pymilvus": {**V3, "input": TEXTS, "dimensions": None, "late_chunking": False},
    "weaviate": {
        **V3,
        "input": TEXTS,
        "embedding_type": "float",
        "task": "retrieval.passage",
        "dimensions": 64,
    },
    "weaviate, bits": {**V3, "input": TEXTS, "embedding_type": "ubinary", "dimensions": 30},
    "elasticsearch": {**V3, "input": TEXTS, "embedding_type": "float", "task": "separation"},
    "elasticsearch, bits": {
        **V3,
        "input": TEXTS,
        "embedding_type": "binary",
        "task": "retrieval.query",
        "dimensions": 32,
        "late_chunking": True,
    },
    "dify": {**V3, "input": [{"text": own} for own in TEXTS], "task": "retrieval.passage"},
    "dify, one text": {**V3, "input": TEXTS[0], "task": "retrieval.query"},
    "open-webui": {**V3, "input": TEXTS},
    "open-webui, prefix": {**V3, "input": TEXTS, "task": "retrieval.query"},
    "spring-ai": {**V3, "input": TEXTS, "encoding_format": "float", "dimensions": 32, "user": "u"},
    "spring-ai, unset": {**V3, "input": TEXTS, "encoding_format": None, "dimensions": None},
    "opensearch": {"model": "jina-embeddings-v3/retrieval.query", "input": TEXTS},
    "langchain-jina": {
        **V3,
        "input": TEXTS,
        "late_chunking": False,
        "dimensions": 64,
        "task": "retrieval.passage",
        "embedding_type": "float",
    },
    "llama-index": {**V3, "input": TEXTS, "encoding_type": "ubinary"},
}


@pytest.fixture(scope="module")
def model(directory: Path) -> JinaEmbeddings:
    return load(directory, batching=Batching(token_budget=128, row_lengths=(128,)))


@pytest.fixture(scope="module")
def server(model: JinaEmbeddings) -> Iterator[Server]:
    with run(model, warmup_length=16, api_keys=(KEY,)) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def title(row: dict[str, Any]) -> str:
    return f"{row['test']} {row['path']} {row['status']}"


@pytest.mark.parametrize("row", RECORDED, ids=title)
def test_recorded_request(http, model, row):
    body = row["body"]
    reply = http.request(row["method"], row["path"], headers=row["headers"], json=body)
    assert reply.status_code == row["status"], reply.text
    found = reply.json()
    if reply.status_code != 200:
        check_error(found)
    elif row["method"] == "GET":
        assert found["object"] in ("list", "model")
    elif "inputs" in body:
        check_rows(found, body, model)
    else:
        check_embeddings(found, body, model)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_request(http, model, name):
    headers = {"authorization": f"Bearer {KEY}"}
    reply = http.post("/v1/embeddings", headers=headers, json=WRITTEN[name])
    assert reply.status_code == 200, reply.text
    check_embeddings(reply.json(), WRITTEN[name], model)


def test_field_of_a_prefix_that_is_not_known(http):
    body = {**V3, "input": TEXTS, "input_type": "query"}  # open-webui takes any name
    reply = http.post("/v1/embeddings", headers={"authorization": f"Bearer {KEY}"}, json=body)
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "input_type"


def test_kind_of_jina_precedes_that_of_openai(http):
    body = {**V3, "input": TEXTS, "embedding_type": "ubinary", "encoding_format": "base64"}
    reply = http.post("/v1/embeddings", headers={"authorization": f"Bearer {KEY}"}, json=body)
    assert reply.headers["x-ignored-fields"] == "encoding_format"
    assert {type(own) for own in reply.json()["data"][0]["embedding"]} == {int}


def check_error(found: dict[str, Any]) -> None:
    """Check that Jina's clients and OpenAI's find the message."""
    assert isinstance(found["detail"], str)
    assert found["error"]["message"] == found["detail"]
    assert isinstance(found["code"], str)
    assert found["request_id"]


def check_rows(found: list[Any], body: dict[str, Any], model: JinaEmbeddings) -> None:
    texts = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
    options = {"normalize_embeddings": body.get("normalize", True)}
    check_vectors(found, texts, body, model, task=body.get("prompt_name"), **options)


def check_embeddings(found: dict[str, Any], body: dict[str, Any], model: JinaEmbeddings) -> None:
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    texts = [own["text"] if isinstance(own, dict) else own for own in given]
    assert found["object"] == "list"
    assert found["model"] == body["model"]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 0
    assert [row["index"] for row in found["data"]] == list(range(len(texts)))
    assert {row["object"] for row in found["data"]} == {"embedding"}
    kind = next(
        (
            own
            for name in ("embedding_type", "encoding_type", "encoding_format")
            if (own := body.get(name))
        ),
        "float",
    )
    dim = body.get("dimensions") or model.config.hidden_size
    rows = [row["embedding"] for row in found["data"]]
    if kind in ("binary", "ubinary"):
        low = -128 if kind == "binary" else 0
        assert all(len(own) == -(-dim // 8) for own in rows)
        assert all(isinstance(v, int) and low <= v < low + 256 for own in rows for v in own)
        return
    if kind == "base64":
        rows = [np.frombuffer(base64.b64decode(own), "<f4") for own in rows]
    if body.get("late_chunking"):
        assert np.shape(rows) == (len(texts), dim)
        return
    task = body.get("task") or body["model"].partition("/")[2] or None
    options = {"normalize_embeddings": body.get("normalized") is not False}
    check_vectors(rows, texts, body, model, task=task, **options)


def check_vectors(
    rows: list[Any], texts: list[str], body: dict[str, Any], model: JinaEmbeddings, **options: Any
) -> None:
    expected = model.encode(texts, truncate_dim=body.get("dimensions"), **options)
    np.testing.assert_allclose(np.asarray(rows, np.float32), expected, rtol=0, atol=1e-6)
