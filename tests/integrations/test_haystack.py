"""The embedders of Haystack: their vectors are those of the model, in pipelines that are stored."""

import asyncio

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY

pytest.importorskip("haystack", reason="needs the extra haystack")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def embedders():
    from jina_jax.integrations.haystack import JinaJaxDocumentEmbedder, JinaJaxTextEmbedder

    return JinaJaxTextEmbedder, JinaJaxDocumentEmbedder


def documents(**meta):
    from haystack import Document

    return [Document(id=str(i), content=text, meta=meta) for i, text in enumerate(DOCUMENTS)]


def vectors(found):
    return [document.embedding for document in found["documents"]]


def test_vectors(embedders, model):
    text, document = (make("tiny") for make in embedders)
    query, expected = model.encode_query(QUERY).tolist(), model.encode_document(DOCUMENTS).tolist()
    assert text.run(QUERY) == {"embedding": query}
    assert asyncio.run(text.run_async(QUERY)) == {"embedding": query}
    given = documents()
    found = document.run(given)
    assert vectors(found) == expected
    assert [own.embedding for own in given] == [None] * 4
    assert vectors(asyncio.run(document.run_async(given))) == expected
    assert document.run([]) == {"documents": []}


def test_fields_of_metadata(embedders, model):
    from haystack import Document

    own = embedders[1](
        model, meta_fields_to_embed=["title", "year"], embedding_separator=" | ", task="separation"
    )
    found = own.run(
        [
            Document(content="Open daily.", meta={"title": "Museum", "year": 1900, "city": "Bonn"}),
            Document(content="Open daily.", meta={"title": None}),
            Document(meta={"year": 0}),
        ]
    )
    texts = ["Museum | 1900 | Open daily.", "Open daily.", "0 | "]
    assert vectors(found) == model.encode(texts, task="separation").tolist()


@pytest.fixture
def store():
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    return InMemoryDocumentStore(embedding_similarity_function="cosine")


def test_pipelines_that_are_stored(embedders, model, store):
    from haystack import Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.components.writers import DocumentWriter

    text, document = embedders
    indexing, search = Pipeline(), Pipeline()
    indexing.add_component("embedder", document("tiny", progress_bar=False))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing.run({"embedder": {"documents": documents()}})
    search.add_component("embedder", text("tiny"))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store))
    search.connect("embedder.embedding", "retriever.query_embedding")
    found = search.run({"embedder": {"text": QUERY}})["retriever"]["documents"]
    scores = model.similarity(model.encode_query([QUERY]), model.encode_document(DOCUMENTS))[0]
    assert [int(own.id) for own in found] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([own.score for own in found], -np.sort(-scores), atol=1e-6)
    assert found[0].content == DOCUMENTS[2]

    for pipeline in (indexing, search):
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=["jina_jax.integrations.*"])
        own = again.get_component("embedder")
        assert own.to_dict() == pipeline.get_component("embedder").to_dict()
        again.warm_up()
        assert own._encoder.load() is pipeline.get_component("embedder")._encoder.load()


def test_stored_arguments(embedders):
    shared = {
        "model": "tiny",
        "task": "text-matching",
        "truncate_dim": 32,
        "batch_size": 8,
        "model_options": {"dtype": "float32"},
        "encode_options": {"long_text": "windows"},
    }
    own = {"meta_fields_to_embed": ["a"], "embedding_separator": " ", "progress_bar": False}
    for make, options in zip(embedders, (shared, shared | own), strict=True):
        stored = make(**options).to_dict()
        assert stored["init_parameters"] == options
        assert stored["type"] == f"jina_jax.integrations.haystack.{make.__name__}"
        assert make.from_dict(stored).to_dict() == stored


def test_arguments_that_are_not_stored(embedders, model):
    for make in embedders:
        for arguments, message in (
            ({"model": model}, "model: expected a directory"),
            ({"model": "tiny", "model_options": {"token": "hf_secret"}}, "unexpected 'token'"),
            ({"model": "tiny", "encode_options": {"prompt": b"a"}}, "encode_options.'prompt'.:"),
        ):
            with pytest.raises(ValueError, match=message):
                make(**arguments).to_dict()


def test_errors(embedders, model):
    text, document = embedders
    with pytest.raises(ValueError, match="summary"):
        text("tiny", task="summary").warm_up()
    with pytest.raises(TypeError, match="JinaJaxDocumentEmbedder"):
        text(model).run(documents())
    with pytest.raises(TypeError, match="JinaJaxTextEmbedder"):
        document(model).run(QUERY)
    with pytest.raises(TypeError, match="JinaJaxTextEmbedder"):
        document(model).run([QUERY])
    with pytest.raises(ValueError, match="meta_fields_to_embed='title'"):
        document(model, meta_fields_to_embed="title")
