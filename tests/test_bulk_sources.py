"""Sources of bulk jobs: every row once, in pieces; what cannot be read harms its own row only."""

import contextlib
import gzip
import itertools
import json
import os
import uuid

import loopback_store
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jina_jax.bulk import retries, sources
from jina_jax.bulk.inputs import describe
from jina_jax.bulk.sources import BadRow, Piece, base, jsonl, open_source
from jina_jax.bulk.stores import Store
from jina_jax.data import lines
from jina_jax.data.records import DataError

TEXT = pa.schema([("text", pa.string())])
BYTES = pa.schema([("text", pa.binary())])


def opened(path, content=None):
    if content is not None:
        path.write_bytes(content)
    return open_source(describe(str(path)))


def read(source, schema=TEXT, pieces=None):
    """Read pieces; return rows as dicts, their numbers, and bad rows."""
    if pieces is None:
        pieces = source.pieces(0, ["text"], 10**9, 10**12)
    batches = [batch for piece in pieces for batch in source.read(piece, schema)]
    for batch in batches:
        assert batch.table.schema == schema
        assert batch.table.num_rows == len(batch.rows) <= sources.MOST_ROWS
        assert batch.rows.dtype == np.int64
        batch.table.validate(full=True)
    rows = [row for batch in batches for row in batch.table.to_pylist()]
    numbers = [int(number) for batch in batches for number in batch.rows]
    return rows, numbers, [bad for batch in batches for bad in batch.bad]


def texts(source, **options):
    rows, numbers, bad = read(source, **options)
    return [row["text"] for row in rows], numbers, bad


# ------------------------------------------------------------ all formats

TABLE = pa.table(
    {
        "id": pa.array(range(10)),
        "text": pa.array([f"text {k} ü" if k != 4 else None for k in range(10)]),
        "tags": pa.array([[k, k + 1] for k in range(10)]),
    }
)


