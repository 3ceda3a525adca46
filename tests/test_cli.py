"""The command line: what it prints and writes, and how it refuses."""

import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from published import PROMPTS, TASKS

from jina_jax import JinaEmbeddings, files
from jina_jax.cli import main as cli
from jina_jax.cli import rows as cli_rows

# Most tests run four texts of up to 16 tokens: so many shapes, so many seconds of compiling.
TEXTS = ["a cat", "the dog", "", "  two  spaces "]
START = "from jina_jax.cli.main import main; main(prog_name='jina-jax')"


def run(*args, stdin=None):
    """Run a command in this process."""
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], input=stdin)


def run_encode(directory, *args, stdin=None):
    result = run("encode", "--model", directory, *args, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def vectors_of(text):
    return np.array([row["embedding"] for row in rows_of(text)], np.float32)


def refusal(*args, stdin=None):
    """Run a command that must fail, and return its only line on stderr without the beginning."""
    result = run(*args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("jina-jax: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("jina-jax: error: ").rstrip("\n")


class TestEncode:
    def test_arguments(self, directory, model):
        out = run_encode(directory, "--task", "separation", *TEXTS)
        rows = rows_of(out)
        assert [row["index"] for row in rows] == [0, 1, 2, 3]
        assert [row["text"] for row in rows] == TEXTS
        # To the bit: decimal digits must not cost anything.
        np.testing.assert_array_equal(vectors_of(out), model.encode(TEXTS, task="separation"))

    def test_a_line_is_a_text_and_keeps_its_place(self, directory, model, tmp_path):
        lines = "\ufeffa cat\nthe dog\r\n\n two \u2028lines ".encode()
        (tmp_path / "in.txt").write_bytes(lines)
        run_encode(directory, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy")
        vectors = np.load(tmp_path / "out.npy")
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, model.encode([*TEXTS[:3], " two \u2028lines "]))

    @pytest.mark.parametrize("args", [(), ("-",), ("--input", "-")])
    def test_stdin(self, directory, args):
        rows = rows_of(run_encode(directory, *args, stdin="a cat\n\nthe dog\n"))
        assert [row["text"] for row in rows] == ["a cat", "", "the dog"]

    def test_jsonl_keeps_fields_and_takes_tasks_from_rows(self, directory, model, tmp_path):
        rows = [
            {"id": 7, "body": "a cat", "task": "separation", "more": {"é": [1, None]}},
            {"id": 8, "body": "the dog", "task": None},
            {"id": "x", "body": "a cat"},
            {"id": 9, "body": "a cat", "task": "retrieval.query", "odd": "\ud800"},
        ]
        (tmp_path / "in.jsonl").write_text(" \r\n".join(map(json.dumps, rows)))
        args = ("--input", tmp_path / "in.jsonl", "--field", "body", "--task-field", "task")
        args += ("--task", "classification", "--prompt", "none")
        run_encode(directory, *args, "--output", tmp_path / "out.jsonl")
        out = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
        tasks = ["separation", "classification", "classification", "retrieval.query"]
        expected = model.encode([row["body"] for row in rows], task=tasks, prompt=None)
        np.testing.assert_array_equal(vectors_of(out), expected)
        assert [{k: v for k, v in row.items() if k != "embedding"} for row in rows_of(out)] == rows

    def test_jsonl_without_task_field(self, directory, model):
        lines = "\n".join(json.dumps({"t": text}) for text in TEXTS)
        out = run_encode(directory, "--field", "t", "--task", "separation", stdin=lines)
        np.testing.assert_array_equal(vectors_of(out), model.encode(TEXTS, task="separation"))

    @pytest.mark.parametrize(
        ("given", "meant"),
        [("auto", PROMPTS["retrieval.query"]), ("none", ""), ("", ""), ("Find: ", "Find: ")],
    )
    def test_prompt(self, directory, model, given, meant):
        texts = ["a cat", "the dog", ""]
        out = run_encode(directory, "--task", "retrieval.query", "--prompt", given, *texts)
        prompted = [meant + text for text in texts]
        expected = model.encode(prompted, task="retrieval.query", prompt=None)
        np.testing.assert_array_equal(vectors_of(out), expected)

    def test_none_is_the_base_model(self, directory, model):
        lines = '{"t": "a cat", "own": "none"}\n{"t": "a cat"}'
        args = ("--field", "t", "--task-field", "own", "--task", "separation")
        vectors = vectors_of(run_encode(directory, *args, stdin=lines))
        np.testing.assert_array_equal(
            vectors, model.encode(["a cat"] * 2, task=[None, "separation"])
        )
        out = run_encode(directory, "--task", "none", "a cat")
        np.testing.assert_array_equal(vectors_of(out)[0], model.encode("a cat"))

    def test_options_reach_the_library(self, directory):
        args = ("--truncate-dim", 32, "--no-normalize", "--batch-size", 2, "--dtype", "bfloat16")
        out = run_encode(directory, *args, "--max-length", 20, *TEXTS)
        model = JinaEmbeddings.from_pretrained(directory, dtype="bfloat16")
        options = {"truncate_dim": 32, "normalize_embeddings": False, "batch_size": 2}
        np.testing.assert_array_equal(vectors_of(out), model.encode(TEXTS, **options))
        assert vectors_of(out).shape == (4, 32)

    def test_special_tokens_can_be_plain_text(self, directory, model):
        text = "a</s>b"
        out = run_encode(directory, "--split-special-tokens", text)
        plain = JinaEmbeddings.from_pretrained(directory, split_special_tokens=True)
        np.testing.assert_array_equal(vectors_of(out)[0], plain.encode(text))
        assert np.abs(vectors_of(run_encode(directory, text))[0] - plain.encode(text)).max() > 1e-3

    def test_no_input_gives_no_vectors(self, directory, tmp_path):
        assert run_encode(directory, stdin="") == ""
        run_encode(directory, "--output", tmp_path / "x.npy", "--truncate-dim", 32, stdin="")
        assert np.load(tmp_path / "x.npy").shape == (0, 32)
        assert run_encode(directory, "--format", "table", stdin="").strip() == ""

    def test_table(self, directory, model):
        texts = ["a cat", "a\tdog\x1b[31m", "犬", "犬" * 70]
        lines = run_encode(directory, "--format", "table", *texts).splitlines()
        unit = model.encode(texts)
        assert lines[0].split() == ["1", "2", "3", "4"]
        assert lines[1].split()[:2] == ["1", "1.000"]
        assert lines[1].split()[3] == f"{unit[0] @ unit[2]:.3f}"
        assert [line[36:] for line in lines[1:]] == [
            "a cat",
            "a dog\ufffd[31m",
            "犬",
            "犬" * 59 + "…",
        ]

    def test_the_table_in_the_help_shows_what_it_should(self):
        """The two questions of one meaning are nearest, with the model in the package."""
        help_text = run("encode", "--help").stdout
        example = help_text.split("--format table \\\n")[1].split("\n")[0]
        texts = shlex.split(example)
        assert len(texts) == 3
        args = ("--task", "text-matching", "--format", "table", *texts)
        rows = [line.split() for line in run_encode("tiny", *args).splitlines()[1:]]
        same, other, another = float(rows[0][2]), float(rows[0][3]), float(rows[1][3])
        assert same > 0.1 + max(other, another)

    @pytest.mark.filterwarnings("default")
    def test_truncation_is_one_line(self, directory):
        result = run("encode", "--model", directory, "--max-length", 16, *["a" * 16] * 3)
        assert result.exit_code == 0
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("jina-jax: warning: 3 of 3 texts were longer")
        assert len(rows_of(result.stdout)) == 3

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--input", "f", "text"), "expected no --input and no --field"),
            (("--field", "t", "text"), "expected no --input and no --field"),
            (("--task-field", "t"), "--task-field needs JSONL"),
            (("--input", "rows.jsonl"), "rows.jsonl: looks like JSONL"),
            (("--input", "/no/such/file"), "/no/such/file: No such file"),
            (("--format", "npy", "text"), "format npy: expected a file"),
            (("--output", "x.csv", "text"), "x.csv: expected one of the suffixes .jsonl"),
            (
                ("--output", "x.npy", "--format", "jsonl", "text"),
                "x.npy: expected format npy for this suffix, got jsonl",
            ),
            (("--output", "/no/such/x.npy", "text"), "/no/such: no such directory"),
            (("--format", "table", *"abcdefghijklmnopqrstu"), "at most 20 texts, got 21"),
            (("--task", "retrieval", "text"), "--task 'retrieval': this checkpoint has"),
            (("--truncate-dim", 33, "text"), "--truncate-dim 33: expected one of 32, 64"),
            (("--max-length", 129, "text"), "--max-length 129: expected an integer from 2 to 128"),
            (("--max-length", 1, "text"), "Invalid value for '--max-length'"),
            (("--batch-size", 0, "text"), "Invalid value for '--batch-size'"),
            (("--dtype", "int8", "text"), "Invalid value for '--dtype': 'int8' is not one of"),
            (("--format", "csv", "text"), "Invalid value for '--format'"),
            (("--nonsense", "text"), "No such option"),
            (("lone \udce9 byte",), "texts[0]: expected Unicode text"),
        ],
    )
    def test_refusals(self, directory, args, message):
        assert message in refusal("encode", "--model", directory, *args)

    @pytest.mark.parametrize(
        ("stdin", "message"),
        [
            ('{"t": "a"}\n{"t": ', "stdin:2: not valid JSON"),
            ('{"t": NaN}', "stdin:1: not valid JSON (NaN is no JSON value)"),
            ("[1]", "stdin:1: expected a JSON object, got list"),
            ('{"t": 5}', "stdin:1: field 't': expected a text, got int"),
            ('{"t": null}', "stdin:1: field 't': expected a text, got none"),
            ('{"t": {"t": "a"}}', "stdin:1: field 't': expected a text, got dict"),
            ('{"t": ""}\n{"T": "a", "u": 1}', "stdin:2: expected a field 't', found 'T', 'u'"),
            ('{"t": "a"}\n\n{"t": ', "stdin:3: not valid JSON"),
            ('{"t": "a", "task": 1}', "stdin:1: field 'task': expected a text, got int"),
            ('{"t": "a", "embedding": [0]}', "stdin:1: has a field 'embedding'"),
            ('{"t": "a"}\n{"t": "a", "tsk": "x"}', "--task-field 'task': no row has this field"),
            (
                '{"t": "a"}\n{"t": "a", "task": "foo"}',
                "stdin:2: field 'task': expected one of 'retrieval.query', ",
            ),
            (b'{"t": "\xff"}', "stdin:1: not UTF-8"),
            ('{"t": "\\ud800"}', "stdin:1: field 't': expected Unicode text"),
            ("[" * 100_000, "stdin:1: not valid JSON"),
        ],
    )
    def test_refused_rows(self, directory, stdin, message):
        args = ("--model", directory, "--field", "t", "--task-field", "task")
        assert message in refusal("encode", *args, stdin=stdin)

    def test_blank_lines_of_jsonl_are_no_rows(self, directory):
        stdin = b'\xef\xbb\xbf{"t": "a cat"}\r\n\r\n \n{"t": "the dog", "id": 7}\n\n'
        rows = rows_of(run_encode(directory, "--field", "t", stdin=stdin))
        assert [list(row) for row in rows] == [["t", "embedding"], ["t", "id", "embedding"]]
        assert run_encode(directory, "--field", "t", stdin="\n\n") == ""

    def test_a_terminal_without_texts_is_told_what_to_do(self, monkeypatch):
        class Terminal(io.BytesIO):
            def isatty(self):
                return True

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Terminal(b"a cat\n")))
        with pytest.raises(ValueError, match="no texts: give some"):
            cli_rows.read_rows((), None, None, None, None)
        assert cli_rows.read_rows((), Path("-"), None, None, None).texts == ["a cat"]


