"""JinaJaxEmbedding in LlamaIndex: its vectors are those of the model, in indexes and pipelines."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY

from jina_jax import JinaEmbeddings

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def make():
    from jina_jax.integrations.llama_index import JinaJaxEmbedding

    return JinaJaxEmbedding


@pytest.fixture(scope="module")
def embedding(make):
    return make("tiny")


def test_vectors(embedding, model):
    documents = model.encode_document(DOCUMENTS).tolist()
    query = model.encode_query(QUERY).tolist()
    assert embedding.get_query_embedding(QUERY) == query
    assert embedding.get_text_embedding_batch(DOCUMENTS) == documents
    document = model.encode_document(DOCUMENTS[0]).tolist()
    assert embedding.get_text_embedding(DOCUMENTS[0]) == document

    async def embed():
        return await asyncio.gather(
            embedding.aget_query_embedding(QUERY),
            embedding.aget_text_embedding(DOCUMENTS[0]),
            embedding.aget_text_embedding_batch(DOCUMENTS),
        )

    assert asyncio.run(embed()) == [query, document, documents]


def test_batches_of_llama_index(make, model):
    texts = [f"Page {number}" for number in range(7)]
    found = make(model, embed_batch_size=3).get_text_embedding_batch(texts)
    expected = [model.encode_document(texts[k : k + 3]) for k in (0, 3, 6)]
    assert found == np.concatenate(expected).tolist()


def test_an_index(embedding, model):
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(DOCUMENTS)]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    stored = index.vector_store.data.embedding_dict
    assert [stored[str(i)] for i in range(4)] == model.encode_document(DOCUMENTS).tolist()
    retriever = index.as_retriever(similarity_top_k=4)
    scores = model.similarity(model.encode_query([QUERY]), model.encode_document(DOCUMENTS))[0]
    for found in (retriever.retrieve(QUERY), asyncio.run(retriever.aretrieve(QUERY))):
        assert [int(node.node_id) for node in found] == np.argsort(-scores).tolist()
        np.testing.assert_allclose([node.score for node in found], -np.sort(-scores), atol=1e-6)
    assert found[0].text == DOCUMENTS[2]


def test_a_pipeline_reads_its_cache_for_the_same_arguments(make, model, monkeypatch):
    from llama_index.core import Document
    from llama_index.core.ingestion import IngestionPipeline

    pages = [Document(text=text) for text in DOCUMENTS]
    pipeline = IngestionPipeline(transformations=[make("tiny")])
    nodes = pipeline.run(documents=pages)
    assert [node.embedding for node in nodes] == model.encode_document(DOCUMENTS).tolist()
    others = [make("tiny"), make("tiny", truncate_dim=64)]

    def fail(*args, **options):
        raise RuntimeError("encoded again")

    monkeypatch.setattr(JinaEmbeddings, "encode_document", fail)
    pipeline.transformations = others[:1]
    assert pipeline.run(documents=pages) == nodes
    pipeline.transformations = others[1:]
    with pytest.raises(RuntimeError, match="encoded again"):
        pipeline.run(documents=pages)


def test_a_symmetric_task_and_options(make, model):
    options = {"truncate_dim": 32, "batch_size": 2}
    further = {"normalize_embeddings": False}
    embedding = make(model, task="text-matching", **options, encode_options=further)
    expected = model.encode(DOCUMENTS, task="text-matching", **options, **further)
    assert embedding.get_text_embedding_batch(DOCUMENTS) == expected.tolist()
    query = model.encode(QUERY, task="text-matching", **options, **further)
    assert embedding.get_query_embedding(QUERY) == query.tolist()


def test_stored_arguments(make):
    own = make("tiny", task="separation", truncate_dim=64, embed_batch_size=9, num_workers=2)
    assert own.to_dict() == {
        "model_name": "tiny",
        "task": "separation",
        "truncate_dim": 64,
        "batch_size": None,
        "model_options": {},
        "encode_options": {},
        "embed_batch_size": 9,
        "num_workers": 2,
        "embeddings_cache": None,
        "class_name": "JinaJaxEmbedding",
    }
    for other in (
        make.from_dict(own.to_dict()),
        make.from_json(own.to_json()),
        pickle.loads(pickle.dumps(own)),
        copy.deepcopy(own),
    ):
        assert other.to_dict() == own.to_dict()
        assert other._encoder.load() is own._encoder.load()
        assert other.get_query_embedding(QUERY) == own.get_query_embedding(QUERY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", "other"),
        ("task", "separation"),
        ("truncate_dim", 64),
        ("batch_size", 2),
        ("model_options", {"dtype": "bfloat16"}),
        ("encode_options", {"long_text": "windows"}),
    ],
)
def test_arguments_do_not_change(embedding, field, value):
    before = embedding.to_dict()
    with pytest.raises(ValueError, match=f"(?s){field}.*frozen"):
        setattr(embedding, field, value)
    assert embedding.to_dict() == before


def test_a_model_that_is_an_object(make, model):
    own = make(model)
    with pytest.raises(ValueError, match="model: expected a directory, a Hub id or 'tiny'"):
        own.to_dict()
    assert copy.deepcopy(own)._encoder.load() is model
    copied = pickle.loads(pickle.dumps(own))
    assert copied.get_query_embedding(QUERY) == own.get_query_embedding(QUERY)


def test_a_cache_has_one_task(make, model):
    from llama_index.core.storage.kvstore import SimpleKVStore

    with pytest.raises(ValueError, match="embeddings_cache: expected None with task='auto'"):
        make(model, embeddings_cache=SimpleKVStore())
    own = make(model, task="text-matching", embeddings_cache=SimpleKVStore())
    expected = model.encode(QUERY, task="text-matching").tolist()
    assert own.get_query_embedding(QUERY) == expected
    assert own.get_text_embedding(QUERY) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "summary"}, "summary"),
        ({"truncate_dim": 1000}, "truncate_dim=1000"),
        ({"embed_batch_size": 0}, "embed_batch_size"),
    ],
)
def test_errors_when_it_is_made(make, model, options, message):
    with pytest.raises(ValueError, match=message):
        make(model, **options)