def write(path, table=TABLE):
    """Write a table in the format of a path's suffix."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=max(3, len(table) // 9))
    elif name.endswith(".feather"):
        pyarrow.feather.write_feather(table, str(path), chunksize=max(3, len(table) // 9))
    elif name.endswith(".arrow"):
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    else:
        rows = table.to_pylist()
        if ".csv" in name or ".tsv" in name:
            delimiter = "," if ".csv" in name else "\t"
            content = delimiter.join(["id", "text"]) + "\n"
            content += "".join(f"{r['id']}{delimiter}{r['text'] or ''}\n" for r in rows)
        else:
            content = "".join(json.dumps(row) + "\n" for row in rows)
        with pa.output_stream(str(path), compression=None) as raw:
            codec = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
            with pa.CompressedOutputStream(raw, codec) if codec else raw as file:
                file.write(content.encode())


ALL = (
    *("a.parquet", "a.jsonl", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz"),
    *("a.tsv", "a.TSV.zst", "a.arrow", "a.feather"),
)


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("name", ALL)
def test_all_formats(name, where, tmp_path):
    path = tmp_path / name.lower()
    write(path)
    url = str(path)
    if where == "memory":
        store = Store(f"memory://{uuid.uuid4().hex}")
        store.put(name, path.read_bytes())
        url = f"{store.url}/{name}"
    source = open_source(describe(url))
    assert not source.is_empty
    assert source.schema.field("text").type == pa.string()
    pieces = source.pieces(7, ["text"], 4, 10**9)
    assert {piece.file for piece in pieces} == {7}
    found, numbers, bad = texts(source, pieces=pieces)
    assert found == TABLE["text"].to_pylist()
    assert bad == []
    if "jsonl" in name or "ndjson" in name:
        starts = np.cumsum([0, *(len(json.dumps(row)) + 1 for row in TABLE.to_pylist())])
        assert numbers == starts[:10].tolist()
    else:
        assert numbers == list(range(10))
    if "csv" not in name and "TSV" not in name.upper():
        schema = pa.schema([TABLE.schema.field(name) for name in ("tags", "text", "id")])
        rows, _, _ = read(source, schema, pieces)
        assert rows == TABLE.to_pylist()


@pytest.mark.parametrize("name", ALL)
def test_a_file_without_rows(name, tmp_path):
    path = tmp_path / name.lower()
    write(path, TABLE.slice(0, 0))
    source = opened(path)
    pieces = source.pieces(0, ["text"], 10, 10**9)
    assert source.is_empty == (pieces == []) or "csv" in name or "TSV" in name.upper()
    assert [b for piece in pieces for b in source.read(piece, TEXT) if b.table.num_rows] == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
def test_an_empty_text_file(name, tmp_path):
    content = gzip.compress(b"", mtime=0) if name.endswith("gz") else b""
    source = opened(tmp_path / name, content)
    assert source.is_empty
    assert source.pieces(0, ["text"], 10, 10) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1", b"FEA1....", b"text\n" * 100])
def test_not_of_its_format(name, content, tmp_path):
    with pytest.raises(DataError, match=name):
        opened(tmp_path / name, content)


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_cut_files(name, tmp_path):
    whole = tmp_path / f"whole-{name}"
    write(whole)
    content = whole.read_bytes()
    for size in (*range(0, len(content), 7), len(content) - 8):  # the last: a stream's end
        path = tmp_path / name
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=name):
            texts(opened(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"])
def test_cut_and_damaged_compression(name, tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"id": range(2000), "text": [rng.bytes(99).hex() for _ in range(2000)]})
    write(tmp_path / name, table)
    content = (tmp_path / name).read_bytes()
    half = len(content) // 2
    for damaged in (content[:half], content[:half] + bytes(1000) + content[half + 1000 :]):
        with pytest.raises(DataError, match=name):
            texts(opened(tmp_path / name, damaged))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "content", ["a".encode("utf-16"), gzip.compress(b"a", mtime=0), b"PK\x03\x04"]
)
def test_no_text(name, content, tmp_path):
    if name.endswith("gz"):
        content = gzip.compress(content, mtime=0)
    with pytest.raises(DataError, match=rf"{name}.*expected UTF-8 text, got"):
        texts(opened(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.feather"])
def test_columns_that_cannot_be(name, tmp_path):
    write(tmp_path / name)
    source = opened(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: expected one column 'body', got 0 of 'id', 't"):
        source.pieces(0, ["text", "body"], 10, 10)
    with pytest.raises(DataError, match="'body'"):
        list(source.read(Piece(0, 0, 1, 1, 1), pa.schema([("body", pa.string())])))
    if name != "a.csv":
        with pytest.raises(DataError, match=r"column 'id': expected texts, got int64"):
            source.pieces(0, ["id"], 10, 10)
        with pytest.raises(DataError, match=r"column 'tags': expected texts, got list<"):
            source.pieces(0, ["text", "tags"], 10, 10)
        with pytest.raises(DataError, match=r"column 'tags': expected int64, got list<"):
            source.check(pa.schema([("tags", pa.int64())]))


def test_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "text", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.csv").write_text("text,text,id\na,b,c\n")
    for name in ("a.parquet", "a.arrow", "a.csv"):
        source = opened(tmp_path / name)
        with pytest.raises(DataError, match="expected one column 'text', got 2 of"):
            source.pieces(0, ["text"], 10, 10)
        rows, _, _ = read(source, pa.schema([("id", pa.string())]), source.pieces(0, ["id"], 9, 99))
        assert len(rows) == 1


# ------------------------------------------------------------ Parquet and Arrow

STRINGS = (
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
)


@pytest.mark.parametrize("own", STRINGS, ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("schema", [TEXT, BYTES], ids=["string", "binary"])
def test_types_of_strings(own, name, schema, tmp_path):
    table = pa.table({"text": pa.array(["ä", None, "", "b\0"] * 3).cast(own)})
    write(tmp_path / name, table)
    found, _, bad = texts(opened(tmp_path / name), schema=schema)
    expected = ["ä", None, "", "b\0"] * 3
    if schema is BYTES:
        expected = [None if text is None else text.encode() for text in expected]
    assert (found, bad) == (expected, [])


def test_a_column_of_nulls(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"text": pa.nulls(4)}))
    assert texts(opened(tmp_path / "a.parquet"))[0] == [None] * 4


@pytest.mark.parametrize(
    "own", [pa.string(), pa.large_string(), pa.binary(), "dictionary"], ids=str
)
@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_bytes_that_are_not_utf8(own, name, tmp_path):
    values = [b"good", b"\xff\xfe", None, b"ab\xe4", b"good"] + [b"x"] * 30 + [b"\xed\xa0\x80"]
    array = pa.array(values)
    if own == "dictionary":
        array = array.dictionary_encode()
        array = pa.DictionaryArray.from_arrays(array.indices, array.dictionary.view(pa.string()))
    elif own != pa.binary():
        large = pa.types.is_large_string(own)
        array = array.cast(pa.large_binary()).view(own) if large else array.view(own)
    write(tmp_path / name, pa.table({"id": pa.array(range(36)), "text": array}))
    source = opened(tmp_path / name)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    rows, numbers, bad = read(source, schema)
    assert numbers == [k for k in range(36) if k not in (1, 3, 35)]
    assert [row["id"] for row in rows] == numbers
    assert [row["text"] for row in rows] == ["good", None, "good"] + ["x"] * 30
    assert bad == [
        BadRow(1, "column 'text': expected UTF-8 text, got invalid start byte at byte 0"),
        BadRow(3, "column 'text': expected UTF-8 text, got unexpected end of data at byte 2"),
        BadRow(35, "column 'text': expected UTF-8 text, got invalid continuation byte at byte 0"),
    ]
    assert texts(source, schema=BYTES) == (values, list(range(36)), [])


def test_nested_columns_pass(tmp_path):
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    nested = pa.StructArray.from_arrays([bad, pa.array([1, 2, 3])], ["name", "n"])
    table = pa.table({"text": ["x", "y", "z"], "meta": nested, "meta.n": ["p", "q", "r"]})
    write(tmp_path / "a.parquet", table)
    schema = pa.schema([table.schema.field(k) for k in ("meta.n", "meta", "text")])
    rows, numbers, bad = read(opened(tmp_path / "a.parquet"), schema)
    assert numbers == [0, 2]
    assert rows[1] == {"meta.n": "r", "meta": {"name": "c", "n": 3}, "text": "z"}
    assert [row for row, _ in bad] == [1]
    rows, numbers, bad = read(opened(tmp_path / "a.parquet"), schema.remove(1))
    assert numbers == [0, 1, 2]


def test_values_that_do_not_fit(tmp_path):
    table = pa.table({"text": ["x"] * 4, "n": pa.array([1, 2**40, None, 3])})
    write(tmp_path / "a.parquet", table)
    schema = pa.schema([("text", pa.string()), ("n", pa.int32())])
    rows, numbers, bad = read(opened(tmp_path / "a.parquet"), schema)
    assert numbers == [0, 2, 3]
    assert [row["n"] for row in rows] == [1, None, 3]
    assert bad[0].row == 1
    assert bad[0].reason.startswith("column 'n': expected int32 (Integer value 1099511627776")


@given(
    blocks=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), max_size=12),
    most_rows=st.integers(1, 40),
    most_bytes=st.integers(1, 400),
)
def test_pieces_of_blocks(blocks, most_rows, most_bytes):
    pieces = base.bounded_pieces(3, blocks, most_rows, most_bytes)
    bounds = [0, *(piece.stop for piece in pieces)]
    assert [piece.start for piece in pieces] == bounds[:-1]
    assert bounds[-1] == sum(rows for rows, _ in blocks)
    for piece in pieces:
        assert 0 < piece.rows == piece.stop - piece.start <= most_rows
        assert piece.size <= most_bytes or piece.rows == 1 or piece.size <= most_bytes * 2
    for one, two in itertools.pairwise(pieces):
        assert one.rows + two.rows > most_rows or one.size + two.size > most_bytes


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_any_range_of_rows(name, tmp_path):
    write(tmp_path / name)
    source = opened(tmp_path / name)
    for start, stop in itertools.combinations_with_replacement(range(11), 2):
        found, numbers, _ = texts(source, pieces=[Piece(0, start, stop, None, 0)])
        assert numbers == list(range(start, stop))
        assert found == TABLE["text"].to_pylist()[start:stop]


def test_a_large_row_group(tmp_path):
    rows = 1_000_000
    numbers = pa.array(np.arange(rows))
    table = pa.table({"text": numbers.cast(pa.string()), "id": numbers})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows)
    source = opened(tmp_path / "a.parquet")
    pieces = source.pieces(0, ["text"], 300_000, 10**9)
    assert [(piece.start, piece.stop) for piece in pieces] == [
        (k * rows // 4, (k + 1) * rows // 4) for k in range(4)
    ]
    before = pa.total_allocated_bytes()
    at = 250_000
    for batch in source.read(pieces[1], TEXT):
        assert batch.rows[0] == at
        assert batch.table.column("text")[0].as_py() == str(at)
        at += len(batch.rows)
        assert pa.total_allocated_bytes() - before < 40 << 20
    assert at == 500_000


def test_batches_are_of_bounded_bytes(tmp_path):
    sizes = [1, 5 << 20, 1, 9 << 20, 9 << 20, 20 << 20, 3]
    table = pa.table({"text": ["x" * size for size in sizes]})
    for name in ("a.parquet", "a.feather", "a.jsonl", "a.csv"):
        write(tmp_path / name, table.append_column("id", pa.array(range(7))))
        source = opened(tmp_path / name)
        piece = source.pieces(0, ["text"], 10**9, 10**12)[0]
        batches = list(source.read(piece, TEXT))
        assert len(batches) > 3
        for batch in batches:
            assert len(batch.rows) == 1 or batch.table.nbytes <= sources.MOST_BYTES
        found = [len(text) for batch in batches for text in batch.table.column(0).to_pylist()]
        assert found == sizes


@pytest.mark.parametrize("name", ["plain.parquet", "dictionary.parquet", "dictionary.feather"])
def test_a_repeated_text_is_read_in_bounded_bytes(name, tmp_path):
    """A dictionary has it once, as do the sizes in the metadata of Parquet."""
    repeated = ["x" * 30_000, "y"] * 2000
    column = pa.array(repeated)
    column = column.dictionary_encode() if name.startswith("dictionary") else column
    table = pa.table({"text": column})
    if name.endswith("feather"):
        pyarrow.feather.write_feather(table, str(tmp_path / name), chunksize=4000)
    else:
        pq.write_table(table, tmp_path / name)
    del table, column
    source = opened(tmp_path / name)
    before, most, found = pa.total_allocated_bytes(), 0, []
    for batch in source.read(Piece(0, 3, 4000, 3997, 1), TEXT):
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.table.nbytes <= sources.MOST_BYTES
        assert batch.rows[0] == 3 + len(found)
        found += [len(text) for text in batch.table.column(0).to_pylist()]
    assert found == [len(text) for text in repeated[3:]]
    assert most < 3.5 * sources.MOST_BYTES


# ------------------------------------------------------------ JSONL


def test_bad_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 200)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 200)
    own = [
        (b'\xef\xbb\xbf{"text": "mark"}\r\n', "mark"),
        (b"\n", None),
        (b" \t \r\n", None),
        (b'{"text": "\xff"}\n', "not UTF-8 (invalid start byte at byte 10)"),
        (b'{"text": "a"\n', "not valid JSON"),
        (b'{"text": "\\ud800"}\n', "column 'text': expected Unicode text, got the lone surrogate"),
        (b'{"text": "a\0b"}\n', "NUL bytes"),
        (b'{"text": "a\\u0000b"}\n', "a\0b"),
        (b'{"text": "' + b"x" * 200 + b'"}\n', "expected lines of at most 200 bytes"),
        (b'["text"]\n', "expected a JSON object, got list"),
        (b'{"text": 5}\n', "column 'text': expected a text, got int"),
        (b'{"text": null}\n', None),
        (b'{"other": 1}\n', None),
        (b'{"text": "a", "text": "b"}\n', "not valid JSON (expected each field once, got 'text'"),
        (b'{"text": NaN}\n', "not valid JSON (NaN is no JSON value)"),
        (b'{"text": ' + b"[" * 90 + b"\n", "not valid JSON"),
        (b'{"text": "a\rb"}\n', "not valid JSON"),
        (b'{"text": "a\xe2\x80\xa8b"}\n', "a\u2028b"),
        (b'{"text": "last"}', "last"),
    ]
    source = opened(tmp_path / "a.jsonl", b"".join(raw for raw, _ in own))
    starts = np.cumsum([0, *(len(raw) for raw, _ in own)]).tolist()
    good, bad = {}, {}
    for start, (raw, expected) in zip(starts, own, strict=False):
        value = None
        with contextlib.suppress(ValueError):
            value = json.loads(raw.decode("utf-8-sig"))
        if not raw.strip():
            continue
        is_good = expected is None or (isinstance(value, dict) and value.get("text") == expected)
        (good if is_good else bad)[start] = expected
    found, numbers, reasons = texts(source)
    assert dict(zip(numbers, found, strict=True)) == good
    assert len(good) == 6
    assert [row for row, _ in reasons] == list(bad)
    for (_, reason), expected in zip(reasons, bad.values(), strict=True):
        assert reason.startswith(expected), reason


def test_a_line_of_more_than_64_mib(tmp_path):
    rows = [
        b'{"text": "a"}',
        b'{"text": "%s"}' % (b"x" * (lines.LONGEST_LINE + 9)),
        b'{"text": "b"}',
    ]
    source = opened(tmp_path / "a.jsonl", b"\n".join(rows))
    pieces = [Piece(0, 0, 5, None, 0), Piece(0, 5, 10**6, None, 0), Piece(0, 10**6, 10**9, None, 0)]
    found, numbers, bad = texts(source, pieces=pieces)
    assert found == ["a", "b"]
    assert numbers == [0, len(rows[0]) + len(rows[1]) + 2]
    assert [row for row, _ in bad] == [len(rows[0]) + 1]


LINES = [
    *(b'{"text": "a"}\n', b"\n", b'{"text": "\xc3\xa4"}\r\n', b"bad\n", b'{"text": "\\n"}\n'),
    *(b'{"text": "' + b"y" * 30 + b'"}\n', b"\r\n", b'{"text": null}\n', b'{"text": "\xff"}\n'),
]


@settings(deadline=None, max_examples=40)
@given(own=st.lists(st.sampled_from(LINES), max_size=8), ends=st.booleans(), data=st.data())
@example(own=[LINES[0]], ends=False, data=None)
def test_any_division_of_lines(tmp_path_factory, own, ends, data):
    content = b"".join([b'{"text": "first"}\n', *own])
    content = content if ends else content.removesuffix(b"\n")
    source = opened(tmp_path_factory.mktemp("lines") / "a.jsonl", content)
    whole = texts(source, pieces=[Piece(0, 0, len(content), None, 0)])
    assert len(whole[0]) + len(whole[2]) == 1 + sum(bool(line.strip()) for line in own)
    drawn = data.draw(st.lists(st.integers(0, len(content)), max_size=5)) if data else []
    for cuts in (drawn, range(len(content) + 1)):  # the second: one piece per byte
        bounds = sorted([0, *cuts, len(content)])
        pieces = [Piece(0, a, b, None, 0) for a, b in itertools.pairwise(bounds)]
        assert texts(source, pieces=pieces) == whole


@pytest.mark.parametrize("most_rows", [1, 3, 100, 10**6])
@pytest.mark.parametrize("most_bytes", [10, 300, 10**9])
def test_pieces_of_lines(most_rows, most_bytes, tmp_path):
    rows = [{"text": "x" * (k % 50), "other": "y" * 30} for k in range(300)]
    source = opened(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    pieces = source.pieces(2, ["text"], most_rows, most_bytes)
    bounds = [0, *(piece.stop for piece in pieces)]
    assert [piece.start for piece in pieces] == bounds[:-1]
    assert bounds[-1] == source.file.size
    total = sum(len(row["text"]) for row in rows)
    expected = max(1, 300 / most_rows, total / most_bytes)
    assert expected - 1 <= len(pieces) <= expected * 1.1 + 2
    assert texts(source, pieces=pieces)[0] == [row["text"] for row in rows]
    assert sum(piece.size for piece in pieces) == pytest.approx(total, abs=len(pieces) + 1)


def test_the_sample_of_lines_is_of_bounded_bytes(tmp_path, monkeypatch):
    rows = [{"text": "x" * 1000, "n": k} for k in range(50)] + [{"text": "last", "late": 1}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    monkeypatch.setattr(jsonl, "MOST_BYTES", 10_000)
    parsed = []
    monkeypatch.setattr(jsonl, "json_object", lambda line: parsed.append(line) or json.loads(line))
    source = opened(tmp_path / "a.jsonl")
    assert source.schema.names == ["text", "n"]
    assert len(parsed) == 10
    pieces = source.pieces(0, ["text"], 10**9, 10_000)
    assert sum(piece.size for piece in pieces) == pytest.approx(50_004, rel=0.05)
    parsed.clear()
    batches = list(opened(tmp_path / "a.jsonl").read(pieces[-1], TEXT, is_checked=True))
    assert len(parsed) == sum(len(batch.rows) for batch in batches)  # without a sample


def test_types_of_json(tmp_path):
    rows = [
        {"text": "a", "n": 1, "x": 1, "b": True, "o": {"k": 1}, "l": [1], "s": "a", "z": None},
        {"text": "b", "n": 2, "x": 2.5, "b": None, "o": {"m": "u"}, "l": [], "s": 5, "\ud800": 1},
        {"text": "c", "n": 2**70, "x": None, "b": False, "o": None, "l": None, "s": "b"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    source = opened(tmp_path / "a.jsonl", content)
    assert source.schema == pa.schema(
        [
            *(("text", pa.string()), ("n", pa.int64()), ("x", pa.float64()), ("b", pa.bool_())),
            ("o", pa.struct([("k", pa.int64()), ("m", pa.string())])),
            *(("l", pa.list_(pa.int64())), ("s", pa.string()), ("z", pa.null())),
        ]
    )


@pytest.mark.parametrize(
    ("own", "value"),
    [
        *((pa.int64(), 1.5), (pa.int64(), "1"), (pa.int64(), True), (pa.int64(), 2**64)),
        *((pa.float64(), 2**60 + 1), (pa.float64(), "1"), (pa.bool_(), 1), (pa.null(), 1)),
        *((pa.list_(pa.int64()), [1.5]), (pa.list_(pa.int64()), 1), (pa.string(), ["a"])),
        *((pa.struct([("k", pa.int64())]), {"k": 1, "m": 2}), (pa.binary(), "\ud800")),
    ],
    ids=str,
)
def test_json_that_does_not_fit(own, value, tmp_path):
    first = pa.nulls(1, own) if value else None
    sample = {"int64": 3, "double": 0.5, "bool": False, "null": None, "string": "s", "binary": "s"}
    good = sample.get(str(own), {"k": 3} if pa.types.is_struct(own) else [3])
    rows = [{"text": "x", "c": good} for _ in range(1000)]
    rows[1000:] = [{"text": "x", "c": value}, {"text": "x", "c": good}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    source = opened(tmp_path / "a.jsonl", content)
    schema = pa.schema([("c", own), ("text", pa.string())])
    found, _, bad = read(source, schema)
    assert len(found) == 1001
    assert first is not None
    assert len(bad) == 1
    assert bad[0].reason.startswith("column 'c': expected")
    expected = good.encode() if own == pa.binary() else good
    assert found[-1]["c"] == expected


# ------------------------------------------------------------ CSV


def test_csv(tmp_path):
    content = (
        b'\xef\xbb\xbfid,text,n\r\n007,"two\nlines, ""quoted""",1.50\r\n\r\n'
        b'8,,\r\n9,NA,null\r\n10,"a,b",x\r\n'
    )
    source = opened(tmp_path / "a.csv", content)
    assert source.schema == pa.schema([(name, pa.string()) for name in ("id", "text", "n")])
    rows, numbers, bad = read(source, source.schema)
    assert numbers == [0, 1, 2, 3]
    assert bad == []
    assert [tuple(row.values()) for row in rows] == [
        ("007", 'two\nlines, "quoted"', "1.50"),
        ("8", None, None),
        ("9", "NA", "null"),
        ("10", "a,b", "x"),
    ]


