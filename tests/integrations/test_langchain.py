"""JinaJaxEmbeddings in LangChain: its vectors are those of the model, in stores and chains."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY

pytest.importorskip("langchain_core", reason="needs the extra langchain")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def embeddings():
    from jina_jax.integrations.langchain import JinaJaxEmbeddings

    return JinaJaxEmbeddings("tiny")


def test_vectors(embeddings, model):
    assert embeddings.embed_documents(DOCUMENTS) == model.encode_document(DOCUMENTS).tolist()
    assert embeddings.embed_query(QUERY) == model.encode_query(QUERY).tolist()
    assert embeddings.embed_documents([]) == []


def test_async_calls_leave_the_loop_free(embeddings, model, monkeypatch):
    import threading

    threads = set()
    kind = type(embeddings._encoder)
    inner = kind.queries

    def queries(self, *args):
        threads.add(threading.current_thread())
        return inner(self, *args)

    monkeypatch.setattr(kind, "queries", queries)

    async def embed():
        return await asyncio.gather(
            embeddings.aembed_query(QUERY), embeddings.aembed_documents(DOCUMENTS)
        )

    query, documents = asyncio.run(embed())
    assert query == model.encode_query(QUERY).tolist()
    assert documents == model.encode_document(DOCUMENTS).tolist()
    assert threads
    assert threading.main_thread() not in threads


def test_a_retriever(embeddings, model):
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(text, id=str(i)) for i, text in enumerate(DOCUMENTS)])
    scores = model.similarity(model.encode_query([QUERY]), model.encode_document(DOCUMENTS))[0]
    found = store.similarity_search_with_score(QUERY, k=4)
    assert [int(document.id) for document, _ in found] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([score for _, score in found], -np.sort(-scores), atol=1e-6)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert retriever.invoke(QUERY)[0].page_content == DOCUMENTS[2]
    assert asyncio.run(retriever.ainvoke(QUERY))[0].page_content == DOCUMENTS[2]
    assert store.max_marginal_relevance_search(QUERY, k=2)[0].page_content == DOCUMENTS[2]


def test_a_symmetric_task_and_options(model):
    from jina_jax.integrations.langchain import JinaJaxEmbeddings

    options = {"truncate_dim": 32, "batch_size": 2}
    embeddings = JinaJaxEmbeddings(
        model, task="text-matching", **options, encode_options={"normalize_embeddings": False}
    )
    expected = model.encode(
        DOCUMENTS, task="text-matching", normalize_embeddings=False, **options
    ).tolist()
    assert embeddings.embed_documents(DOCUMENTS) == expected
    query = model.encode(
        DOCUMENTS[0], task="text-matching", normalize_embeddings=False, **options
    ).tolist()
    assert embeddings.embed_query(DOCUMENTS[0]) == query


def test_copies_have_the_name_and_share_the_model(embeddings):
    assert len(pickle.dumps(embeddings)) < 1000
    for other in (copy.deepcopy(embeddings), pickle.loads(pickle.dumps(embeddings))):
        assert other._encoder.load() is embeddings._encoder.load()
        assert repr(other) == "JinaJaxEmbeddings('tiny')"


def test_errors_when_it_is_made(model):
    from jina_jax.integrations.langchain import JinaJaxEmbeddings

    for options, message in (
        ({"task": "summary"}, "summary"),
        ({"truncate_dim": 1000}, "truncate_dim=1000"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            JinaJaxEmbeddings(model, **options)
