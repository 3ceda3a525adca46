"""Rows of training data: formats, kinds, what is refused and how it is told."""

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.data import lines as data_lines
from jina_jax.data import records as data_records
from jina_jax.data.records import Columns, read_records
from jina_jax.data.source import KINDS, DataError, Problem, pair_overlap, read_source

GOOD = {
    "pairs": [{"anchor": "q1", "positive": "p1"}, {"anchor": "q2", "positive": "p2"}],
    "triplets": [
        {"anchor": "q1", "positive": "p1", "negative": "n1"},
        {"anchor": "q2", "positive": "p2", "negative": "n2"},
    ],
    "scored": [
        {"sentence1": "a", "sentence2": "b", "score": 0.25},
        {"sentence1": "c", "sentence2": "d", "score": 4},
    ],
    "labelled": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
    "texts": [{"text": "a"}, {"text": "b"}],
}
TEXTS = {
    "pairs": [("q1", "p1"), ("q2", "p2")],
    "triplets": [("q1", "p1", "n1"), ("q2", "p2", "n2")],
    "scored": [("a", "b"), ("c", "d")],
    "labelled": [("a",), ("b",)],
    "texts": [("a",), ("b",)],
}
TARGETS = {
    "scored": np.array([0.25, 4], np.float32),
    "labelled": np.array([0, 1], np.int32),
}