def test_bad_rows_of_csv(tmp_path):
    content = b'text,n\na,1\n\xff,2\nb\nc,d,e\n"f"g,1\nh\0,1\ni,1'
    source = opened(tmp_path / "a.csv", content)
    found, numbers, bad = texts(source)
    assert (found, numbers) == (["a", "i"], [0, 6])
    assert [row for row, _ in bad] == [1, 2, 3, 4, 5]
    for (_, reason), expected in zip(
        bad,
        ("column 'text': expected Unicode", "expected 2 fields", "expected 2", "not valid", "NUL"),
        strict=True,
    ):
        assert reason.startswith(expected), reason
    schema = pa.schema([("n", pa.string())])
    assert read(source, schema)[1] == [0, 1, 6]


def test_quotes_that_do_not_close(tmp_path):
    source = opened(tmp_path / "a.csv", b'text\na\n"b\nc\n')
    with pytest.raises(DataError, match=r"a.csv:3: not valid CSV"):
        texts(source)


def test_a_long_field_of_csv(tmp_path):
    source = opened(tmp_path / "a.csv", b"text\n" + b"x" * 1_000_000 + b"\nb\n")
    assert [len(text) for text in texts(source)[0]] == [1_000_000, 1]


def test_more_rows_than_a_batch(tmp_path):
    count = 2 * sources.MOST_ROWS + 5
    rows = [{"text": str(k)} for k in range(count)]
    table = pa.table({"id": range(count), "text": [row["text"] for row in rows]})
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.feather"):
        write(tmp_path / name, table)
        assert texts(opened(tmp_path / name))[0] == [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv.gz", "a.feather", "a.arrow"])
def test_from_a_store_that_fails(name, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0, 0.0))
    table = pa.table({"id": range(3000), "text": [os.urandom(500).hex() for _ in range(3000)]})
    write(tmp_path / name, table)
    with loopback_store.running(fail_every=3):
        url = f"loop://bucket/{name}"
        Store("loop://bucket").put(name, (tmp_path / name).read_bytes())
        source = open_source(describe(url))
        pieces = source.pieces(0, ["text"], 1000, 10**9)
        assert texts(source, pieces=pieces)[0] == table["text"].to_pylist()


def test_suffixes_have_sources():
    from jina_jax.bulk.inputs import SUFFIXES

    assert set(sources._SOURCES) == set(SUFFIXES)


def test_files_are_closed(tmp_path):
    for name in ("a.parquet", "a.jsonl", "a.csv.gz", "a.feather"):
        write(tmp_path / name)
        source = opened(tmp_path / name)
        for piece in source.pieces(0, ["text"], 10**9, 10**12):
            next(source.read(piece, TEXT))
    del source
    assert not [link for link in map(_target, os.listdir("/proc/self/fd")) if str(tmp_path) in link]


def _target(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""
