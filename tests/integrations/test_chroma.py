"""JinaJaxEmbeddingFunction in Chroma: its vectors are those of the model, in stored collections."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY
from tiny import write_tiny

chromadb = pytest.importorskip("chromadb", reason="needs the extra chroma")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

IDS = ["0", "1", "2", "3"]
REOPEN = """
import sys, chromadb
if len(sys.argv) > 3:
    import jina_jax.integrations.chroma
pages = chromadb.PersistentClient(sys.argv[1]).get_collection("pages")
print(pages.query(query_texts=[sys.argv[2]], n_results=1)["ids"][0][0])
"""


@pytest.fixture(scope="module")
def make():
    from jina_jax.integrations.chroma import JinaJaxEmbeddingFunction

    return JinaJaxEmbeddingFunction


def closed(client):
    """Let the next client of a folder read it anew."""
    client.clear_system_cache()


def test_vectors(make, model):
    own = make("tiny")
    np.testing.assert_array_equal(own(DOCUMENTS), model.encode_document(DOCUMENTS))
    np.testing.assert_array_equal(own.embed_query([QUERY]), model.encode_query([QUERY]))


def test_a_collection(make, model):
    options = {"task": "text-matching", "truncate_dim": 32, "batch_size": 2}
    collection = chromadb.EphemeralClient().create_collection(
        "pages",
        embedding_function=make("tiny", **options),
        configuration={"hnsw": {"space": "ip"}},
    )
    collection.add(ids=IDS, documents=DOCUMENTS)
    expected = model.encode(DOCUMENTS, **options)
    np.testing.assert_array_equal(
        collection.get(IDS, include=["embeddings"])["embeddings"], expected
    )
    found = collection.query(query_texts=[QUERY], n_results=4)
    scores = model.similarity(model.encode([QUERY], **options), expected)[0]
    assert found["ids"][0] == [IDS[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose(found["distances"][0], np.sort(1 - scores), atol=1e-6)


def test_a_collection_that_is_reopened(make, model, tmp_path):
    client = chromadb.PersistentClient(str(tmp_path))
    own = make("tiny", truncate_dim=64)
    client.create_collection("pages", embedding_function=own).add(ids=IDS, documents=DOCUMENTS)
    closed(client)
    pages = chromadb.PersistentClient(str(tmp_path)).get_collection("pages")
    function = pages.configuration["embedding_function"]
    assert type(function) is make
    assert function.get_config() == own.get_config()
    assert pages.configuration["hnsw"]["space"] == "cosine"
    found = pages.query(query_texts=[QUERY], n_results=4, include=["distances"])
    query = model.encode_query([QUERY], truncate_dim=64)
    scores = model.similarity(query, model.encode_document(DOCUMENTS, truncate_dim=64))[0]
    np.testing.assert_allclose(found["distances"][0], np.sort(1 - scores), atol=1e-6)
    pages.add(ids=["4"], documents=["A new page."])
    added = pages.get(["4"], include=["embeddings"])["embeddings"]
    expected = model.encode_document(["A new page."], truncate_dim=64)
    np.testing.assert_allclose(added, expected, atol=1e-7)  # Chroma normalises for the cosine


def test_another_process(make, tmp_path):
    client = chromadb.PersistentClient(str(tmp_path))
    pages = client.create_collection("pages", embedding_function=make("tiny"))
    pages.add(ids=IDS, documents=DOCUMENTS)
    closed(client)
    command = [sys.executable, "-c", REOPEN, str(tmp_path), QUERY]
    done = subprocess.run([*command, "import"], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "jina_jax not found" in done.stderr  # not a model of Chroma's own


def test_queries_of_a_stored_collection_load_nothing(make, monkeypatch):
    from jina_jax import JinaEmbeddings

    config = make("tiny").get_config()
    [vector] = make.build_from_config(config).embed_query([QUERY])
    monkeypatch.setattr(JinaEmbeddings, "from_pretrained", None)
    np.testing.assert_array_equal(make.build_from_config(config).embed_query([QUERY]), [vector])


def test_models_of_stored_collections_are_those_of_their_files(make, tmp_path):
    config = make(write_tiny(tmp_path / "model")).get_config()
    first = weakref.ref(make.build_from_config(config)._encoder.load())
    (tmp_path / "model" / "config.json").touch()
    assert make.build_from_config(config)._encoder.load() is not first()
    gc.collect()
    assert first() is None


def test_a_change_of_arguments(make):
    client = chromadb.EphemeralClient()
    pages = client.create_collection("changed", embedding_function=make("tiny"))
    pages.modify(configuration={"embedding_function": make("tiny", batch_size=2)})
    assert pages.configuration["embedding_function"].get_config()["batch_size"] == 2
    for options, message in (
        ({"task": "separation"}, "task: expected 'auto'.*got 'separation'"),
        ({"truncate_dim": 64}, "truncate_dim: expected None.*got 64"),
        ({"encode_options": {"prompt": "a"}}, "encode_options"),
    ):
        with pytest.raises(ValueError, match=message):
            pages.modify(configuration={"embedding_function": make("tiny", **options)})


def test_arguments_that_cannot_be_stored(make, model):
    with pytest.raises(ValueError, match=r"model: expected a directory.*got JinaEmbeddings"):
        make(model)
    with pytest.raises(ValueError, match=r"unexpected 'token'.*set \$HF_TOKEN"):
        make("tiny", model_options={"token": "hf_secret"})
    with pytest.raises(ValueError, match=r"model_options\['batching'\]: expected a plain value"):
        make("tiny", model_options={"batching": model.batching})


def test_stored_arguments_that_are_refused(make):
    for config, message in (
        ({"task": "auto"}, "expected a dictionary with 'model'"),
        ({"model": "tiny", "colour": 1}, "unexpected 'colour'"),
        ({"model": 3}, "model: expected a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            make.validate_config(config)