@pytest.fixture
def write(tmp_path):
    """Write a file: bytes or text as they are, a list of objects as JSONL."""

    def make(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


@pytest.fixture
def write_parquet(tmp_path):
    def make(name, columns):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / name
        parquet.write_table(arrow.table(columns), path)
        return path

    return make


def table(rows, delimiter):
    lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
    return "".join(delimiter.join(line) + "\r\n" for line in lines)


def refusal(*args, **options):
    """Read what must be refused, and return the lines of the error."""
    with pytest.raises(DataError) as caught:
        read_source(*args, **options)
    return str(caught.value).split("\n")


def reasons(source):
    return [(problem.line, problem.reason) for problem in source.problems]


class TestFormats:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".TSV", ".parquet"])
    def test_every_kind_in_every_format(self, write, write_parquet, kind, suffix):
        rows = GOOD[kind]
        if suffix == ".parquet":
            path = write_parquet("x" + suffix, {k: [row[k] for row in rows] for k in rows[0]})
        elif suffix in (".jsonl", ".ndjson"):
            path = write("x" + suffix, rows)
        else:
            path = write("x" + suffix, table(rows, "," if suffix == ".csv" else "\t"))
        source = read_source([path], kind)
        assert (source.name, source.kind) == ("x" + suffix, kind)
        assert source.texts == TEXTS[kind]
        assert (len(source), source.columns) == (2, len(TEXTS[kind][0]))
        assert source.problems == ()
        assert source.label_names == (("x", "y") if kind == "labelled" else ())
        if kind in TARGETS:
            assert source.targets.dtype == TARGETS[kind].dtype
            np.testing.assert_array_equal(source.targets, TARGETS[kind])
        else:
            assert source.targets is None
        assert source.teacher is None
        assert source.teacher_rows is None

    def test_lines_of_text(self, write):
        path = write("x.txt", "\ufeffone\r\n two \u2028lines\nthree".encode())
        source = read_source([path], "texts")
        assert source.texts == [("one",), (" two \u2028lines",), ("three",)]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("one\ntwo\n".encode("utf-16"), "expected UTF-8 text, got UTF-16"),
            ("one\ntwo\n".encode("utf-32"), "expected UTF-8 text, got UTF-32"),
            ("one\ntwo\n".encode("utf-16-le"), "NUL bytes, as in UTF-16"),
            (gzip.compress(b"one\ntwo\n", mtime=0), "expected UTF-8 text, got a gzip file"),
            (b"PK\x03\x04\x14\0", "expected UTF-8 text, got a zip file or a spreadsheet"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
    def test_files_that_are_no_text_are_named(self, write, content, reason, suffix):
        path = write(f"x{suffix}", content)
        with pytest.raises(DataError, match=rf"(?m)^{path}:1: (expected a header, got )?{reason}"):
            read_source([path], "texts")

    def test_carriage_returns_alone_end_no_lines(self, write):
        path = write("x.txt", "one\rtwo\rthree")
        (_, line) = refusal([path], "texts")
        assert line == (
            f"{path}:1: expected lines that end in line feeds, got carriage returns alone"
        )

    @pytest.mark.parametrize("name", ["x.txt", "x.csv"])
    def test_a_line_with_a_nul_byte_is_bad(self, write, name):
        path = write(name, "text\na\0b\n")
        assert refusal([path], "texts")[1].startswith(f"{path}:2: NUL bytes, as in UTF-16")

    def test_a_field_given_twice_is_bad(self, write):
        path = write("x.jsonl", '{"text": "a", "text": "b"}\n')
        (_, line) = refusal([path], "texts")
        assert line.endswith(
            "x.jsonl:1: not valid JSON (expected each field once, got 'text' 2 times)"
        )

    def test_several_files_are_one_source(self, write):
        first = write("a.jsonl", GOOD["pairs"])
        second = write("b.csv", "positive,anchor\np3,q3\n")
        source = read_source([first, second], "pairs")
        assert source.name == "a.jsonl, b.csv"
        assert source.texts == [*TEXTS["pairs"], ("q3", "p3")]

    def test_named_columns_in_any_order(self, write):
        path = write("x.jsonl", [{"b": "passage", "c": 1, "a": "query"}])
        assert read_source([path], "pairs", columns=["a", "b"]).texts == [("query", "passage")]
        # A text twice is a pair for contrast by dropout.
        assert read_source([path], "pairs", columns=["a", "a"]).texts == [("query", "query")]

    def test_positions_mean_no_header(self, write):
        path = write("x.csv", "0.5,one,more,two\n1,three,,four,extra\n")
        source = read_source([path], "scored", columns=np.array([1, 3, 0]))
        assert source.texts == [("one", "two"), ("three", "four")]
        assert source.targets.tolist() == [0.5, 1.0]

    def test_public_file_without_header(self, shared):
        source = read_source([shared / "eval/stsb-en-dev.csv"], "scored", columns=[0, 1, 2])
        assert len(source) == 1500
        hats = "A man with a hard hat is dancing.", "A man wearing a hard hat is dancing."
        assert source.texts[0] == hats
        assert source.targets[:3].tolist() == [5.0, 4.75, 5.0]

    def test_byte_order_mark(self, write):
        path = write("x.csv", "\ufefftext\n\u00e9t\u00e9\n")
        assert read_source([path], "texts").texts == [("\u00e9t\u00e9",)]
        path = write("x.jsonl", '\ufeff{"text": "a"}\n')
        assert read_source([path], "texts").texts == [("a",)]

    def test_no_text_is_too_long(self, write):
        path = write("x.csv", "text\n" + 300_000 * "a" + "\n")
        before = csv.field_size_limit(1000)
        try:
            assert read_source([path], "texts").texts == [(300_000 * "a",)]
        finally:
            assert csv.field_size_limit(before) == 1000

    def test_the_limit_of_csv_is_raised_within_a_step_alone(self, write):
        path = write("x.csv", "text\n" + 2 * (300_000 * "a" + "\n"))
        before = csv.field_size_limit(1000)
        try:
            lengths = []
            for record in read_records(path, Columns(("text",))):
                assert csv.field_size_limit() == 1000
                lengths.append(len(record.fields[0][1]))
            assert lengths == [300_000] * 2
            with pytest.raises(DataError, match="not valid CSV"):
                read_source([write("y.csv", 'text\n"open\n\n')], "texts")
            assert csv.field_size_limit() == 1000
        finally:
            csv.field_size_limit(before)

    def test_parquet_of_several_batches(self, write_parquet):
        count = 70_000
        texts = [f"t{i}" if i != 66_000 else " " for i in range(count)]
        path = write_parquet("x.parquet", {"text": texts, "other": list(range(count))})
        source = read_source([path], "texts", bad_rows="skip")
        assert source.texts == [(text,) for text in texts if text != " "]
        assert reasons(source) == [(66_001, "column 'text': expected a text, got a blank one")]

    def test_parquet_of_lists_and_classes(self, write_parquet):
        columns = {"anchor": ["q"], "positive": ["p"], "negative": [["n1", "n2"]]}
        source = read_source([write_parquet("x.parquet", columns)], "triplets")
        assert source.texts == [("q", "p", "n1", "n2")]
        path = write_parquet("y.parquet", {"text": ["a", "b", "c"], "label": [7, 3, 7]})
        assert read_source([path], "labelled").label_names == (7, 3)

    def test_import_brings_no_jax(self):
        code = "import sys, jina_jax.training.sampler; sys.exit('jax' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestCsv:
    def test_quotes_and_records_of_several_lines(self, write):
        content = (
            'anchor,positive\n"one, ""two""","line 2\nline 3"\nfour,\n"a\r\nb",c\nseven\nd,e\n'
        )
        source = read_source([write("x.csv", content)], "pairs", bad_rows="skip")
        assert source.texts == [('one, "two"', "line 2\nline 3"), ("a\r\nb", "c"), ("d", "e")]
        assert reasons(source) == [
            (4, "column 'positive': expected a text, got a blank one"),
            (7, "expected 2 fields, as in the header, got 1"),
        ]

    @settings(deadline=None)
    @given(st.lists(st.lists(st.text('",\n\tab ', max_size=6), min_size=2, max_size=2), min_size=1))
    @pytest.mark.parametrize("delimiter", [",", "\t"])
    def test_reads_what_csv_writes(self, tmp_path_factory, delimiter, rows):
        path = tmp_path_factory.getbasetemp() / ("w.csv" if delimiter == "," else "w.tsv")
        lines, line = [], 1
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            for row in [["good", "row"], *rows]:
                writer.writerow(row)
                lines.append(line)
                line += 1 + sum(field.count("\n") for field in row)
        source = read_source([path], "pairs", columns=[0, 1], bad_rows="skip")
        good = [all(field.strip() for field in row) for row in rows]
        assert source.texts[1:] == [tuple(r) for r, ok in zip(rows, good, strict=True) if ok]
        expected = [at for at, ok in zip(lines[1:], good, strict=True) if not ok]
        assert [problem.line for problem in source.problems] == expected

    def test_columns_apart_from_the_header_do_not_shift(self, write):
        path = write("x.csv", "text,label\na, b,x\nc,y\n")
        source = read_source([path], "labelled", bad_rows="skip")
        assert source.texts == [("c",)]
        assert reasons(source) == [(2, "expected 2 fields, as in the header, got 3")]

    def test_too_few_fields_for_the_positions(self, write):
        path = write("x.tsv", "a\tb\tc\nd\te\n\nf\n")
        source = read_source([path], "pairs", columns=[0, 2], bad_rows="skip")
        assert source.texts == [("a", "c")]
        expected = [(2, "expected 3 fields, got 2"), (4, "expected 3 fields, got 1")]
        assert reasons(source) == expected

    def test_quote_in_one_line(self, write):
        path = write("x.csv", 'text\n"a" b\nc\n"d')
        source = read_source([path], "texts", bad_rows="skip")
        assert source.texts == [("c",)]
        assert [problem.line for problem in source.problems] == [2, 4]
        assert all("not valid CSV" in problem.reason for problem in source.problems)

    @pytest.mark.parametrize("rest", ["d", 'd" x\ne\n'])
    @pytest.mark.parametrize("bad_rows", ["error", "skip"])
    def test_open_quote_swallows_no_rows(self, write, rest, bad_rows):
        path = write("x.csv", 'text\na\n"b\nc\n' + rest)
        (line,) = refusal([path], "texts", bad_rows=bad_rows)
        assert line.startswith(f"{path}:3: not valid CSV")
        assert line.endswith("to close, read on to line 5")

    @pytest.mark.parametrize("cell", ['["a", "b"]', "['a']", ' [ "a"\n, "b" ] '])
    def test_list_in_a_cell(self, write, cell):
        path = write("x.csv", "anchor,positive,negative\n" + _row("q", "p", cell))
        assert refusal([path], "triplets") == [
            "1 of 1 rows are bad:",
            f"{path}:2: column 'negative': expected one text per column in CSV, got a list",
        ]

    @pytest.mark.parametrize("cell", ["[deleted]", "['a'", '["a"] b', 'a ["b"]'])
    def test_brackets_alone_are_no_list(self, write, cell):
        path = write("x.csv", "anchor,positive,negative\n" + _row("q", "p", cell))
        assert read_source([path], "triplets").texts == [("q", "p", cell)]

    def test_score(self, write):
        rows = ["0.5", " -1e-3 ", "nan", "inf", "1e39", "1_0", "", "x", "3,4"]
        content = "sentence1,sentence2,score\n" + "".join(_row("a", "b", row) for row in rows)
        source = read_source([write("x.csv", content)], "scored", bad_rows="skip")
        np.testing.assert_array_equal(source.targets, np.array([0.5, -1e-3], np.float32))
        expected = [f"column 'score': expected a finite number, got {row!r}" for row in rows[2:]]
        assert reasons(source) == list(zip(range(4, 11), expected, strict=True))

    def test_not_utf8(self, write):
        path = write("x.csv", b"text,other\na,\xe9\n\xe9,b\n")
        source = read_source([path], "texts", bad_rows="skip")
        assert source.texts == [("a",)]
        assert reasons(source)[0][0] == 3
        assert reasons(source)[0][1].endswith("a byte that is not UTF-8)")


class TestLines:
    """One rule for all files: blank lines, line ends, byte order marks, lines without an end."""

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize(
        ("name", "lines"),
        [
            ("x.jsonl", ['{"text": "a"}', "", " \t", '{"text": "b"}', ""]),
            ("x.csv", ["text", "", "a", "", "b", ""]),
            ("x.tsv", ["text\tlabel", "a\tx", "", "b\ty"]),
        ],
    )
    def test_blank_lines_are_no_rows(self, write, name, lines, mark, end):
        path = write(name, (mark + "".join(line + end for line in lines)).encode())
        source = read_source([path], "texts")
        assert source.texts == [("a",), ("b",)]
        assert source.problems == ()

    def test_a_teacher_counts_rows_not_lines(self, write, tmp_path):
        path = write("x.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
        np.save(tmp_path / "t.npy", np.eye(2, dtype=np.float32))
        source = read_source([path], "texts", teacher=tmp_path / "t.npy")
        np.testing.assert_array_equal(source.teacher_of(np.array([1])), [[0, 1]])

    @pytest.mark.parametrize(("name", "line"), [("x.txt", "{}"), ("x.jsonl", '{{"text": "{}"}}')])
    def test_a_line_without_an_end_is_not_read_into_memory(self, write, monkeypatch, name, line):
        monkeypatch.setattr(data_lines, "LONGEST_LINE", 50)
        content = "\n".join(line.format(text) for text in ("a", "b" * 200, "c" * 20))
        source = read_source([write(name, content)], "texts", bad_rows="skip")
        assert source.texts == [("a",), ("c" * 20,)]
        assert reasons(source) == [(2, "expected lines of at most 50 bytes, got a longer one")]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("a\n" + "b" * 51 + "\nc\n", "3: expected lines of at most 50 characters"),
            ('a\n"b\n' + "c\n" * 60, "3: not valid CSV (field larger than field limit (50))"),
        ],
    )
    def test_nor_is_a_field(self, write, monkeypatch, content, reason):
        for module in (data_lines, data_records):
            monkeypatch.setattr(module, "LONGEST_LINE", 50)
        path = write("x.csv", "text\n" + content)
        (found,) = refusal([path], "texts", bad_rows="skip")
        assert found.startswith(f"{path}:{reason}")

    def test_of_a_gigabyte(self, tmp_path):
        """A file of zeros that takes no space on disk."""
        with (tmp_path / "x.jsonl").open("wb") as file:
            file.write(b'{"text": "a"}\n')
            file.truncate(1 << 30)
        tracemalloc.start()
        source = read_source([tmp_path / "x.jsonl"], "texts", bad_rows="skip")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 5 * data_lines.LONGEST_LINE
        ((line, reason),) = reasons(source)
        assert (line, reason.split(",", 1)[0]) == (2, "expected lines of at most 67")

    def test_of_another_encoding(self, write):
        for name in ("x.jsonl", "x.csv"):
            path = write(name, '{"text": "a"}\n'.encode("utf-16"))
            assert f"{path}:1: " in "\n".join(refusal([path], "texts"))


