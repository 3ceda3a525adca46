"""The transformer of scikit-learn: pipelines, grids, clones and pickles."""

import pickle
import weakref

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from jina_jax import JinaEmbeddings
from jina_jax.integrations import models
from jina_jax.integrations.sklearn import JinaJaxTransformer

TEXTS = ["aab b", "bbb", "ab", "aaaa", "xyz z", "zzz", "xz", "yyyy"]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.fixture
def loads(monkeypatch):
    """Return the names of models that are loaded from now on, and forget those that are."""
    names = []
    monkeypatch.setattr(models, "_latest", [])
    monkeypatch.setattr(models, "_loaded", weakref.WeakValueDictionary())
    inner = JinaEmbeddings.from_pretrained

    def from_pretrained(name, **options):
        names.append(name)
        return inner(name, **options)

    monkeypatch.setattr(JinaEmbeddings, "from_pretrained", from_pretrained)
    return names


def test_vectors_are_those_of_encode(directory, model):
    found = JinaJaxTransformer(directory).fit_transform(TEXTS)
    np.testing.assert_array_equal(found, model.encode(TEXTS, task="classification"))
    own = JinaJaxTransformer(
        directory, task=None, truncate_dim=32, encode_options={"normalize_embeddings": False}
    )
    expected = model.encode(TEXTS, truncate_dim=32, normalize_embeddings=False)
    np.testing.assert_array_equal(own.fit(TEXTS).transform(np.array(TEXTS)), expected)
    assert list(own.get_feature_names_out())[::31] == [
        "jinajaxtransformer0",
        "jinajaxtransformer31",
    ]


def test_a_grid_over_tasks_loads_one_model(directory, model, loads):
    pipeline = make_pipeline(JinaJaxTransformer(directory), LogisticRegression())
    tasks = ["classification", "separation", None]
    grid = GridSearchCV(pipeline, {"jinajaxtransformer__task": tasks}, cv=2, error_score="raise")
    grid.fit(TEXTS, LABELS)
    assert len(loads) == 1
    assert grid.cv_results_["params"] == [{"jinajaxtransformer__task": task} for task in tasks]
    best = grid.best_params_["jinajaxtransformer__task"]
    vectors = model.encode(TEXTS, task=best)
    expected = LogisticRegression().fit(vectors, LABELS).predict_proba(vectors)
    np.testing.assert_allclose(grid.predict_proba(TEXTS), expected, atol=1e-6)


def test_clones_share_a_model(model):
    own = JinaJaxTransformer(model).fit([]).set_output(transform="default")
    other = clone(make_pipeline(own))[0]
    assert other.model is model
    assert other.get_params() == own.get_params()
    assert other._sklearn_output_config == own._sklearn_output_config
    assert not hasattr(other, "_encoder")


def test_pickles_have_the_name(directory, loads):
    own = JinaJaxTransformer(directory, task="separation").fit([])
    pickled = pickle.dumps(own)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(TEXTS), own.transform(TEXTS))
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "summary"}, "summary"),
        ({"truncate_dim": 1000}, "truncate_dim=1000"),
        ({"encode_options": {"return_info": True}}, "encode_options: .*'return_info'"),
        ({"encode_options": {"task": None}}, "encode_options: .*'task'"),
        ({"model_options": {"dtype": "float32"}}, r"model_options: .*loaded, got \['dtype'\]$"),
        ({"model_options": {"token": "hf_secret"}}, "model_options: unexpected 'token'.*HF_TOKEN"),
    ],
)
def test_options_that_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        JinaJaxTransformer(model, **options).fit(TEXTS)


def test_texts_that_are_refused(model):
    own = JinaJaxTransformer(model).fit([])
    with pytest.raises(ValueError, match="X='a': expected a list or column"):
        own.transform("a")
    with pytest.raises(ValueError, match="texts: expected a sequence of str, got ndarray of 2"):
        own.transform(np.array([["a"], ["b"]]))


def test_a_column_of_a_table(model):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    table = pandas.DataFrame({"text": TEXTS, "title": TEXTS[::-1]})
    expected = model.encode(TEXTS, task="classification")
    column = ColumnTransformer([("text", JinaJaxTransformer(model), "text")])
    np.testing.assert_array_equal(column.fit_transform(table), expected)
    columns = ColumnTransformer([("text", JinaJaxTransformer(model), ["text"])])
    with pytest.raises(ValueError, match=r"texts: .*got ndarray of 2 axes"):
        columns.fit_transform(table)
