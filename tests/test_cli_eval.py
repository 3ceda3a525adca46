"""The command ``jina-jax eval``: what it prints, from which data, and how it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jina_jax import JinaEmbeddings, evaluation
from jina_jax.cli import main as cli
from jina_jax.tasks import pick_tasks

for package in ("scipy", "sklearn", "pytrec_eval"):
    pytest.importorskip(package)

FIRST = [("a cat", "cats", 4), ("the dog", "a hog", 3), ("one", "two", 1), ("two", "tree", 2)]
SECOND = [("der Hund", "Hunde", 5), ("eins", "zwei", 0), ("zwei", "drei", 1), ("ja", "jein", 3)]
TEXTS = ["good film", "bad film", "good book", "bad book", "good", "bad", "so good", "so bad"]
LABELS = ["x", "y"] * 4


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a file for every kind, and go there."""

    def rows(name, lines):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))

    for name, lines in [("en.csv", FIRST), ("de.csv", SECOND), ("x/en.csv", SECOND)]:
        rows(name, lines)
    labelled = list(zip(TEXTS, LABELS, strict=True))
    rows("train.csv", [("text", "category"), *labelled])
    rows("test.csv", [("text", "category"), *labelled[:4]])
    rows("bare.csv", labelled)
    rows("one.csv", FIRST[:1])
    rows("lines.de", [[text] for text in TEXTS[:4]])
    rows("lines.en", [[text] for text in TEXTS[4:]])
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(["film", "book"])]
    for name, objects in [("corpus", corpus), ("queries", queries)]:
        lines = "".join(json.dumps(row) + "\n" for row in objects)
        (folder / f"{name}.jsonl").write_text(lines)
    for name, judged in [("test", "q0\td1\t1\nq1\td2\t1\n"), ("dev", "q0\td7\t1\n")]:
        header = "query-id\tcorpus-id\tscore\n"
        (folder / f"qrels/{name}.tsv").write_text(header + judged)
    monkeypatch.chdir(tmp_path)


def run(*args):
    result = CliRunner().invoke(cli.main, ["eval", *map(str, args)])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def run_json(*args):
    return json.loads(run(*args, "--json"))


