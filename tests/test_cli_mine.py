"""``jina-jax mine``: files in, a file out, and what it says about them."""

import json

import pytest
from click.testing import CliRunner

from jina_jax import JinaEmbeddings
from jina_jax.cli import main as cli
from jina_jax.cli.mine import report
from jina_jax.data import read_source
from jina_jax.search import Rules, mine_hard_negatives
from jina_jax.search.negatives import Mined, MinedRow

PAIRS = [("cat", "a cat purrs"), ("dog", "a dog barks"), ("cat", "a cat purrs"), ("sun", "it is")]
CORPUS = ["mice", "men", "trees", "a cat runs"]


@pytest.fixture
def files(tmp_path):
    rows = [json.dumps({"anchor": query, "positive": text}) for query, text in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli.main, ["mine", *map(str, args)])


def refusal(*args):
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr.removeprefix("jina-jax: error: ").rstrip("\n")


def written(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        MinedRow(r["anchor"], r["positive"], tuple(r["negative"]), tuple(r["scores"])) for r in rows
    ]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--num-negatives", 2], {"num_negatives": 2}),
        (
            [*("--num-negatives", 1, "--range-min", 2, "--range-max", 4, "--seed", 3)],
            {"num_negatives": 1, "range_min": 2, "range_max": 4, "seed": 3},
        ),
        (
            ["--num-negatives", 2, "--sampling-strategy", "random", "--seed", 5],
            {"num_negatives": 2, "sampling_strategy": "random", "seed": 5},
        ),
        (
            ["--num-negatives", 1, "--max-score", 0.9, "--min-score", -0.9],
            {"num_negatives": 1, "max_score": 0.9, "min_score": -0.9},
        ),
        (
            ["--num-negatives", 1, "--absolute-margin", -0.5, "--relative-margin", -0.5],
            {"num_negatives": 1, "absolute_margin": -0.5, "relative_margin": -0.5},
        ),
    ],
    ids=str,
)
def test_options_are_those_of_the_function(directory, files, args, options):
    result = run(
        *("--model", directory, files / "pairs.jsonl", files / "out.jsonl"),
        *("--corpus", files / "corpus.txt", "--dtype", "bfloat16", *args),
    )
    assert result.exit_code == 0, result.output
    model = JinaEmbeddings.from_pretrained(directory, dtype="bfloat16")
    expected = mine_hard_negatives(model, PAIRS, CORPUS, rules=Rules(**options))
    found = written(files / "out.jsonl")
    assert [row[:3] for row in found] == [row[:3] for row in expected.rows]
    for row, wanted in zip(found, expected.rows, strict=True):
        assert row.scores == pytest.approx(wanted.scores, abs=1e-7)
    assert result.stdout.rstrip("\n") == report(
        expected, files / "out.jsonl", options["num_negatives"]
    )


def test_without_a_corpus_from_csv_to_triplets(directory, files):
    (files / "pairs.csv").write_text('positive,anchor\na cat purrs,cat\n"it, is",sun\n')
    output = files / "out.jsonl"
    result = run("--model", directory, files / "pairs.csv", output, "--num-negatives", 1)
    assert result.exit_code == 0, result.output
    assert read_source([output], "triplets").texts == [
        ("cat", "a cat purrs", "it, is"),
        ("sun", "it, is", "a cat purrs"),
    ]
    assert result.stdout == (
        f"{output}: 2 pairs, negatives per pair: 1; searched 2 texts for 2 queries\n"
    )


def test_what_was_left_out_is_told():
    mined = Mined([], list(range(4, 29)), [0, 2], {"max_score": 1234, "min_score": 0}, 30, 5000)
    assert report(mined, "out.jsonl", 7).splitlines() == [
        "out.jsonl: 0 pairs, negatives per pair: 7; searched 5,000 texts for 30 queries",
        "dropped, too few negatives: 25 pairs (rows 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "
        "17, 18, 19, 20, 21, 22, 23, 24 and 5 more)",
        "dropped, repeated: 2 pairs (rows 1, 3)",
        "1,234 candidates removed by --max-score",
        "0 candidates removed by --min-score",
    ]


def test_nothing_mined_is_an_error_and_leaves_no_file(directory, files):
    error = refusal(
        "--model", directory, files / "pairs.jsonl", files / "out.jsonl", "--max-score", -0.99
    )
    assert "none of 3 pairs has enough negatives from 3 texts" in error
    assert sorted(path.name for path in files.iterdir()) == ["corpus.txt", "pairs.jsonl"]


def test_an_output_is_kept_unless_forced(directory, files):
    output = files / "out.jsonl"
    output.write_text("mine")
    args = ("--model", directory, files / "pairs.jsonl", output, "--num-negatives", 1)
    assert "exists already; --force overwrites it" in refusal(*args)
    assert output.read_text() == "mine"
    assert run(*args, "--force").exit_code == 0
    assert len(written(output)) == 3


def test_an_input_is_never_overwritten(files):
    pairs, corpus, link = files / "pairs.jsonl", files / "corpus.jsonl", files / "link.jsonl"
    corpus.write_text('{"text": "mice"}')
    link.symlink_to(pairs)
    before = pairs.read_text()
    for args in ((pairs, pairs), (pairs, link), (pairs, corpus, "--corpus", corpus)):
        error = refusal("--model", "no-such-model", *args, "--force")
        assert error == f"{args[1]}: is also an input; expected another file as output"
    assert pairs.read_text() == before


@pytest.mark.parametrize(
    ("output", "args", "message"),
    [
        ("out.csv", (), "out.csv: expected a name that ends in .jsonl"),
        ("out.jsonl", ("--num-negatives", 0), "0 is not in the range x>=1"),
        ("out.jsonl", ("--range-max", 5), "--range-max 5: expected at least"),
        ("out.jsonl", ("--sampling-strategy", "best"), "'best' is not one of 'top', 'random'"),
    ],
)
def test_refusals(directory, files, output, args, message):
    assert message in refusal("--model", directory, files / "pairs.jsonl", files / output, *args)
    assert not (files / output).exists()


def test_the_wrong_number_of_arguments():
    assert "Missing argument 'PAIRS'. (see 'jina-jax mine --help')" in refusal()
    assert "Missing argument 'OUT.jsonl'" in refusal("pairs.jsonl")
    assert "unexpected extra arguments (c d)" in refusal("a", "b", "c", "d")


def test_a_bad_row_is_named(directory, files):
    (files / "bad.jsonl").write_text('{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n')
    error = refusal("--model", directory, files / "bad.jsonl", files / "out.jsonl")
    assert "bad.jsonl:2: expected a column 'positive'" in error


def test_options_of_the_hub(directory, files, monkeypatch):
    asked = []

    def fetch(*args, **options):
        asked.append((*args, options))
        raise FileNotFoundError("no such revision")

    monkeypatch.setattr("jina_jax.checkpoints.hub.fetch", fetch)
    args = ("--model", "some/model", files / "pairs.jsonl", files / "out.jsonl")
    assert refusal(*args, "--offline", "--revision", "abc") == "no such revision"
    assert asked == [("some/model", {"revision": "abc", "local_files_only": True})]