def _row(*fields):
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\n"


class TestBadRows:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{", "not valid JSON"),
            ("[1]", "expected a JSON object, got list"),
            ('{"text": "a", "x": NaN}', "not valid JSON (NaN is no JSON value)"),
            ("[" * 100_000, "not valid JSON"),
            ("\xff", "not UTF-8 (invalid start byte at byte 0)"),
            ("{}", "expected a column 'text', found nothing"),
            ('{"a": 1, "b": 2}', "expected a column 'text', found 'a', 'b'"),
            ('{"text": null}', "column 'text': expected a text, got none"),
            ('{"text": 1}', "column 'text': expected a text, got int"),
            ('{"text": ["a"]}', "column 'text': expected a text, got list"),
            ('{"text": ""}', "column 'text': expected a text, got a blank one"),
            ('{"text": " \\u3000\\n"}', "column 'text': expected a text, got a blank one"),
            ('{"text": "\\ud800"}', "column 'text': expected Unicode text"),
        ],
    )
    def test_of_jsonl(self, write, line, reason):
        content = b'{"text": "a"}\n' + line.encode("latin-1") + b'\n{"text": "b"}\n'
        path = write("x.jsonl", content)
        source = read_source([path], "texts", bad_rows="skip")
        assert source.texts == [("a",), ("b",)]
        ((found, told),) = reasons(source)
        assert found == 2
        assert told.startswith(reason)
        assert source.problems[0] == Problem(str(path), 2, told, "bad")
        assert refusal([path], "texts") == ["1 of 3 rows are bad:", f"{path}:2: {told}"]

    @pytest.mark.parametrize(
        ("score", "shown"),
        [
            ("true", "bool"),
            ("null", "none"),
            ('"0.5"', "str"),
            ("1e999", "inf"),
            ("-4e38", "-4e+38"),
            ("9" * 400, "9" * 60 + "…"),
        ],
    )
    def test_score(self, write, score, shown):
        row = '{"sentence1": "a", "sentence2": "a", "score": '
        path = write("x.jsonl", f"{row}3.4e38}}\n{row}{score}}}\n")
        source = read_source([path], "scored", bad_rows="skip")
        assert source.targets.tolist() == [np.float32(3.4e38)]
        reason = f"column 'score': expected a finite number, got {shown}"
        assert reasons(source) == [(2, reason)]

    @pytest.mark.parametrize("score", [float("nan"), None])
    def test_score_of_parquet(self, write_parquet, score):
        columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1.0, score]}
        source = read_source([write_parquet("x.parquet", columns)], "scored", bad_rows="skip")
        assert (source.texts, len(source.problems)) == ([("a", "c")], 1)

    @pytest.mark.parametrize(
        ("label", "shown"),
        [(True, "bool"), (None, "none"), (0.5, "float"), (" ", "a blank one")],
    )
    def test_label(self, write, label, shown):
        path = write("x.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": label}])
        reason = f"column 'label': expected a label, a string or integer, got {shown}"
        assert reasons(read_source([path], "labelled", bad_rows="skip")) == [(2, reason)]

    def test_label_of_a_lone_surrogate(self, write):
        path = write("x.jsonl", [{"text": "a", "label": "\ud800"}])
        assert refusal([path], "labelled")[1].endswith(
            "column 'label': expected Unicode text, got the lone surrogate U+D800 at character 0"
        )

    def test_labels_are_numbered_as_they_come_in_good_rows(self, write):
        labels = ["x", 1, "1", "lost", "x", -5]
        rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
        rows[3]["text"] = ""
        source = read_source([write("x.jsonl", rows)], "labelled", bad_rows="skip")
        assert source.label_names == ("x", 1, "1", -5)
        assert source.targets.tolist() == [0, 1, 2, 0, 3]

    def test_first_twenty_are_listed(self, write):
        path = write("x.txt", "good\n" + "\n" * 23)
        lines = refusal([path], "texts")
        assert lines[0] == "23 of 24 rows are bad:"
        reason = "column 'text': expected a text, got a blank one"
        assert lines[1:21] == [f"{path}:{line}: {reason}" for line in range(2, 22)]
        assert lines[21:] == ["and 3 more"]
        assert len(read_source([path], "texts", bad_rows="skip").problems) == 23

    def test_all_files_are_told_of(self, write):
        first, second = write("a.txt", "a\n\n"), write("b.txt", "\nb\n")
        lines = refusal([first, second], "texts")
        assert lines[0] == "2 of 4 rows are bad:"
        assert [line.split(": ")[0] for line in lines[1:]] == [f"{first}:2", f"{second}:1"]

    @pytest.mark.parametrize("bad_rows", ["error", "skip"])
    @pytest.mark.parametrize(
        ("name", "content"), [("x.txt", ""), ("x.jsonl", ""), ("x.csv", "text\n")]
    )
    def test_empty_file(self, write, bad_rows, name, content):
        good, empty = write("good.txt", "a\n"), write(name, content)
        expected = [f"{empty}: expected a row to use, got none"]
        assert refusal([good, empty], "texts", bad_rows=bad_rows) == expected

    def test_file_of_bad_rows(self, write):
        good, bad = write("good.txt", "a\n\n"), write("bad.txt", "\n \n")
        reason = "column 'text': expected a text, got a blank one"
        assert refusal([good, bad], "texts", bad_rows="skip") == [
            f"{bad}: expected a row to use, all of 2 are left out:",
            f"{bad}:1: {reason}",
            f"{bad}:2: {reason}",
        ]


