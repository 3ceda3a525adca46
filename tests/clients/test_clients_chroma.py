"""JinaEmbeddingFunction of the package chromadb."""

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

pytestmark = [pytest.mark.clients_slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def function(server):
    from chromadb.utils.embedding_functions import JinaEmbeddingFunction

    def make(**options):
        found = JinaEmbeddingFunction(**{"api_key": KEY, "model_name": NAME} | options)
        found._api_url = f"{server.url}/v1/embeddings"
        return found

    return make


def test_the_example_of_the_docs(check_example, monkeypatch):
    monkeypatch.setenv("JINA_API_KEY", "")  # removed again at the end
    check_example("chromadb")


def test_all_options(function, model):
    own = function(
        task="separation",
        truncate=True,
        dimensions=64,
        embedding_type="float",
        normalized=False,
        late_chunking=False,
    )
    options = {"task": "separation", "truncate_dim": 64, "normalize_embeddings": False}
    assert_equal(own(DOCUMENTS), model.encode(DOCUMENTS, **options))


def test_late_chunking(function, model):
    own = function(task="retrieval.passage", late_chunking=True)
    assert_equal(own(DOCUMENTS), chunk_vectors(model, DOCUMENTS, task="retrieval.passage"))


def test_bits(function, model):
    found = np.asarray(function(embedding_type="ubinary")(DOCUMENTS))
    np.testing.assert_array_equal(found, np.packbits(model.encode(DOCUMENTS) > 0, axis=-1))


def test_a_collection(function, model):
    import chromadb

    own = function(task="retrieval.passage", query_config={"task": "retrieval.query"})
    texts = numbered(300)
    collection = chromadb.EphemeralClient().create_collection("pages", embedding_function=own)
    collection.add(ids=texts, documents=texts)
    found = collection.query(query_texts=["Page 7"], n_results=3, include=["distances"])
    query = model.encode(["Page 7"], task="retrieval.query")
    documents = model.encode(texts, task="retrieval.passage")
    expected = np.square(documents - query).sum(-1)
    np.testing.assert_allclose(found["distances"][0], np.sort(expected)[:3], atol=1e-5)


def test_errors(function):
    with pytest.raises(RuntimeError, match=UNKNOWN_TASK):
        function(task="summary")(DOCUMENTS)
    with pytest.raises(RuntimeError, match=UNKNOWN_KEY):
        function(api_key="wrong")(DOCUMENTS)
    with pytest.raises(RuntimeError, match=r"input\[1\].*text"):
        function()([QUERY, np.zeros((2, 2, 3), np.uint8)])
