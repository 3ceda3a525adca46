"""Embedder in Ray Data: the vectors of ``encode``, in batches of pyarrow and NumPy."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax import JinaEmbeddings
from jina_jax.ray import Embedder

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

TEXTS = ["A town hall opens at nine.", "", "Trains leave late.", "x", "A b c d e f g h."] * 4
FLOAT32 = {"dtype": "float32"}
OPTIONS = {"model": "tiny", "text": "body", "task": "retrieval.passage", "model_options": FLOAT32}


@pytest.fixture(scope="module")
def expected():
    return JinaEmbeddings.from_pretrained("tiny", **FLOAT32).encode(TEXTS, task="retrieval.passage")


@pytest.fixture(scope="module")
def data():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


def test_files_to_files(data, expected, tmp_path):
    """Two actors, each with a model; nulls have null vectors."""
    texts = [*TEXTS[:10], None, *TEXTS[10:]]
    (tmp_path / "in").mkdir()
    for k in range(3):
        table = pa.table({"id": list(range(k, 21, 3)), "body": texts[k::3]})
        pq.write_table(table, tmp_path / "in" / f"{k}.parquet")
    data.read_parquet(str(tmp_path / "in")).map_batches(
        Embedder,
        fn_constructor_kwargs={**OPTIONS, "kind": "float16", "truncate_dim": 32},
        batch_format="pyarrow",
        batch_size=4,
        concurrency=2,
        num_cpus=0.5,
    ).write_parquet(str(tmp_path / "out"))
    found = pq.read_table(tmp_path / "out").sort_by("id")
    assert found["id"].to_pylist() == list(range(21))
    assert found["body"].to_pylist() == texts
    assert pa.types.is_fixed_size_list(found.schema.field("embedding").type)
    assert [v is None for v in found["embedding"].to_pylist()] == [t is None for t in texts]
    vectors = np.array([v for v in found["embedding"].to_pylist() if v is not None], np.float32)
    cut = expected[:, :32] / np.linalg.norm(expected[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, cut, atol=1e-3)


def test_numpy(data, expected):
    dataset = data.from_items([{"n": n, "body": text} for n, text in enumerate(TEXTS)])
    found = dataset.map_batches(
        Embedder, fn_constructor_kwargs=OPTIONS, batch_format="numpy", concurrency=1
    ).take_all()
    assert len(found) == len(TEXTS)
    found.sort(key=lambda row: row["n"])
    vectors = np.stack([row["embedding"] for row in found])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.fixture(scope="module")
def embedder():
    return Embedder(**OPTIONS)


def test_tables(embedder, expected):
    found = embedder(pa.table({"body": TEXTS}))
    assert found.schema.field("embedding").type.value_type == pa.float32()
    vectors = found["embedding"].combine_chunks().flatten().to_numpy().reshape(len(TEXTS), -1)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_tables_of_nothing(embedder):
    empty = embedder(pa.table({"body": pa.array([], pa.string())}))
    nulls = embedder(pa.table({"body": pa.array([None, None], pa.string())}))
    assert empty.schema == nulls.schema
    assert empty.num_rows == 0
    assert nulls["embedding"].null_count == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task": "translation"}, ValueError, "translation"),
        ({"kind": "int8"}, ValueError, "kind='int8'"),
        ({"return_info": True}, TypeError, "return_info"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_arguments_that_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        Embedder(**{**OPTIONS, **change})


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (pa.table({"title": ["a"]}), ValueError, "text='body': .* found 'title'"),
        ({"title": np.array(["a"])}, ValueError, "text='body': .* found 'title'"),
        (pa.table({"body": ["a"], "embedding": [1]}), ValueError, "output='embedding'"),
        (pa.table({"body": [1]}), ValueError, "body: expected texts, got int in row 0"),
        ({"body": np.array(["a", None], object)}, ValueError, "got NoneType in row 1"),
        (["a"], TypeError, 'batch_format: expected "pyarrow" or "numpy", got a batch of list'),
    ],
)
def test_batches_that_are_refused(embedder, batch, error, message):
    with pytest.raises(error, match=message):
        embedder(batch)
