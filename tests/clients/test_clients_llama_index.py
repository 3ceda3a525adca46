"""The package llama-index-embeddings-jinaai."""

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
    assert_bits,
    assert_equal,
    chunk_vectors,
    numbered,
)

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture
def embedding(server):
    from llama_index.embeddings.jinaai import JinaEmbedding

    def make(**options):
        found = JinaEmbedding(**{"api_key": KEY, "model": NAME} | options)
        found._api.api_url = f"{server.url}/v1/embeddings"
        return found

    return make


def test_the_example_of_the_docs(check_example):
    check_example("llama-index-embeddings-jinaai")


def test_async(embedding, model):
    own = embedding(task="retrieval.query")
    expected = model.encode(QUERY, task="retrieval.query")
    assert_equal(asyncio.run(own.aget_query_embedding(QUERY)), expected)
    found = asyncio.run(own.aget_text_embedding_batch(DOCUMENTS))
    assert_equal(found, model.encode(DOCUMENTS, task="retrieval.query"))


def test_more_texts_than_a_request(embedding, model):
    texts = numbered(25)
    found = embedding(embed_batch_size=10).get_text_embedding_batch(texts)
    np.testing.assert_allclose(found, model.encode(texts), rtol=0, atol=1e-6)


def test_dimensions_and_late_chunking(embedding, model):
    own = embedding(task="retrieval.passage", dimensions=64, late_chunking=True)
    expected = chunk_vectors(model, DOCUMENTS, task="retrieval.passage", truncate_dim=64)
    assert_equal(own.get_text_embedding_batch(DOCUMENTS), expected)


@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_bits(embedding, model, kind):
    own = embedding(encoding_queries=kind, encoding_documents=kind)
    assert_bits(own.get_query_embedding(QUERY), model.encode(QUERY))
    assert_bits(own.get_text_embedding_batch(DOCUMENTS), model.encode(DOCUMENTS))


def test_errors(embedding):
    import aiohttp

    with pytest.raises(RuntimeError, match=UNKNOWN_TASK):
        embedding(task="summary").get_query_embedding(QUERY)
    with pytest.raises(RuntimeError, match=UNKNOWN_KEY):
        embedding(api_key="wrong").get_text_embedding(QUERY)
    with pytest.raises(aiohttp.ClientResponseError, match="422"):  # it reads no message
        asyncio.run(embedding(task="summary").aget_query_embedding(QUERY))