def refusal(*args):
    """Run a command that must fail, and return its only line on stderr without the beginning."""
    result = CliRunner().invoke(cli.main, ["eval", *map(str, args)])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("jina-jax: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("jina-jax: error: ").rstrip("\n")


def named(prefix, metrics):
    return {f"{prefix}/{name}": pytest.approx(value, abs=1e-9) for name, value in metrics.items()}


def columns(rows):
    return tuple(map(list, zip(*rows, strict=True)))


@pytest.mark.usefixtures("files")
class TestResults:
    def test_table(self, directory, model):
        found = evaluation.sts(model, *columns(FIRST), dims=(32,))
        lines = run("--model", directory, "sts", "en.csv", "--dims", "32").splitlines()
        assert [line.split() for line in lines] == [
            ["sts", "en", "64", "32"],
            ["spearman", f"{found['spearman']:.4f}", f"{found['spearman@32']:.4f}"],
            ["pearson", f"{found['pearson']:.4f}", f"{found['pearson@32']:.4f}"],
        ]
        assert len(set(map(len, lines))) == 1

    def test_several_files(self, directory, model):
        parts = [evaluation.sts(model, *columns(rows), dims=(32,)) for rows in (FIRST, SECOND)]
        lines = run("--model", directory, "sts", "en.csv", "de.csv", "--dims", "32").splitlines()
        means = {name: np.mean([part[name] for part in parts]) for name in parts[0]}
        assert means["spearman"] != means["pearson"]
        assert [line.split() for line in lines] == [
            ["spearman", "64", "32"],
            *(
                [name, f"{part['spearman']:.4f}", f"{part['spearman@32']:.4f}"]
                for name, part in zip(["en", "de", "mean"], [*parts, means], strict=True)
            ),
        ]
        found = run_json("--model", directory, "sts", "en.csv", "de.csv", "--dims", "32")
        assert found == {
            **named("sts/en", parts[0]),
            **named("sts/de", parts[1]),
            **named("mean", means),
        }

    def test_files_of_the_same_name(self, directory):
        found = run_json("--model", directory, "sts", "en.csv", "x/en.csv")
        names = {key.rpartition("/")[0] for key in found}
        assert names == {"sts/en.csv", "sts/x/en.csv", "mean"}

    def test_json_has_all_digits(self, directory, model):
        found = run_json("--model", directory, "sts", "en.csv")
        assert found == named("sts/en", evaluation.sts(model, *columns(FIRST)))

    def test_bitext(self, directory, model):
        found = run_json("--model", directory, "bitext", "lines.de", "lines.en", "--dims", "32")
        want = evaluation.bitext(model, TEXTS[:4], TEXTS[4:], dims=(32,))
        assert found == named("bitext/lines", want)

    def test_classification(self, directory, model):
        names = ["--columns", "text,category"]
        found = run_json("--model", directory, "classification", "train.csv", "test.csv", *names)
        data = TEXTS, LABELS, TEXTS[:4], LABELS[:4]
        assert found == named("classification/train", evaluation.classification(model, *data))

    def test_clustering_by_position(self, directory, model):
        found = run_json("--model", directory, "clustering", "bare.csv", "--columns", "0,1")
        assert found == named("clustering/bare", evaluation.clustering(model, TEXTS, LABELS))

    @pytest.mark.parametrize("split", ["test", "dev"])
    def test_retrieval(self, directory, model, split):
        found = run_json("--model", directory, "retrieval", "set", "--split", split)
        data = evaluation.read_beir("set", split)
        assert found == named("retrieval/set", evaluation.retrieval(model, *data))

    @pytest.mark.filterwarnings("default")
    def test_without_a_model(self, directory, monkeypatch):
        monkeypatch.setattr("jina_jax.checkpoints.hub.PACKAGED", directory)
        result = CliRunner().invoke(cli.main, ["eval", "sts", "en.csv", "de.csv", "--dims", "32"])
        assert result.stdout == run("--model", directory, "sts", "en.csv", "de.csv", "--dims", "32")
        assert result.stderr.startswith("jina-jax: warning: no model named")
        assert result.stderr.count("\n") == 1

    def test_a_model_called_like_a_kind(self, directory):
        Path("retrieval").symlink_to(directory)
        expected = run("--model", directory, "retrieval", "set")
        assert run("retrieval", "set", "--model", "retrieval") == expected

    def test_a_folder_with_a_dot_in_its_name(self, directory):
        Path("set").rename("set.v2")
        assert "retrieval/set.v2/ndcg_at_10" in run_json(
            "--model", directory, "retrieval", "set.v2"
        )

    @pytest.mark.parametrize(
        ("given", "task"),
        [
            (["none"], None),
            (["separation"], "separation"),
            (["retrieval.query", "none"], ("retrieval.query", None)),
            ([], "auto"),
        ],
    )
    def test_tasks(self, directory, model, given, task, monkeypatch):
        seen = []
        encode = JinaEmbeddings.encode

        def noted(self, texts, **options):
            seen.append(options["task"])
            return encode(self, texts, **options)

        monkeypatch.setattr(JinaEmbeddings, "encode", noted)
        run(
            "--model",
            directory,
            "retrieval",
            "set",
            *(part for one in given for part in ("--task", one)),
        )
        assert tuple(seen) == pick_tasks(model, "retrieval", task)

    @pytest.mark.filterwarnings("default")
    def test_options_of_the_model(self, directory):
        with pytest.warns(UserWarning, match="longer than max_length=5 tokens"):
            short = evaluation.sts(
                JinaEmbeddings.from_pretrained(directory, dtype="bfloat16"),
                *columns(FIRST),
                max_length=5,
            )
        args = ["eval", "sts", "en.csv", "--model", str(directory), "--json"]
        options = ["--max-length", "5", "--dtype", "bfloat16"]
        result = CliRunner().invoke(cli.main, [*args, *options])
        assert json.loads(result.stdout) == named("sts/en", short)
        assert "max_length=5 tokens" in result.stderr


@pytest.mark.usefixtures("files")
class TestRefused:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "Missing argument 'KIND'"),
            (["sts"], "Missing argument 'PATH...'"),
            (["summaries", "en.csv"], "'summaries' is not one of 'sts', 'bitext', 'classificat"),
            (["sts", "en.csv", "en.csv"], "expected each file once"),
            (["sts", "en.csv", "--task", "a", "--task", "b"], "expected --task once"),
            (["retrieval", "set", *["--task", "a"] * 3], "expected --task once, or for retr"),
            (["sts", "en.csv", "--dims", "32,x"], "'32,x': expected positive integers"),
            (["sts", "en.csv", "--dims", "0"], "'0': expected positive integers"),
            (["sts", "en.csv", "--columns", "a,,b"], "expected values separated by commas"),
            (["sts", "nowhere.csv"], "nowhere.csv: No such file"),
            (["sts", "train.csv"], "train.csv:1: expected a column 'sentence1'"),
            (["bitext", "lines.de"], "expected 2 for bitext"),
            (["sts", "one.csv"], "one.csv: scores: expected finite numbers that are not all"),
            (["sts", "en.csv", "--split", "x"], "--split 'x': expected none, sts has no splits"),
            (["retrieval", "set", "--split", "x"], "--split 'x': set has dev, test"),
        ],
    )
    def test_before_the_model_is_looked_for(self, args, message):
        assert message in refusal("--model", "no-such-model", *args)

    def test_dims_and_tasks_that_the_model_lacks(self, directory):
        assert "65" in refusal("--model", directory, "sts", "en.csv", "--dims", "65")
        assert "'a'" in refusal("--model", directory, "sts", "en.csv", "--task", "a")

    def test_no_model(self, tmp_path):
        assert "no-such-model" in refusal(
            "sts", "en.csv", "--offline", "--model", tmp_path / "no-such-model"
        )

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pytrec_eval", None)
        message = refusal("--model", "no-such-model", "retrieval", "set")
        assert message.endswith('evaluation needs pytrec_eval: pip install "jina-jax[eval]"')
