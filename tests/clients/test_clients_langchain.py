"""The packages langchain-openai and langchain-community."""

import asyncio
from types import SimpleNamespace

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
    numbered,
)

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture
def openai_embeddings(server):
    from langchain_openai import OpenAIEmbeddings

    def make(**options):
        usual = {"api_key": KEY, "model": NAME, "check_embedding_ctx_length": False}
        return OpenAIEmbeddings(base_url=f"{server.url}/v1", **usual | options)

    return make


@pytest.fixture
def jina_embeddings(server, monkeypatch):
    from langchain_community.embeddings import JinaEmbeddings, jina

    monkeypatch.setattr(jina, "JINA_API_URL", f"{server.url}/v1/embeddings")

    def make(**options):
        return JinaEmbeddings(**{"jina_api_key": KEY, "model_name": NAME} | options)

    return make


@pytest.mark.parametrize("title", ["langchain-openai", "langchain-community"])
def test_the_example_of_the_docs(check_example, title):
    check_example(title)


def test_task_and_dimensions_by_openai(openai_embeddings, model):
    embeddings = openai_embeddings(
        dimensions=64, model_kwargs={"extra_body": {"task": "separation"}}
    )
    found = embeddings.embed_documents(DOCUMENTS)
    assert_equal(found, model.encode(DOCUMENTS, task="separation", truncate_dim=64))


def test_async_by_openai(openai_embeddings, model):
    embeddings = openai_embeddings()

    async def embed():
        return await asyncio.gather(
            embeddings.aembed_query(QUERY), embeddings.aembed_documents(DOCUMENTS)
        )

    query, documents = asyncio.run(embed())
    np.testing.assert_allclose(query, model.encode(QUERY), rtol=0, atol=1e-6)
    np.testing.assert_allclose(documents, model.encode(DOCUMENTS), rtol=0, atol=1e-6)


def test_more_texts_than_a_request_of_openai(openai_embeddings, model):
    texts = numbered(1001)
    found = openai_embeddings().embed_documents(texts)
    np.testing.assert_allclose(found, model.encode(texts), rtol=0, atol=1e-6)


def test_an_empty_text_by_openai(openai_embeddings, model):
    assert_equal(openai_embeddings().embed_query(""), model.encode(""))


def test_token_ids_of_openai_are_refused(openai_embeddings, monkeypatch):
    import openai
    import tiktoken

    vocabulary = SimpleNamespace(encode_ordinary=lambda text: [1, 2], encode=lambda text: [1, 2])
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: vocabulary)
    embeddings = openai_embeddings(check_embedding_ctx_length=True)
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        embeddings.embed_documents(DOCUMENTS)


def test_errors_by_openai(openai_embeddings):
    import openai

    unknown = openai_embeddings(model_kwargs={"extra_body": {"task": "summary"}})
    with pytest.raises(openai.UnprocessableEntityError, match=UNKNOWN_TASK):
        unknown.embed_query(QUERY)
    with pytest.raises(openai.AuthenticationError, match=UNKNOWN_KEY):
        openai_embeddings(api_key="wrong").embed_query(QUERY)


def test_no_task_by_jina(jina_embeddings, model):
    embeddings = jina_embeddings()
    assert_equal(embeddings.embed_query(QUERY), model.encode(QUERY))
    assert_equal(asyncio.run(embeddings.aembed_documents(DOCUMENTS)), model.encode(DOCUMENTS))


def test_many_texts_by_jina(jina_embeddings, model):
    texts = numbered(1001)
    found = jina_embeddings().embed_documents(texts)
    np.testing.assert_allclose(found, model.encode(texts), rtol=0, atol=1e-6)


def test_errors_by_jina(jina_embeddings):
    with pytest.raises(RuntimeError, match=UNKNOWN_KEY):
        jina_embeddings(jina_api_key="wrong").embed_query(QUERY)
    with pytest.raises(RuntimeError, match=r"model: expected one of .*v3/summary"):
        jina_embeddings(model_name=f"{NAME}/summary").embed_query(QUERY)
    with pytest.raises(RuntimeError, match=r"input\[0\].*text"):
        jina_embeddings().embed_images(["https://example.org/cat.png"])