class TestTriplets:
    def test_list_or_columns_of_negatives(self, write):
        rows = [
            {"anchor": "q", "positive": "p", "negative": ["a", "b", "c"]},
            {
                "anchor": "q",
                "positive": "p",
                "negative_2": "b",
                "negative_10": "c",
                "negative_1": "a",
            },
            {"negative_2": "c", "negative": ["a", "b"], "anchor": "q", "positive": "p"},
        ]
        source = read_source([write("x.jsonl", rows)], "triplets")
        assert source.texts == 3 * [("q", "p", "a", "b", "c")]

    def test_numbered_columns_of_csv(self, write):
        path = write("x.csv", "negative_2,anchor,negative_1,positive\nb,q,a,p\n")
        assert read_source([path], "triplets").texts == [("q", "p", "a", "b")]

    def test_named_columns(self, write):
        path = write("x.jsonl", [{"q": "q", "p": "p", "x": ["a"], "y": "b", "negative_1": "c"}])
        source = read_source([path], "triplets", columns=["q", "p", "y", "x"])
        assert source.texts == [("q", "p", "b", "a")]

    def test_negative_is_another_text(self, write):
        rows = [
            {"anchor": "q", "positive": "p", "negative": ["a", "a"]},
            {"anchor": "q", "positive": "p", "negative": ["a", "q"]},
            {"anchor": "q", "positive": "p", "negative": ["p", "a"]},
        ]
        source = read_source([write("x.jsonl", rows)], "triplets", bad_rows="skip")
        assert source.texts == [("q", "p", "a", "a")]
        assert reasons(source) == [
            (2, "column 'negative': a negative is the anchor, 'q'"),
            (3, "column 'negative': a negative is the positive, 'p'"),
        ]

    def test_number_is_that_of_the_first_good_row(self, write):
        lists = [["q"], ["a", "b"], ["a"], ["a", "b", "c"], [], ["c", "d"]]
        rows = [{"anchor": "q", "positive": "p", "negative": negatives} for negatives in lists]
        source = read_source([write("x.jsonl", rows)], "triplets", bad_rows="skip")
        assert source.texts == [("q", "p", "a", "b"), ("q", "p", "c", "d")]
        assert reasons(source)[1:] == [
            (3, "expected 2 negatives, as in the first row, got 1"),
            (4, "expected 2 negatives, as in the first row, got 3"),
            (5, "negatives: expected at least 1, got 0"),
        ]

    def test_first_ones_are_used(self, write):
        lists = [["a", "b", "c"], ["a"], ["a", "b", "q"], ["a", "b", None], ["c", "d"]]
        rows = [{"anchor": "q", "positive": "p", "negative": negatives} for negatives in lists]
        path = write("x.jsonl", rows)
        source = read_source([path], "triplets", negatives=2, bad_rows="skip")
        assert source.texts == [("q", "p", *ns) for ns in ("ab", "ab", "ab", "cd")]
        assert reasons(source) == [(2, "negatives: expected at least 2, got 1")]


