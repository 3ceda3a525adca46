"""``jina-jax search``: what it finds, what it prints, and how it refuses."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from published import TASKS

from jina_jax import JinaEmbeddings
from jina_jax.cli import main as cli
from jina_jax.cli import search as cli_search
from jina_jax.cli.search import cut
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint
from jina_jax.search import Passage, find, split
from jina_jax.search.passages import UNITS

LINES = ["a cat purrs", "", "  the dog\tbarks ", "sun and rain", " \u3000", "", "犬がほえる"]
BY_LINE = [(1, 1, LINES[0]), (3, 3, LINES[2]), (4, 4, LINES[3]), (7, 7, LINES[6])]
BY_PARAGRAPH = [(1, 1, LINES[0]), (3, 4, "\n".join(LINES[2:4])), (7, 7, LINES[6])]
PASSAGES = [Passage(*fields) for fields in BY_LINE]
QUERY = "a dog"


@pytest.fixture
def notes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("\n".join(LINES), encoding="utf-8")
    return "notes.txt"


def run(*args, stdin=None):
    return CliRunner().invoke(cli.main, ["search", *map(str, args)], input=stdin)


def found(*args, stdin=None):
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout.splitlines()


def refusal(*args, stdin=None):
    result = run(*args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("jina-jax: error: ").rstrip("\n")


def ranked(model, passages, query_task, passage_task, dim=None):
    """Search by sorting the products of vectors that are computed one by one."""
    texts = [text for *_, text in passages]
    query = model.encode(QUERY, task=query_task, truncate_dim=dim)
    scores = model.encode(texts, task=passage_task, truncate_dim=dim) @ query
    return [(scores[i], passages[i]) for i in np.argsort(-scores, kind="stable")]


def assert_found(actual, expected):
    assert [passage for _, passage in actual] == [passage for _, passage in expected]
    np.testing.assert_allclose(
        [score for score, _ in actual], [score for score, _ in expected], atol=1e-5
    )


class TestSplit:
    def test_lines_keep_their_numbers(self):
        assert list(split(LINES, "line")) == BY_LINE

    def test_paragraphs_are_separated_by_blank_lines(self):
        assert list(split(LINES, "paragraph")) == BY_PARAGRAPH
        assert list(split(["", "a", "b", ""], "paragraph")) == [(2, 3, "a\nb")]

    @pytest.mark.parametrize("by", UNITS)
    @pytest.mark.parametrize("lines", [[], [""], [" ", "\t"]])
    def test_nothing_but_blanks(self, lines, by):
        assert list(split(lines, by)) == []

    def test_another_unit(self):
        with pytest.raises(ValueError, match="by='word': expected one of 'line', 'paragraph'"):
            list(split(LINES, "word"))


class TestFind:
    @pytest.mark.parametrize(
        ("task", "pair"),
        [
            ("auto", TASKS[:2]),
            (None, (None, None)),
            ("separation", ("separation", "separation")),
            (("retrieval.query", None), ("retrieval.query", None)),
        ],
    )
    def test_tasks(self, model, task, pair):
        expected = ranked(model, BY_LINE, *pair)
        assert_found(find(model, QUERY, PASSAGES, 4, task=task), expected)

    def test_a_model_without_the_pair(self, directory, tmp_path):
        merged = merge_checkpoint(open_checkpoint(directory), "separation")
        write_checkpoint(merged, tmp_path / "merged", "native")
        model = JinaEmbeddings.from_pretrained(tmp_path / "merged")
        expected = ranked(model, BY_LINE, None, None)
        assert_found(find(model, QUERY, PASSAGES, 4), expected)

    def test_fewer_than_there_are_and_in_fewer_dimensions(self, model):
        expected = ranked(model, BY_LINE, *TASKS[:2], dim=32)[:2]
        assert_found(find(model, QUERY, PASSAGES, 2, truncate_dim=32), expected)

    def test_of_equal_texts_the_first_comes_first(self, model):
        passages = [Passage(n, n, "a dog") for n in (2, 3, 5)]
        assert [p.first for _, p in find(model, QUERY, passages, 9)] == [2, 3, 5]

    def test_nothing_to_search(self, model):
        with pytest.raises(ValueError, match="passages: expected at least one"):
            find(model, QUERY, [], 1)
        for top_k in (0, True, 1.5):
            with pytest.raises(ValueError, match=f"top_k={top_k}: expected an integer"):
                find(model, QUERY, PASSAGES, top_k)


class TestOutput:
    def test_text(self, directory, model, notes):
        expected = ranked(model, BY_LINE, *TASKS[:2])
        texts = {1: "a cat purrs", 3: "the dog barks", 4: "sun and rain", 7: "犬がほえる"}
        assert found(notes, QUERY, "--model", directory) == [
            f"{rank}  {score:6.3f}  notes.txt:{first}  {texts[first]}"
            for rank, (score, (first, *_)) in enumerate(expected, start=1)
        ]

    def test_paragraphs(self, directory, model, notes):
        expected = ranked(model, BY_PARAGRAPH, *TASKS[:2])
        places = {1: "notes.txt:1  ", 3: "notes.txt:3-4", 7: "notes.txt:7  "}
        lines = found(notes, QUERY, "--model", directory, "--by", "paragraph")
        assert [line[11:24] for line in lines] == [places[first] for _, (first, *_) in expected]
        assert any(line.endswith("  the dog barks sun and rain") for line in lines)

    def test_json_has_all_digits_and_the_text_as_it_is(self, directory, model, notes):
        args = ("--model", directory, "--by", "paragraph", "--json", "--top-k", 2)
        rows = [json.loads(line) for line in found(notes, QUERY, *args)]
        actual = find(model, QUERY, [Passage(*fields) for fields in BY_PARAGRAPH], 2)
        assert rows == [
            {
                "rank": rank,
                "score": pytest.approx(score, abs=1e-8),
                "file": "notes.txt",
                "first_line": passage.first,
                "last_line": passage.last,
                "text": passage.text,
            }
            for rank, (score, passage) in enumerate(actual, start=1)
        ]

    def test_options_reach_the_library(self, directory, notes):
        args = ("--truncate-dim", 32, "--dtype", "bfloat16", "--task", "none", "--top-k", 3)
        low = JinaEmbeddings.from_pretrained(directory, dtype="bfloat16")
        expected = find(low, QUERY, PASSAGES, 3, task=None, truncate_dim=32)
        rows = map(json.loads, found(notes, QUERY, "--model", directory, "--json", *args))
        assert [(row["score"], row["first_line"]) for row in rows] == [
            (pytest.approx(score, abs=1e-8), passage.first) for score, passage in expected
        ]

    def test_stdin(self, directory, notes):
        text = "\ufeffa dog\r\n\nthe cat\n"
        lines = found("-", QUERY, "--model", directory, "--task", "none", stdin=text)
        assert [line.split()[2] for line in lines] == ["stdin:1", "stdin:3"]
        assert lines[0] == "1   1.000  stdin:1  a dog"

    def test_it_is_cut_on_a_terminal_alone(self, monkeypatch):
        passages = [(0.5, Passage(9, 9, "word " * 40)), (-0.25, Passage(12, 14, "\x1b[31m red"))]
        assert list(cli_search._as_text("f", passages)) == [
            "1   0.500  f:9      " + ("word " * 40).strip(),
            "2  -0.250  f:12-14  \ufffd[31m red",
        ]
        monkeypatch.setenv("COLUMNS", "26")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert list(cli_search._as_text("f", passages)) == [
            "1   0.500  f:9      word …",
            "2  -0.250  f:12-14  \ufffd[31m…",
        ]

    @pytest.mark.parametrize(
        ("line", "columns", "expected"),
        [
            ("", 5, ""),
            ("abcde", 5, "abcde"),
            ("abcdef", 5, "abcd…"),
            ("犬犬犬", 6, "犬犬犬"),
            ("犬犬犬", 5, "犬犬…"),
            ("犬犬犬", 4, "犬…"),
            ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
            ("e\u0301e\u0301e", 2, "e\u0301…"),
            ("ab", 1, "…"),
        ],
    )
    def test_columns_of_a_terminal(self, line, columns, expected):
        assert cut(line, columns) == expected


class TestRefused:
    @pytest.mark.parametrize(
        ("args", "stdin", "message"),
        [
            (("-", " \n"), "text", r"QUERY ' \n': expected a text that is not blank"),
            (("-", "x"), "", "stdin: expected a text, got an empty file or only blank lines"),
            (("-", "x"), "\n \n", "stdin: expected a text, got an empty file"),
            (("-", "x"), b"a\n\nb\xff\n", "stdin:3: not UTF-8"),
            (("none.txt", "x"), None, "none.txt: No such file"),
            (("-",), "a", "Missing argument 'QUERY'"),
            (("-", "two", "words"), "a", "Got unexpected extra argument (words)"),
            (("-", "x", "--top-k", 0), "a", "0 is not in the range x>=1"),
            (("-", "x", "--by", "word"), "a", "'word' is not one of 'line', 'paragraph'"),
            (("-", "x", *["--task", "a"] * 3), "a", "expected --task once, or for retrieval twice"),
        ],
    )
    def test_before_the_model_is_looked_for(self, args, stdin, message):
        assert message in refusal(*args, "--model", "/no/such/model", stdin=stdin)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--task", "a"), "--task 'a'"),
            (("--truncate-dim", 33), "--truncate-dim 33: expected one of 32, 64"),
        ],
    )
    def test_what_the_model_lacks(self, directory, args, message):
        assert message in refusal("-", "x", "--model", directory, *args, stdin="a\n")

    def test_options_of_the_hub(self, monkeypatch):
        def fetch(*args, **options):
            assert args == ("some/model",)
            assert options == {"revision": "abc", "local_files_only": True}
            raise FileNotFoundError("no such revision")

        monkeypatch.setattr("jina_jax.checkpoints.hub.fetch", fetch)
        args = ("--model", "some/model", "--offline", "--revision", "abc")
        assert refusal("-", "x", *args, stdin="a") == "no such revision"


def test_texts_are_not_passages(model):
    for wrong in ([], ["a text"], "a text"):
        with pytest.raises(ValueError, match="passages: expected at least one Passage"):
            find(model, "a", wrong, 1)
