"""The package jina-haystack."""

import asyncio

import numpy as np
import pytest
from client_cases import (
    DOCUMENTS,
    KEY,
    NAME,
    QUERY,
    UNKNOWN_KEY,
    UNKNOWN_TASK,
    assert_equal,
    chunk_vectors,
    numbered,
)

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture
def options(server):
    from haystack.utils import Secret

    url = f"{server.url}/v1/embeddings"
    return {"api_key": Secret.from_token(KEY), "base_url": url, "model": NAME}


@pytest.fixture
def document_embedder(options):
    from haystack_integrations.components.embedders.jina import JinaDocumentEmbedder

    return lambda **own: JinaDocumentEmbedder(**options | own, progress_bar=False)


def documents(texts):
    from haystack import Document

    return [Document(content=text) for text in texts]


def test_the_example_of_the_docs(check_example):
    check_example("jina-haystack")


def test_async(options, document_embedder, model):
    from haystack_integrations.components.embedders.jina import JinaTextEmbedder

    found = asyncio.run(JinaTextEmbedder(**options).run_async(QUERY))
    assert_equal(found["embedding"], model.encode(QUERY))
    _, info = model.encode([QUERY], return_info=True)
    tokens = int(sum(info.tokens))
    assert found["meta"] == {
        "model": NAME,
        "usage": {"total_tokens": tokens, "prompt_tokens": tokens},
    }
    found = asyncio.run(document_embedder().run_async(documents(DOCUMENTS)))
    assert_equal([own.embedding for own in found["documents"]], model.encode(DOCUMENTS))


def test_more_texts_than_a_request(document_embedder, model):
    texts = numbered(70)
    found = document_embedder().run(documents(texts))
    vectors = [own.embedding for own in found["documents"]]
    np.testing.assert_allclose(vectors, model.encode(texts), rtol=0, atol=1e-6)
    _, info = model.encode(texts, return_info=True)
    assert found["meta"]["usage"]["prompt_tokens"] == sum(info.tokens)


def test_dimensions_and_late_chunking(document_embedder, model):
    embedder = document_embedder(task="retrieval.passage", dimensions=64, late_chunking=True)
    found = embedder.run(documents(DOCUMENTS))["documents"]
    expected = chunk_vectors(model, DOCUMENTS, task="retrieval.passage", truncate_dim=64)
    assert_equal([own.embedding for own in found], expected)


def test_errors(document_embedder):
    from haystack.utils import Secret

    with pytest.raises(RuntimeError, match=UNKNOWN_TASK):
        document_embedder(task="summary").run(documents(DOCUMENTS))
    with pytest.raises(RuntimeError, match=UNKNOWN_KEY):
        document_embedder(api_key=Secret.from_token("wrong")).run(documents(DOCUMENTS))