class TestTeacher:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_vectors_stay_with_their_rows(self, write, tmp_path, dtype):
        first, second = write("a.txt", "r0\n\nr2\n\n"), write("b.txt", "\nr5\n")
        vectors = np.arange(12, dtype=dtype).reshape(6, 2)
        np.save(tmp_path / "t.npy", vectors)
        options = {"teacher": tmp_path / "t.npy", "bad_rows": "skip"}
        source = read_source([first, second], "texts", **options)
        assert isinstance(source.teacher, np.memmap)
        assert not source.teacher.flags.writeable
        assert source.teacher_rows.tolist() == [0, 2, 5]
        found = source.teacher_of(np.array([2, 0, 1]))
        assert found.dtype == np.float32
        assert found.tolist() == [[10, 11], [0, 1], [4, 5]]

    def test_rows_dropped_for_overlap_count(self, write, tmp_path):
        same = {"anchor": "one two three four", "positive": "one two three four five"}
        path = write("x.jsonl", [same, *GOOD["pairs"]])
        np.save(tmp_path / "t.npy", np.eye(3, dtype=np.float32))
        source = read_source([path], "pairs", teacher=tmp_path / "t.npy", drop_overlap=True)
        assert source.teacher_of(np.array([0])).tolist() == [[0, 1, 0]]

    def test_without_a_teacher(self, write):
        assert read_source([write("x.txt", "a\n")], "texts").teacher_of(np.array([0])) is None

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
    def test_vectors_are_finite(self, write, tmp_path, value):
        vectors = np.ones((3, 2))
        vectors[2, 1] = value
        np.save(tmp_path / "t.npy", vectors)
        options = {"teacher": tmp_path / "t.npy", "bad_rows": "skip"}
        source = read_source([write("x.txt", "\na\nb\n")], "texts", **options)
        assert source.teacher_of(np.array([0])).tolist() == [[1, 1]]
        with pytest.raises(ValueError, match=r"teacher of x\.txt: .*finite.*, vector 2 has"):
            source.teacher_of(np.array([0, 1]))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((3, 2), np.float32), "expected 2 rows, got 3"),
            (np.zeros((2, 2), np.int32), r"expected floats \(rows, d\), got int32 \(2, 2\)"),
            (np.zeros(2), r"expected floats \(rows, d\), got float64 \(2,\)"),
            (np.array([["a"]], object), "not a .npy file of numbers"),
        ],
    )
    def test_refusals(self, write, tmp_path, array, message):
        np.save(tmp_path / "t.npy", array)
        with pytest.raises(ValueError, match=rf"teacher='.*t\.npy': {message}"):
            read_source([write("x.txt", "a\nb\n")], "texts", teacher=tmp_path / "t.npy")

    @pytest.mark.parametrize("content", ["", "no array"])
    def test_other_files(self, write, content):
        teacher = write("t.npy", content)
        with pytest.raises(ValueError, match=r"teacher='.*t\.npy': not a \.npy file"):
            read_source([write("x.txt", "a\n")], "texts", teacher=teacher)