class TestOutputFile:
    def test_what_is_there_stays_unless_forced(self, directory, tmp_path):
        target = tmp_path / "out.npy"
        target.write_text("precious")
        args = ("encode", "--model", directory, "--output", target, *TEXTS)
        assert "exists already; --force overwrites it" in refusal(*args)
        assert target.read_text() == "precious"
        assert run(*args, "--force").exit_code == 0
        assert np.load(target).shape == (4, 64)

    def test_an_input_is_never_overwritten(self, tmp_path):
        rows = tmp_path / "in.jsonl"
        rows.write_text('{"t": "a cat"}')
        args = ("--input", rows, "--field", "t", "--output", rows, "--force")
        assert f"{rows}: is also an input" in refusal("encode", "--model", "no-such", *args)
        assert rows.read_text() == '{"t": "a cat"}'

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (OSError(28, "No space left", "x.npy"), 2, "jina-jax: error: x.npy: No space left"),
            (KeyboardInterrupt(), 130, ""),
        ],
    )
    def test_nothing_is_left_of_a_failure(
        self, directory, tmp_path, monkeypatch, error, code, message
    ):
        def fail(file, *_):
            file.write(b"half")
            raise error

        monkeypatch.setattr("jina_jax.cli.encode.write_rows", fail)
        output = tmp_path / "out.npy"
        result = run("encode", "--model", directory, "--output", output, *TEXTS)
        assert (result.exit_code, result.output.strip()) == (code, message)
        assert not list(tmp_path.iterdir())

    def test_a_file_that_came_meanwhile_stays(self, tmp_path):
        target = tmp_path / "out.npy"
        output = files.new_output(target, force=False)
        output.__enter__().write(b"ours")
        target.write_text("theirs")
        with pytest.raises(FileExistsError):
            output.__exit__(None, None, None)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]

    def test_force_writes_through_a_link_and_only_to_files(self, tmp_path):
        (tmp_path / "real.npy").write_text("old")
        (tmp_path / "link.npy").symlink_to("real.npy")
        with files.new_output(tmp_path / "link.npy", force=True) as file:
            file.write(b"new")
        assert (tmp_path / "link.npy").is_symlink()
        assert (tmp_path / "real.npy").read_text() == "new"
        with (
            pytest.raises(FileExistsError, match="not a regular file"),
            files.new_output(tmp_path, force=True),
        ):
            pass


