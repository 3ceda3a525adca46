"""Libraries that take a SentenceTransformer: they use ours, and the page's examples run."""

import importlib
import sys
import types

import numpy as np
import pytest
from page_examples import output_of, run_section, sections_with_examples

st = pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

PAGE = "sentence-transformers.md"
EXAMPLES = {
    "Evaluators": "sentence_transformers",
    "BERTopic": "bertopic",
    "KeyBERT": "keybert",
    "SetFit": "setfit",
    "txtai": "txtai",
    "semantic-router": "semantic_router",
}


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Keep libraries from asking the Hub for other models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def names(offline):
    """Return the names that the page's first example makes."""
    module = types.ModuleType("page")
    sys.modules["page"] = module
    assert run_section(PAGE, "Use", vars(module)) == output_of(PAGE, "Use")
    yield vars(module)
    del sys.modules["page"]


def test_all_sections_are_run():
    assert sections_with_examples(PAGE) == ["Use", *EXAMPLES]


@pytest.mark.parametrize(("title", "module"), EXAMPLES.items())
def test_example(title, module, names):
    pytest.importorskip(module, reason=f"needs {module}")
    assert run_section(PAGE, title, names) == output_of(PAGE, title)


@pytest.fixture
def loaded(monkeypatch):
    """Return the names of the models that a library loads instead of the one that it was given."""
    found = []

    class Recorder(st.SentenceTransformer):
        def __init__(self, name):
            found.append(name)
            raise OSError("offline")

    def watch(module):
        monkeypatch.setattr(f"{module}.SentenceTransformer", Recorder)
        return found

    return watch


def backend_of(library):
    pytest.importorskip(library, reason=f"needs {library}")
    return importlib.import_module(f"{library}.backend._utils").select_backend


@pytest.mark.parametrize("library", ["bertopic", "keybert"])
def test_a_model_that_is_unknown_is_replaced_in_silence(library, model, loaded):
    """What these libraries do with ``JinaEmbeddings``, and why the class is a real subclass."""
    select = backend_of(library)
    found = loaded(f"{library}.backend._sentencetransformers")
    with pytest.raises(OSError, match="offline"):
        select(model)
    assert len(found) == 1
    assert "MiniLM" in found[0]


@pytest.mark.parametrize("library", ["bertopic", "keybert"])
def test_ours_is_used(library, names):
    select, body = backend_of(library), names["model"]
    backend = select(body)
    assert backend.embedding_model is body
    texts = names["documents"]
    np.testing.assert_array_equal(backend.embed(texts), body.embedder.encode(texts))


def test_scores_of_keybert(names):
    keybert = pytest.importorskip("keybert", reason="needs keybert")
    body, text = names["model"], "The violin is a wooden string instrument."
    for word, score in keybert.KeyBERT(body).extract_keywords(text):
        expected = body.embedder.encode(text) @ body.embedder.encode(word)
        assert score == pytest.approx(float(expected), abs=1e-3)


def test_vectors_of_setfit_and_its_refusals(names, tmp_path):
    setfit = pytest.importorskip("setfit", reason="needs setfit")
    linear_model = pytest.importorskip("sklearn.linear_model")
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    body, texts = names["model"], names["documents"]
    labels = [0] * 5 + [1] * 5 + [2] * 5
    head = linear_model.LogisticRegression()
    classifier = setfit.SetFitModel(model_body=body, model_head=head, normalize_embeddings=True)
    np.testing.assert_array_equal(classifier.encode(texts), body.embedder.encode(texts))
    dataset = datasets.Dataset.from_dict({"text": texts, "label": labels})
    arguments = setfit.TrainingArguments(output_dir=str(tmp_path), report_to="none")
    trainer = setfit.Trainer(model=classifier, args=arguments, train_dataset=dataset)
    trainer.train_classifier(texts, labels)
    assert classifier.predict(texts[:5]).tolist() == [0] * 5
    with pytest.raises(NotImplementedError, match="train is not supported"):
        trainer.train()
    in_torch = setfit.SetFitModel(body, setfit.SetFitHead(in_features=192, out_features=3))
    with pytest.raises(NotImplementedError, match="train is not supported"):
        in_torch.fit(texts, labels, num_epochs=1)
    with pytest.raises(NotImplementedError, match="save is not supported"):
        classifier.save_pretrained(tmp_path / "saved")


def test_txtai_uses_both_adapters_and_reads_its_index_again(names, tmp_path):
    txtai = pytest.importorskip("txtai", reason="needs txtai")
    run_section(PAGE, "txtai", names)
    index, text, embedder = names["index"], names["documents"][0], names["model"].embedder
    np.testing.assert_array_equal(index.transform(text, "query"), embedder.encode_query(text))
    np.testing.assert_array_equal(index.transform(text, "data"), embedder.encode_document(text))
    index.save(str(tmp_path / "index"))
    other = txtai.Embeddings()
    other.load(str(tmp_path / "index"))
    query = "Which recipe needs sugar?"
    assert other.search(query, 1) == index.search(query, 1)