class TestOverlap:
    @pytest.mark.parametrize(
        ("anchor", "positive", "expected"),
        [
            ("one two three four", "zero one two three four five", True),
            ("zero one two three four five", "one two three four", True),
            ("one two three", "one two three four", False),  # three words
            ("on tw thre fou", "one two three four", True),  # substrings, not words
            ("a b c d X", "a b c d e f g", True),  # four of five
            ("a b c X", "a b c d e f g", False),  # three of four
            ("a b c d X Y", "a b c d e f g", False),  # four of six
            ("a b c d e f g h X Y", "a b c d e f g h i j k l", True),  # eight of ten
            ("a b c d e f g X Y Z", "a b c d e f g h i j k l", False),  # seven of ten
            ("a a a a", "b a b b b", True),
            ("One Two Three Four", "one two three four five", False),
        ],
    )
    def test_rule(self, anchor, positive, expected):
        assert pair_overlap(anchor, positive) is expected

    @pytest.mark.parametrize("bad_rows", ["error", "skip"])
    def test_dropped_pairs_are_problems_and_no_errors(self, write, bad_rows):
        same = {"anchor": "one two three four five", "positive": "one two three four"}
        path = write("x.jsonl", [GOOD["pairs"][0], same, GOOD["pairs"][1]])
        source = read_source([path], "pairs", drop_overlap=True, bad_rows=bad_rows)
        assert source.texts == TEXTS["pairs"]
        reason = "one text has the words of the other"
        assert source.problems == (Problem(str(path), 2, reason, "overlap"),)
        assert len(read_source([path], "pairs", bad_rows=bad_rows)) == 3

    def test_bad_rows_are_errors_beside_them(self, write):
        same = {"anchor": "one two three four", "positive": "one two three four"}
        path = write("x.jsonl", [same, {"anchor": "a"}, *GOOD["pairs"]])
        lines = refusal([path], "pairs", drop_overlap=True)
        assert lines[0] == "1 of 4 rows are bad:"
        assert len(lines) == 2

    def test_nothing_but_overlap(self, write):
        path = write("x.jsonl", [{"anchor": "a b c d", "positive": "a b c d"}])
        lines = refusal([path], "pairs", drop_overlap=True)
        assert lines[0] == f"{path}: expected a row to use, all of 1 are left out:"


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", ":1: expected a header, got nothing"),
            ('"a" b,c\n', ":1: expected a header, got not valid CSV"),
            ("anchor,text\n", ":1: expected a column 'positive', found 'anchor', 'text'"),
            ("anchor,positive,anchor\n", ":1: expected one column 'anchor', found 2"),
        ],
    )
    def test_header(self, write, content, message):
        path = write("x.csv", content)
        (line,) = refusal([path], "pairs", bad_rows="skip")
        assert line.startswith(f"{path}{message}")

    def test_header_of_parquet(self, write_parquet):
        path = write_parquet("x.parquet", {"anchor": ["a"], "text": ["b"]})
        expected = [f"{path}: expected a column 'positive', found 'anchor', 'text'"]
        assert refusal([path], "pairs", bad_rows="skip") == expected

    def test_not_parquet(self, write):
        pytest.importorskip("pyarrow")
        path = write("x.parquet", 100 * "no Parquet")
        assert refusal([path], "texts")[0].startswith(f"{path}: not a Parquet file that can be")

    def test_parquet_without_pyarrow(self, write, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match=r"needs pyarrow .* 'jina-jax\[train\]'"):
            read_source([write("x.parquet", "")], "texts")

    def test_missing_files(self, write, tmp_path):
        for suffix in (".jsonl", ".csv", ".txt"):
            with pytest.raises(FileNotFoundError):
                read_source([tmp_path / f"no{suffix}"], "texts")
        with pytest.raises(FileNotFoundError):
            read_source([write("x.txt", "a")], "texts", teacher=tmp_path / "no.npy")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "rows"}, "kind='rows': expected one of 'pairs', 'triplets'"),
            ({"bad_rows": "drop"}, "bad_rows='drop': expected 'error' or 'skip'"),
            ({"negatives": 1}, "negatives=1: expected None, kind 'texts' has none"),
            ({"kind": "triplets", "negatives": 0}, "negatives=0: expected an integer of at"),
            ({"kind": "triplets", "negatives": True}, "negatives=True: expected an integer"),
            ({"drop_overlap": True}, "drop_overlap=True: expected False, kind is 'texts'"),
            ({"columns": "text"}, "columns='text': expected names, or positions"),
            ({"columns": ["a", 1], "kind": "pairs"}, "expected names, or positions from 0"),
            ({"columns": [-1]}, r"columns=\[-1\]: expected names, or positions from 0"),
            ({"columns": [True]}, r"columns=\[True\]: expected names, or positions from 0"),
            ({"columns": []}, r"columns=\[\]: expected 1 for kind 'texts', the columns for text"),
            ({"columns": ["a", "b"]}, "expected 1 for kind 'texts'"),
            ({"columns": ["a", "b"], "kind": "triplets"}, "expected 3 or more for kind 'trip"),
            ({"columns": [0]}, r"columns=\[0\]: expected names, .*x\.jsonl has no positions"),
        ],
    )
    def test_options(self, write, options, message):
        path = write("x.jsonl", GOOD["texts"])
        with pytest.raises(ValueError, match=message):
            read_source([path], **{"kind": "texts", **options})

    @pytest.mark.parametrize("paths", [[], "x.txt"])
    def test_paths(self, paths):
        with pytest.raises(ValueError, match="expected a sequence of one path or more"):
            read_source(paths, "texts")

    def test_suffix(self, write):
        with pytest.raises(ValueError, match=r"x\.json: expected one of the suffixes \.jsonl"):
            read_source([write("x.json", "{}")], "texts")

    @pytest.mark.parametrize("options", [{"kind": "pairs"}, {"kind": "texts", "columns": ["text"]}])
    def test_lines_have_no_columns(self, write, options):
        with pytest.raises(ValueError, match=r"x\.txt: lines of text have no columns"):
            read_source([write("x.txt", "a\n")], **options)
