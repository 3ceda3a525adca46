"""Requests as clients of others send them, without the clients.

Those of released clients were recorded by ``tests/clients/record.py``; the others are written after
the sources of clients that cannot be installed here.
"""

import json
from pathlib import Path

import pytest
from serving import load, serve

KEY = "secret"
RECORDED = json.loads(
    (Path(__file__).parent / "golden" / "requests.json").read_text(encoding="utf-8")
)
# The client → the fields beside model that its source sends.
WRITTEN = {
    "weaviate": {"input": ["a", "b"], "embedding_type": "float", "task": "retrieval.passage"},
    "weaviate, binary": {"input": ["a"], "embedding_type": "ubinary", "dimensions": 64},
    "elasticsearch": {
        "input": ["a"],
        "embedding_type": "binary",
        "task": "text-matching",
        "late_chunking": False,
    },
    "pymilvus": {"input": [""], "task": None, "dimensions": None, "late_chunking": False},
    "dify": {"input": [{"text": "a"}], "task": "retrieval.query"},
    "open-webui": {"input": ["a", "b"]},
    "spring-ai": {"input": ["a"], "encoding_format": "float", "user": "me"},
    "langchain-jina": {
        "input": ["a"],
        "task": "retrieval.query",
        "dimensions": 64,
        "late_chunking": False,
        "embedding_type": "float",
    },
}


@pytest.fixture(scope="module")
def client(directory):
    model = load(directory)
    names = ("jina-embeddings-v3", "m")
    with serve(model, served_names=names, api_keys=(KEY,)) as (_, client):
        yield client


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row['test']}-{row['status']}")
def test_recorded_requests(client, row):
    body, dim = row["body"], 64  # the model here is smaller than the one that was recorded
    if body is not None and body.get("dimensions", 0) and row["status"] == 200:
        body = {**body, "dimensions": min(body["dimensions"], dim)}
    reply = client.request(row["method"], row["path"], headers=row["headers"], json=body)
    assert reply.status_code == row["status"], reply.text
    found = reply.json()
    if reply.status_code != 200:
        assert found["detail"] == found["error"]["message"]
    elif isinstance(found, dict) and "input" in (body or {}):
        given = body["input"]
        assert len(found["data"]) == (len(given) if isinstance(given, list) else 1)
        assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("name", WRITTEN)
def test_requests_after_sources(client, name):
    body = {"model": "jina-embeddings-v3", **WRITTEN[name]}
    headers = {"authorization": f"Bearer {KEY}"}
    reply = client.post("/v1/embeddings", headers=headers, json=body)
    assert reply.status_code == 200, reply.text
    rows = reply.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(body["input"])))
    bits = body.get("embedding_type") in ("binary", "ubinary")
    kinds = {type(value) for row in rows for value in row["embedding"]}
    assert kinds == ({int} if bits else {float})
    assert {len(row["embedding"]) for row in rows} == {8 if bits else 64}
