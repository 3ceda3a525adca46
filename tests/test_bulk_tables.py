"""Tables of vectors: types, arrays without copies, and files read back by pyarrow."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.bulk import tables
from jina_jax.bulk.settings import KINDS, Settings
from jina_jax.bulk.tables import (
    TableWriter,
    errors_schema,
    output_schema,
    read_facts,
    read_vectors,
    vector_array,
    vector_type,
)

VECTORS = np.array([[0.5, -0.5] * 4, [1, 0, 0, 0, 0, 0, 0, 0], [-2, 3, 0, 0, 0, 0, 0, 1]], "f4")
VALID = np.array([True, False, True])
COLUMNS = pa.schema([("doc.id", pa.large_string()), ("tags", pa.list_(pa.int8()))])
SETTINGS = {"text": ("body",), "tasks": (None,), "dim": 8}


def test_types():
    assert vector_type("float32", 4) == pa.list_(pa.field("element", pa.float32(), False), 4)
    assert vector_type("float16", 4).value_type == pa.float16()
    assert vector_type("bytes", 4) == pa.binary(16)
    assert vector_type("ubinary", 16) == pa.binary(2)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays(kind):
    array = vector_array(VECTORS, kind, VALID)
    array.validate(full=True)
    assert array.type == vector_type(kind, 8)
    first, null, last = array.to_pylist()
    expected = {
        "float32": VECTORS[2].tolist(),
        "float16": VECTORS[2].tolist(),
        "bytes": VECTORS[2].astype("<f4").tobytes(),
        "ubinary": bytes([0b01000001]),
    }
    assert null is None
    assert first is not None
    assert last == expected[kind]


@pytest.mark.parametrize("kind", ["float32", "bytes"])
def test_arrays_are_around_the_memory_of_the_vectors(kind):
    array = vector_array(VECTORS, kind)
    assert array.buffers()[-1].address == VECTORS.ctypes.data
    assert array.null_count == 0


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_read_back(kind):
    array = vector_array(VECTORS, kind, VALID)
    column = pa.chunked_array([array, array.slice(2), array.slice(1, 1)])
    vectors, valid = read_vectors(column, kind, 8)
    assert valid.tolist() == [True, False, True, True, False]
    assert vectors.dtype == np.float32
    expected = VECTORS[[0, 2, 2]]
    np.testing.assert_array_equal(vectors, expected > 0 if kind == "ubinary" else expected)
    sliced = read_vectors(pa.chunked_array([vector_array(VECTORS, kind).slice(2)]), kind, 8)[0]
    np.testing.assert_array_equal(sliced, vectors[1:2])
    none = read_vectors(column.slice(1, 1), kind, 8)
    assert none[0].shape == (0, 8)
    assert none[1].tolist() == [False]


def test_halves_are_rounded_and_null_rows_are_not_looked_at():
    vectors = np.array([[1e6, 0.1]], "f4")
    assert vector_array(vectors, "float16", np.array([False])).to_pylist() == [None]
    with pytest.raises(ValueError, match="within ±65,504"):
        vector_array(vectors, "float16")
    halves = vector_array(np.array([[0.1]], "f4"), "float16")
    assert halves.to_pylist() == [[float(np.float16(0.1))]]


@pytest.mark.parametrize(
    ("vectors", "valid", "message"),
    [
        (VECTORS.astype("f8"), None, r"expected float32 \(n, dim\).*got float64 \(3, 8\)"),
        (VECTORS[:, ::2], None, "C-contiguous"),
        (VECTORS[0], None, r"got float32 \(8,\)"),
        (VECTORS, VALID[:2], r"valid: expected bool \(3,\), got bool \(2,\)"),
        (VECTORS, VALID.astype(int), "valid: expected bool"),
    ],
)
def test_wrong_vectors(vectors, valid, message):
    with pytest.raises(ValueError, match=message):
        vector_array(vectors, "float32", valid)


@pytest.mark.parametrize(
    ("kind", "dim", "message"),
    [
        ("binary", 8, "kind: expected one of float32, .*, got 'binary'"),
        ("ubinary", 12, "dim: expected a multiple of 8 for ubinary, got 12"),
        ("float32", 0, "dim: expected at least 1, got 0"),
    ],
)
def test_wrong_types(kind, dim, message):
    with pytest.raises(ValueError, match=message):
        vector_type(kind, dim)


def test_schema():
    settings = Settings(**SETTINGS, id="doc.id", columns=("tags", "doc.id"), chunks=256)
    schema = output_schema(settings, COLUMNS, {"b": 1, "a": "é"})
    names = ["doc.id", "tags", "chunk", "start", "stop", "embedding"]
    assert schema.names == names
    assert schema.field("doc.id").type == pa.large_string()
    assert schema.field("stop").type == pa.int64()
    assert read_facts(schema) == {"b": 1, "a": "é"}
    assert json.loads(schema.metadata[b"jina_jax"]) == {"a": "é", "b": 1}
    assert read_facts(COLUMNS) is None


def test_schema_without_id_of_two_texts():
    settings = Settings(**SETTINGS | {"text": ("a", "b"), "tasks": (None, None)})
    schema = output_schema(settings, COLUMNS, {})
    assert schema.names == ["file", "row", "a_embedding", "b_embedding"]


@pytest.mark.parametrize("name", ["embedding", "file", "row"])
def test_names_that_would_be_there_twice(name):
    columns = pa.schema([(name, pa.string())])
    with pytest.raises(ValueError, match=f"columns={name!r}: would be twice in the output"):
        output_schema(Settings(**SETTINGS, columns=(name,)), columns, {})


def test_schema_of_errors():
    assert errors_schema(pa.int32()).names == ["file", "row", "id", "column", "reason"]
    assert errors_schema(None).names == ["file", "row", "column", "reason"]


def table(kind, n=50):
    vectors = np.random.default_rng(0).standard_normal((n, 8)).astype("f4")
    settings = Settings(**SETTINGS, id="doc.id", columns=("tags",), kind=kind)
    columns = [
        pa.array([f"d{i}" for i in range(n)], pa.large_string()),
        pa.array([[i, None] if i % 3 else None for i in range(n)], pa.list_(pa.int8())),
        vector_array(vectors, kind, np.arange(n) % 7 > 0),
    ]
    return pa.table(columns, schema=output_schema(settings, COLUMNS, {"plan": "1a2b"}))


def write(path, of, portions):
    with TableWriter(path, of.schema) as writer:
        for start in range(0, of.num_rows, portions):
            writer.write(of.slice(start, portions))
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_back(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 20)
    written = table(kind)
    data = write(tmp_path / "a.parquet", written, 50)
    assert write(tmp_path / "b.parquet", written, 7) == data
    read = pq.read_table(tmp_path / "a.parquet")
    assert read.equals(written)
    assert read.schema.equals(written.schema)
    assert read_facts(read.schema) == {"plan": "1a2b"}


def test_pages_do_not_depend_on_the_portions(tmp_path):
    schema = pa.schema([("embedding", vector_type("bytes", 256))])
    vectors = np.random.default_rng(0).standard_normal((3000, 256)).astype("f4")
    large = pa.table([vector_array(vectors, "bytes")], schema=schema)
    assert write(tmp_path / "a", large, 3000) == write(tmp_path / "b", large, 700)


@pytest.mark.parametrize("kind", KINDS)
def test_row_groups(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 20)
    write(tmp_path / "a.parquet", table(kind), 50)
    footer = pq.read_metadata(tmp_path / "a.parquet")
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    assert [group.num_rows for group in groups] == [20, 20, 10]
    for name, tags, vectors in ([group.column(i) for i in range(3)] for group in groups):
        assert name.compression == tags.compression == "ZSTD"
        assert name.statistics.has_min_max
        assert name.has_column_index
        assert vectors.compression == "UNCOMPRESSED"
        assert vectors.statistics is None
        assert not vectors.has_dictionary_page
        assert vectors.has_offset_index


def test_row_groups_are_smaller_where_rows_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_BYTES", 100)
    write(tmp_path / "a.parquet", table("float32"), 25)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 2


def test_an_empty_table_is_a_file(tmp_path):
    empty = table("float32", 0)
    write(tmp_path / "a.parquet", empty, 1)
    assert pq.read_table(tmp_path / "a.parquet").equals(empty)


def test_another_schema_is_refused(tmp_path):
    with (
        TableWriter(tmp_path / "a.parquet", table("float32").schema) as writer,
        pytest.raises(ValueError, match="table: expected columns"),
    ):
        writer.write(table("float16"))