class TestCheckpoints:
    def test_convert(self, directory, model, tmp_path):
        result = run("convert", directory, tmp_path / "native", "--to", "native")
        assert result.exit_code == 0, result.stderr
        assert "layout published, float32, 32 tensors" in result.stdout
        assert "layout native, flax_model.safetensors" in result.stdout
        assert "ignored" not in result.stdout
        assert "note" not in result.stdout
        converted = JinaEmbeddings.from_pretrained(tmp_path / "native")
        np.testing.assert_array_equal(converted.encode(TEXTS), model.encode(TEXTS))

    def test_convert_merges_an_adapter(self, directory, model, tmp_path):
        task = "retrieval.query"
        result = run("convert", directory, tmp_path / "merged", "--to", "native", "--merge", task)
        assert result.exit_code == 0, result.stderr
        assert f"merged   {task}; left out: retrieval.passage, separation" in result.stdout
        assert "layout native, flax_model.safetensors" in result.stdout
        merged = JinaEmbeddings.from_pretrained(tmp_path / "merged")
        expected = model.encode(TEXTS, task=task)
        np.testing.assert_allclose(merged.encode(TEXTS), expected, atol=1e-5)
        message = refusal("encode", "--model", tmp_path / "merged", "--task", task, "a cat")
        assert message == f"--task '{task}': this checkpoint has no adapters: expected none"

    def test_what_is_ignored_or_lacking_is_said(self, tmp_path, directory):
        from safetensors.numpy import load_file, save_file

        source = tmp_path / "source"
        source.mkdir()
        (source / "config.json").write_text((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        tensors["lm_head.bias"] = np.zeros(3, np.float32)
        save_file(tensors, source / "model.safetensors")
        result = run("convert", source, tmp_path / "target", "--to", "native")
        assert "ignored  not part of the encoder: lm_head.bias" in result.stdout
        assert "note     no tokenizer.json" in result.stdout
        assert json.loads(run("info", "--model", source, "--json").stdout)["ignored"] == [
            "lm_head.bias"
        ]
        assert "ignored" in run("info", "--model", source).stdout

    def test_refusals(self, directory, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        target = tmp_path / "new"
        exists = refusal("convert", directory, tmp_path / "full", "--to", "native")
        assert "full: exists already" in exists
        assert "'--to': 'onnx' is not one of" in refusal(
            "convert", directory, target, "--to", "onnx"
        )
        assert "Choose from: native" in refusal("convert", directory, target)
        assert "no place for" in refusal("convert", directory, target, "--to", "xlm-roberta")
        merge = ("convert", directory, target, "--to", "native", "--merge", "x")
        assert "--merge 'x': expected one of ['retrieval" in refusal(*merge)
        assert "no such directory" in refusal("info", "--model", tmp_path / "nowhere")
        assert "config.json" in refusal("info", "--model", tmp_path / "full")
        step = refusal("convert", directory, target, "--to", "native", "--step", 1)
        assert f"--step: expected a training run as SOURCE, got {directory}" in step
        assert "Missing argument 'SOURCE'" in refusal("convert", "--to", "native")
        assert "Missing argument 'TARGET'" in refusal("convert", directory, "--to", "native")
        assert "unexpected extra argument (y)" in refusal(*merge, "y")
        assert not target.exists()

    def test_all_lines_of_a_checkpoint_error_are_shown(self, directory, tmp_path):
        config = json.loads((directory / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
        (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
        result = run("info", "--model", tmp_path)
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        assert lines[0].startswith("jina-jax: error: ")
        assert len(lines) > 10
        assert all(line.startswith("  - ") for line in lines[1:])

    def test_info(self, directory):
        facts = json.loads(run("info", "--model", directory, "--json").stdout)
        assert facts["layout"] == "published"
        assert facts["dtypes"] == ["float32"]
        count = facts["parameters"]
        assert count["total"] == count["base"] + count["adapters"]
        # A of the word embeddings alone is 5 tasks x 120 rows x rank 4.
        assert 5 * 120 * 4 < count["adapters"] < count["base"]
        assert facts["tasks"] == PROMPTS
        assert (facts["hidden_size"], facts["max_length"]) == (64, 128)
        assert facts["matryoshka_dimensions"] == [32, 64]
        assert facts["rotary_emb_base"] == 20000.0
        size = (directory / "model.safetensors").stat().st_size
        assert facts["files"]["model.safetensors"] == size
        text = run("info", "--model", directory).stdout
        assert "rotary, base 20000, at most 128 tokens" in text
        assert f"{count['total']:,}" in text
        assert all(repr(prompt) in text for prompt in PROMPTS.values())

    def test_info_tells_kernels_and_why_others_cannot_run(self):
        facts = json.loads(run("info", "--devices", "--json").stdout)
        assert facts["platform"] == "cpu"
        assert facts["attention"]["blocked"] == {"bfloat16": None, "float32": None}
        assert "needs a TPU" in facts["attention"]["pallas"]["bfloat16"]
        assert facts["chosen"]["float32, packed rows"]["8192"] == "blocked"
        assert facts["batching"]["token_budget"] == 1024
        text = run("info", "--devices").stdout
        assert "needs an NVIDIA GPU" in text
        assert "token_budget 1024" in text

    def test_info_is_of_a_model_or_of_the_devices(self):
        message = refusal("info", "--model", "somewhere", "--devices")
        assert "expected either --model or --devices" in message

    def test_info_reads_no_weights(self, directory, monkeypatch):
        from jina_jax.checkpoints.tensors import MappedFile

        monkeypatch.setattr(MappedFile, "array", lambda *_: pytest.fail("read a tensor"))
        assert run("info", "--model", directory).exit_code == 0


@pytest.fixture(scope="module")
def gold(model, tmp_path_factory):
    """Make expected values with the library itself; test_verify.py has independent ones."""
    options = {"prompt": None, "output_value": "token_embeddings"}
    hidden = model.encode(["a cat"] * 6, task=[None, *TASKS], **options)
    ids = model.tokenize("a cat")
    values = {
        name: vectors[1:4, 1:4].tolist()
        for name, vectors in zip(["none", *TASKS], hidden, strict=True)
    }
    window = {"slice": [[1, 4], [1, 4]], "values": values}
    path = tmp_path_factory.mktemp("gold") / "gold.json"
    fixed = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], **window}
    sentence = {"text": "a cat", "tokens": len(ids), **window}
    path.write_text(json.dumps({"fixed_ids": fixed, "sentence": sentence}))
    return path


class TestVerify:
    def test_agreement(self, directory, gold):
        result = run("verify", "--model", directory, "--gold", gold)
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert len(lines) == 14
        assert all(line.endswith("  ok") for line in lines[:13])
        assert lines[0].split()[:4] == ["fixed_ids", "none", "max", "|difference|"]
        assert lines[13] == "13 of 13 agree within rtol = atol = 0.0001"

    def test_difference(self, directory, gold, tmp_path):
        content = json.loads(gold.read_text())
        content["sentence"]["values"]["separation"][1][1] += 0.01
        (tmp_path / "gold.json").write_text(json.dumps(content))
        result = run("verify", "--model", directory, "--gold", tmp_path / "gold.json")
        assert (result.exit_code, result.stderr) == (1, "")
        wrong = [line for line in result.stdout.splitlines() if "DIFFERS" in line]
        assert len(wrong) == 1
        assert wrong[0].split()[:5] == ["sentence", "separation", "max", "|difference|", "1.0e-02"]
        assert "12 of 13 agree" in result.stdout

    def test_refusals(self, directory, gold, tmp_path):
        assert "expected reference values in" in refusal("verify", "--model", directory)
        (tmp_path / "gold.json").write_text("{}")
        message = refusal("verify", "--model", directory, "--gold", tmp_path / "gold.json")
        assert "not in the form of published.json" in message
        assert "No such file" in refusal(
            "verify", "--model", directory, "--gold", tmp_path / "none.json"
        )

    def test_a_model_s_own_values_are_taken_unless_others_are_named(
        self, directory, gold, tmp_path
    ):
        shutil.copytree(directory, tmp_path / "model")
        shutil.copy(gold, tmp_path / "model" / "gold.json")
        result = run("verify", "--model", tmp_path / "model")
        assert result.exit_code == 0, result.output
        assert result.stdout == run("verify", "--model", directory, "--gold", gold).stdout
        (tmp_path / "other.json").write_text("{}")
        message = refusal(
            "verify", "--model", tmp_path / "model", "--gold", tmp_path / "other.json"
        )
        assert "other.json: not in the form" in message


@pytest.mark.filterwarnings("default")
class TestWithoutAModel:
    """The packaged model is that of the other tests here, so that it is small."""

    @pytest.fixture(autouse=True)
    def packaged(self, directory, gold, tmp_path, monkeypatch):
        """Put a model with its own expected values where the packaged one is; return it."""
        model = shutil.copytree(directory, tmp_path / "packaged")
        shutil.copy(gold, model / "gold.json")
        monkeypatch.setattr("jina_jax.checkpoints.hub.PACKAGED", model)
        rows = [{"anchor": text, "positive": text + "s"} for text in ("cat", "dog", "sun")]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "notes.txt").write_text("a cat\nthe dog\n")
        return model

    @pytest.mark.parametrize("named", ["tiny", "packaged"])
    @pytest.mark.parametrize(
        "args",
        [
            "encode a",
            "info",
            "verify",
            "mine ../pairs.jsonl out.jsonl --num-negatives 1",
            "search ../notes.txt cat",
        ],
    )
    def test_it_is_the_packaged_one(self, packaged, tmp_path, monkeypatch, args, named):
        model = packaged if named == "packaged" else named
        results = []
        for name, given in (("without", []), ("with", ["--model", model])):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            results.append(run(*args.split(), *given))
        without, with_model = results
        assert without.exit_code == 0, without.output
        assert with_model.stderr == ""
        assert without.stdout == with_model.stdout
        assert without.stderr.count("\n") == 1
        assert without.stderr.startswith("jina-jax: warning: no model named: using tiny")

    def test_a_conversion_has_the_reference_values_and_a_merged_one_not(self, tmp_path):
        assert run("convert", "tiny", tmp_path / "a", "--to", "transformers").exit_code == 0
        assert run("verify", "--model", tmp_path / "a").exit_code == 0
        merged = ("--to", "native", "--merge", "separation")
        assert run("convert", "tiny", tmp_path / "b", *merged).exit_code == 0
        assert not (tmp_path / "b" / "gold.json").exists()

    def test_tiny_can_be_converted(self, tmp_path):
        result = run("convert", "tiny", tmp_path / "out", "--to", "native")
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"read     {tmp_path / 'packaged'}: layout published" in result.stdout

    def test_what_can_be_refused_at_once_is_all_that_is_told(self):
        assert "No such file" in refusal("encode", "--input", "/no/such/file")
        assert "--revision 'v1': expected none for" in refusal("info", "--revision", "v1")


class TestErrors:
    @pytest.mark.parametrize("name", ["owner/name", "a b", "gpt2"])
    def test_the_hub_cannot_be_reached(self, name):
        # Offline, as conftest.py says; "a b" is no id at all.
        message = f"--model '{name}': no such directory"
        assert refusal("info", "--model", name, "--offline").startswith(message)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("convert runs/mistyped out --to native", "SOURCE 'runs/mistyped': no such directory"),
            ("convert tiny out --to native --merge x", "--merge 'x': expected one of ['retrieval"),
            ("encode --model tiny --task x y", "or none"),
            ("eval bitext one.csv", "PATH... ['one.csv']: expected 2 for bitext"),
            ("search notes.txt query --model tiny --task x", "--task 'x': this checkpoint has"),
        ],
    )
    def test_arguments_are_named_as_they_are_typed(self, tmp_path, monkeypatch, args, message):
        monkeypatch.chdir(tmp_path)
        Path("notes.txt").write_text("a text")
        found = refusal(*args.split())
        assert message in found
        assert "None" not in found

    def test_errors_of_the_network_are_lines(self, monkeypatch):
        lost = type("ConnectError", (Exception,), {"__module__": "httpx"})
        fail_to_fetch(monkeypatch, lost("connection\n\n  lost"))
        assert refusal("info", "--model", "owner/name") == "connection lost"

    def test_bugs_have_a_traceback(self, monkeypatch):
        fail_to_fetch(monkeypatch, RuntimeError("a bug"))
        assert isinstance(run("info", "--model", "owner/name").exception, RuntimeError)

    def test_an_error_without_words_has_its_name(self, monkeypatch):
        fail_to_fetch(monkeypatch, ValueError())
        assert refusal("info", "--model", "owner/name") == "ValueError"

    def test_interruption(self, monkeypatch):
        fail_to_fetch(monkeypatch, KeyboardInterrupt())
        result = run("info", "--model", "owner/name")
        assert (result.exit_code, result.output.strip()) == (130, "")

    def test_unknown_command(self):
        assert "No such command 'embed'" in refusal("embed")

    def test_hub_options_reach_the_hub(self, monkeypatch):
        seen = {}

        def fetch(name, **options):
            seen.update(options, name=name)
            raise OSError("enough")

        monkeypatch.setattr("jina_jax.checkpoints.hub.fetch", fetch)
        assert refusal("info", "--model", "owner/name", "--revision", "v1", "--offline") == "enough"
        assert seen == {"name": "owner/name", "revision": "v1", "local_files_only": True}

    def test_help_without_a_command(self):
        result = run()
        assert result.exit_code == 0
        assert "Commands:" in result.stdout
        for command in cli.main.commands:
            assert f"jina-jax {command}" in run(command, "--help").stdout
        assert run("--version").stdout.startswith("jina-jax, version ")


def fail_to_fetch(monkeypatch, error):
    def fetch(*_, **__):
        raise error

    monkeypatch.setattr("jina_jax.checkpoints.hub.fetch", fetch)


def subprocess_run(*args, code=START, stdin=""):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


class TestProcess:
    def test_help_is_quick_and_brings_nothing_heavy(self):
        code = """
import sys, time
start = time.perf_counter()
from jina_jax.cli.main import main
for command in ([], *([name] for name in main.commands)):
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert not end.code
assert not {"jax", "numpy", "huggingface_hub", "sentencepiece"} & sys.modules.keys()
print(time.perf_counter() - start, file=sys.stderr)
"""
        result = subprocess_run(code=code)
        assert result.returncode == 0, result.stderr
        assert float(result.stderr) < 1.0

    def test_a_pipe_in_and_out(self, directory):
        result = subprocess_run("encode", "--model", directory, stdin="a cat\nthe dog\n")
        assert (result.returncode, result.stderr) == (0, "")
        assert [row["text"] for row in rows_of(result.stdout)] == ["a cat", "the dog"]

    def test_the_module_runs(self):
        command = [sys.executable, "-m", "jina_jax.cli", "embed"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 2
        assert result.stderr.startswith("jina-jax: error: No such command 'embed'")

    def test_an_error_is_one_line(self):
        result = subprocess_run("info", "--model", "/no/such/model")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("jina-jax: error: --model '/no/such/model'")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize("args", [("encode", "a"), ("info", "--devices")])
    def test_a_platform_that_jax_cannot_use(self, monkeypatch, args):
        monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
        result = subprocess_run(*args)
        assert (result.returncode, result.stdout) == (2, "")
        *warned, line = result.stderr.splitlines()
        assert line.startswith("jina-jax: error: JAX cannot use the platform 'nonsense'")
        assert all(text.startswith("jina-jax: warning: no model named") for text in warned)

    def test_a_bare_assertion_of_jax_names_the_platform(self, monkeypatch):
        def devices():
            raise AssertionError

        monkeypatch.setattr("jax.devices", devices)
        monkeypatch.setattr("jina_jax.cli.devices.describe", devices)
        chosen = jax.config.jax_platforms
        found = refusal("info", "--devices")
        if chosen:
            advice = '; unset it, or add ",cpu"'
            assert found == f"JAX cannot use the platform {chosen!r} (JAX_PLATFORMS){advice}"
        else:
            assert found == "JAX cannot use the devices of this machine"

    def test_a_bug_stays_a_traceback(self, monkeypatch):
        def describe():
            raise AssertionError("a bug")

        monkeypatch.setattr("jina_jax.cli.devices.describe", describe)
        assert str(run("info", "--devices").exception) == "a bug"

    def test_a_closed_pipe_is_no_news(self, directory):
        # 300 kB of output, more than a pipe holds.
        command = [sys.executable, "-c", START, "encode", "--model", str(directory)]
        command += ["--batch-size", "300"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            process.stdin.write(b"a cat\n" * 300)
            process.stdin.close()
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(timeout=60) == 141  # 128 + SIGPIPE, as of tools in C

    def test_an_interruption_inside_a_callback_is_not_lost(self):
        code = """
import signal, time
import click
from jina_jax.cli.errors import ErrorGroup

class Callback:
    def __del__(self):  # Python drops exceptions here
        signal.raise_signal(signal.SIGINT)

@click.command()
def wait():
    Callback()
    time.sleep(30)

ErrorGroup(commands=[wait]).main(["wait"])
"""
        start = time.perf_counter()
        result = subprocess_run(code=code)
        assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "")
        assert time.perf_counter() - start < 25

    def test_an_interruption_with_work_on_the_device(self):
        """Left to the interpreter's end, this process dies of a segmentation fault."""
        code = """
import signal
import click
from jina_jax.cli.errors import ErrorGroup

@click.command()
def work():
    import jax.numpy as jnp
    x = jnp.ones((1500, 1500))
    for _ in range(12):
        x = x @ x
    signal.raise_signal(signal.SIGINT)

ErrorGroup(commands=[work]).main()
"""
        result = subprocess_run("work", code=code)
        assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "")
