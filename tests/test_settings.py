"""Settings of a training run: what is read, and what is said about what cannot be."""

import inspect
import json
import re
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jina_jax import evaluation
from jina_jax.cli import main as cli
from jina_jax.data.kinds import ROWS
from jina_jax.tasks import EVALUATIONS
from jina_jax.training import losses, settings
from jina_jax.training.settings import Section, Settings, SettingsError
from jina_jax.training.vocabulary import LOSSES, TRAINABLE

COMPLETE = """
output = "runs/all"
seed = 7

[model]
name = "jinaai/jina-embeddings-v3"
revision = "main"
tasks = ["retrieval.query", "legal"]
train = "all-but-embeddings"
dtype = "bfloat16"
rotary_emb_base = 10000
max_length = 192
dropout = 0.1
scan_layers = false

[[model.new_tasks]]
name = "legal"
copy_of = "retrieval.passage"
prompt = "Find: "

[optimizer]
learning_rate = 5e-4
steps = 20000
warmup_steps = 1000
weight_decay = 0.01
beta1 = 0.8
beta2 = 0.95
epsilon = 1e-6
max_grad_norm = 2.0

[batches]
size = 128
micro_batch_tokens = 4096

[[data]]
paths = ["a.jsonl", "b.jsonl"]
kind = "pairs"
columns = ["query", "answer"]
weight = 2.0
batch_size = 64
bad_rows = "skip"
drop_overlap = true
[data.loss]
name = "info_nce"
temperature = 0.02
bidirectional = false
reduction = "sum"
[data.loss.matryoshka]
dims = [32, 64]
weights = [1.0, 0.5]
reduction = "sum"

[[data]]
paths = ["c.csv"]
kind = "triplets"
columns = [0, 2, 1]
negatives = 7
loss = { name = "triplet" }

[[data]]
paths = ["d.txt"]
kind = "texts"
teacher = "teacher.npy"
loss = { name = "cosine_distillation" }

[[data]]
paths = ["d.txt"]
kind = "texts"
loss = { name = "mlm", mask_rate = 0.3 }

[[evaluation]]
kind = "retrieval"
paths = ["scifact"]
name = "science"
task = ["retrieval.query", "legal"]
dims = [32, 64]
max_length = 256
split = "dev"

[[evaluation]]
kind = "sts"
paths = ["stsb.csv"]
columns = [0, 1, 2]

[log]
every = 5
evaluate_every = 500
save_every = 250
keep = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(COMPLETE)
    return path


def sections(section=Settings):
    """List every section's model, each once."""
    found = [section]
    for field in section.model_fields.values():
        todo = [field.annotation]
        while todo:
            annotation = todo.pop()
            todo += typing.get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, Section):
                found += [inner for inner in sections(annotation) if inner not in found]
    return found


def minimal(**changes):
    """Return values with what is required alone, changed at dotted paths; ``del_`` removes."""
    values = {
        "output": "out",
        "model": {"name": "m", "tasks": ["a"]},
        "optimizer": {"learning_rate": 0.1, "steps": 10},
        "batches": {"size": 4},
        "data": [{"paths": ["p.jsonl"], "kind": "pairs", "loss": {"name": "info_nce"}}],
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = values
        for parent in parents:
            place = place[0 if parent == "0" else parent]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return values


REMOVED = object()


def problems(values):
    """Return the lines about each problem."""
    with pytest.raises(SettingsError) as error:
        Settings.from_dict(values, "run.toml")
    first, *lines = str(error.value).splitlines()
    count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert first == f"run.toml: {count}:"
    assert all(line.startswith("  ") for line in lines)
    return [line[2:] for line in lines]


class TestReading:
    def test_the_file_has_every_field(self):
        """So that the tests below miss none."""
        values = tomllib.loads(COMPLETE)

        def given(value, prefix=""):
            if isinstance(value, dict):
                names = {f"{prefix}{name}" for name in value}
                return names.union(*(given(v, f"{prefix}{k}.") for k, v in value.items()))
            inner = value if isinstance(value, list) else []
            return set().union(*(given(item, prefix) for item in inner))

        places = {
            "Settings": "",
            "NewTask": "model.new_tasks.",
            "Loss": "data.loss.",
            "EvaluationSection": "evaluation.",
            "Matryoshka": "data.loss.matryoshka.",
        }
        every = {
            f"{places.get(section.__name__, section.__name__.lower() + '.')}{name}"
            for section in sections()
            for name in section.model_fields
        }
        assert given(values) == every
        assert len(every) > 50

    def test_every_field_is_what_the_file_says(self, file):
        read = Settings.from_toml(file)
        values = tomllib.loads(COMPLETE)

        def compare(section, expected, place):
            for name, value in expected.items():
                found = getattr(section, name)
                where = f"{place}.{name}"
                if isinstance(found, Section):
                    compare(found, value, where)
                elif isinstance(found, tuple) and isinstance(value[0], dict):
                    assert len(found) == len(value), where
                    for inner, each in zip(found, value, strict=True):
                        compare(inner, each, where)
                elif isinstance(found, tuple):
                    plain = [str(v) if isinstance(v, Path) else v for v in found]
                    assert plain == value, where
                else:
                    assert (str(found) if isinstance(value, str) else found) == value, where

        compare(read, values, "")

    @pytest.mark.parametrize("values", [tomllib.loads(COMPLETE), minimal()])
    def test_there_and_back(self, values):
        read = Settings.from_dict(values)
        assert Settings.from_dict(json.loads(json.dumps(read.to_dict()))) == read

    def test_numbers_of_numpy_are_numbers(self):
        fields = {"seed": np.int64(3), "optimizer__learning_rate": np.float64(0.5)}
        read = Settings.from_dict(minimal(**fields))
        assert (read.seed, read.optimizer.learning_rate) == (3, 0.5)
        assert hash(read)  # nothing in it changes

    def test_defaults(self):
        read = Settings.from_dict(minimal())
        assert (read.seed, read.log.every, read.log.save_every, read.log.keep) == (0, 10, 100, 2)
        assert (read.model.train, read.model.max_length) == ("adapters", 512)
        assert (read.optimizer.beta1, read.optimizer.beta2) == (0.9, 0.999)
        assert read.data[0].loss.temperature is None
        with pytest.raises(ValueError, match="frozen"):
            read.seed = 1

    def test_numbers_may_be_written_as_integers(self):
        read = Settings.from_dict(minimal(optimizer__learning_rate=1, data__0__weight=2))
        assert (read.optimizer.learning_rate, read.data[0].weight) == (1.0, 2.0)

    def test_arguments_are_those_of_an_evaluation(self, file, tmp_path):
        (tmp_path / "s.csv").write_text("a,b,1\na,c,2\n")
        fields = {"kind": "sts", "paths": [str(tmp_path / "s.csv")], "dims": [32], "task": "none"}
        read = Settings.from_dict(minimal(evaluation=[fields])).evaluation[0]
        made = evaluation.Evaluation(**read.arguments())
        assert (made.kind, made.dims, made.task) == ("sts", (32,), None)

    def test_choices_are_those_of_the_library(self):
        def choices(section, name):
            return set(typing.get_args(section.model_fields[name].annotation))

        assert {kind for loss in LOSSES.values() for kind in loss.rows} == set(ROWS)
        assert choices(settings.Loss, "name") == set(LOSSES)
        assert choices(settings.Data, "kind") == set(ROWS)
        assert choices(settings.Model, "train") == set(TRAINABLE)
        assert choices(settings.EvaluationSection, "kind") == set(EVALUATIONS)

    @pytest.mark.parametrize("name", LOSSES)
    def test_fields_of_a_loss_are_its_arguments(self, name):
        arguments = set(inspect.signature(losses.function_of(name)).parameters)
        taken = LOSSES[name].fields - {"matryoshka", "mask_rate"}
        assert taken == arguments & {*settings.Loss.model_fields}
        assert LOSSES[name].needs_teacher == ("teacher" in arguments)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"sed": 1}, "sed: is not a field"),
            ({"optimizer__lr": 1}, "optimizer.lr: is not a field"),
            ({"data__0__loss__margin": 1}, "data[0].loss.margin: is not a field"),
            ({"output": REMOVED}, "output: is missing"),
            ({"model": REMOVED}, "model: is missing"),
            ({"optimizer__steps": REMOVED}, "optimizer.steps: is missing"),
            ({"data__0__loss__name": REMOVED}, "data[0].loss.name: is missing"),
            (
                {"optimizer__steps": "8"},
                "optimizer.steps: Input should be a valid integer, got '8'",
            ),
            ({"optimizer__steps": True}, "optimizer.steps: Input .* integer, got True"),
            ({"optimizer__steps": 8.0}, "optimizer.steps: Input .* integer, got 8.0"),
            ({"optimizer__learning_rate": "8"}, "optimizer.learning_rate: .* number, got '8'"),
            ({"optimizer__learning_rate": True}, "optimizer.learning_rate: .* number, got True"),
            ({"model__dropout": False}, "model.dropout: .* number, got False"),
            ({"output": 3}, "output: Input should be a valid string, got 3"),
            ({"model": []}, r"model: .*, got \[\]"),
            ({"model__tasks": "a"}, "model.tasks: .*, got 'a'"),
            ({"data__0__drop_overlap": 1}, "data[0].drop_overlap: .* boolean, got 1"),
            ({"optimizer__steps": 0}, "optimizer.steps: .* greater than or equal to 1, got 0"),
            ({"optimizer__learning_rate": 0}, "optimizer.learning_rate: .* greater than 0, got 0"),
            ({"optimizer__learning_rate": float("inf")}, "optimizer.learning_rate: .* finite"),
            ({"optimizer__learning_rate": float("nan")}, "optimizer.learning_rate: .* finite"),
            ({"optimizer__weight_decay": -1}, "optimizer.weight_decay: .* equal to 0, got -1"),
            ({"optimizer__weight_decay": float("inf")}, "optimizer.weight_decay: .* finite"),
            ({"optimizer__beta1": 1}, "optimizer.beta1: .* less than 1, got 1"),
            ({"optimizer__beta2": 1.0}, "optimizer.beta2: .* less than 1, got 1.0"),
            ({"optimizer__epsilon": 0}, "optimizer.epsilon: .* greater than 0"),
            ({"optimizer__max_grad_norm": 0}, "optimizer.max_grad_norm: .* greater than 0"),
            ({"optimizer__warmup_steps": -1}, "optimizer.warmup_steps: .* equal to 0"),
            ({"optimizer__warmup_steps": 10}, "optimizer: warmup_steps=10: .* than steps=10"),
            ({"model__dropout": 1}, "model.dropout: .* less than 1, got 1"),
            ({"model__dropout": float("nan")}, "model.dropout: .*"),
            ({"model__max_length": 1}, "model.max_length: .* equal to 2, got 1"),
            ({"model__dtype": "float16"}, "model.dtype: .*'bfloat16', got 'float16'"),
            ({"model__train": "lora"}, "model.train: .*'all-but-embeddings', got 'lora'"),
            ({"model__tasks": ["a", "b", "c"]}, r"model.tasks: .* at most 2 items .*"),
            ({"model__rotary_emb_base": 0}, "model.rotary_emb_base: .* greater than 0"),
            ({"seed": -1}, "seed: .* equal to 0, got -1"),
            ({"seed": 2**31}, "seed: .* less than 2147483648"),
            ({"batches__size": 0}, "batches.size: .* equal to 1, got 0"),
            (
                {"batches__micro_batch_tokens": 8},
                "batches.micro_batch_tokens: .* equal to 16, got 8",
            ),
            ({"data": []}, "data: expected at least one section [[data]]"),
            ({"data__0__paths": []}, "data[0].paths: .* at least 1 item .*"),
            ({"data__0__weight": 0}, "data[0].weight: .* greater than 0"),
            ({"data__0__kind": "pair"}, "data[0].kind: .* or 'texts', got 'pair'"),
            ({"data__0__bad_rows": "drop"}, "data[0].bad_rows: .* 'skip', got 'drop'"),
            ({"data__0__loss__name": "mse"}, "data[0].loss.name: .*'info_nce'.*, got 'mse'"),
            ({"data__0__loss__temperature": 0}, "data[0].loss.temperature: .* greater than 0"),
            ({"log": {"keep": 0}}, "log.keep: .* equal to 1, got 0"),
            ({"log": {"evaluate_every": 0}}, "log.evaluate_every: .* equal to 1, got 0"),
            ({"evaluation": [{"kind": "sts"}]}, "evaluation[0].paths: is missing"),
            ({"model__tasks": []}, "model.tasks: expected the adapters to train, got none"),
        ],
    )
    def test_one_field(self, changes, line):
        (found,) = problems(minimal(**changes))
        pattern = line.replace("[0]", r"\[0\]").replace("[[data]]", r"\[\[data\]\]")
        assert re.fullmatch(f"{pattern}.*", found), found

    def test_several_at_once_and_the_file(self, file):
        file.write_text(COMPLETE.replace("seed = 7", "seed = -7").replace("keep = 3", "kept = 3"))
        with pytest.raises(SettingsError) as error:
            Settings.from_toml(file)
        assert str(error.value).splitlines() == [
            f"{file}: 2 problems:",
            "  seed: Input should be greater than or equal to 0, got -7",
            "  log.kept: is not a field",
        ]

    @pytest.mark.parametrize(
        ("kind", "loss"),
        [(kind, loss) for kind in ROWS for loss, entry in LOSSES.items() if kind not in entry.rows],
    )
    def test_a_loss_for_another_kind_of_rows(self, kind, loss):
        data = {"paths": ["p"], "kind": kind, "loss": {"name": loss}}
        (line,) = problems(minimal(data=[data], model__train="all"))
        assert line.startswith(f"data[0]: kind={kind!r}: loss {loss!r} takes (")
        assert all(repr(wanted) in line for wanted in LOSSES[loss].rows)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_fields_that_a_loss_does_not_take(self, loss):
        every = {
            "temperature": 0.1,
            "bidirectional": True,
            "reduction": "sum",
            "mask_rate": 0.1,
            "matryoshka": {"dims": [8]},
        }
        for name, value in every.items():
            data = {
                "paths": ["p"],
                "kind": LOSSES[loss].rows[0],
                "loss": {"name": loss, name: value},
            }
            if loss.endswith("distillation"):
                data["teacher"] = "t.npy"
            values = minimal(data=[data], model__train="all")
            if name in LOSSES[loss].fields:
                assert getattr(Settings.from_dict(values).data[0].loss, name) is not None
            else:
                assert problems(values)[0].startswith(f"data[0].loss: {name}: {loss} takes ")

    def test_a_teacher_is_for_distillation_and_only_that(self):
        texts = {"paths": ["t.txt"], "kind": "texts", "loss": {"name": "cosine_distillation"}}
        (line,) = problems(minimal(data=[texts]))
        assert line.startswith("data[0]: teacher=None: expected for the losses")
        (line,) = problems(minimal(data__0__teacher="t.npy"))
        assert line.startswith("data[0]: teacher=t.npy: expected for the losses")

    def test_masked_language_modelling_trains_more_than_adapters(self):
        texts = {"paths": ["t.txt"], "kind": "texts", "loss": {"name": "mlm"}}
        (line,) = problems(minimal(data=[texts]))
        assert line == "model.train: the loss 'mlm' trains 'all' or 'all-but-embeddings'"
        Settings.from_dict(minimal(data=[texts], model__train="all", model__tasks=[]))

    def test_files_that_are_no_toml(self, tmp_path):
        path = tmp_path / "run.toml"
        for content in (b"[model\n", b'output = "\xff"\n'):
            path.write_bytes(content)
            with pytest.raises(SettingsError, match=f"{path}: not valid TOML"):
                Settings.from_toml(path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            Settings.from_toml(path)

    @pytest.mark.parametrize("values", [[], 3, None])
    def test_no_table_at_all(self, values):
        assert len(problems(values)) == 1


class TestDescription:
    def test_every_field_of_every_section_is_explained(self):
        text = settings.describe()
        first, *others = re.split(r"\n(?=\[)", text)
        parts = {"Settings": first}
        for part in others:
            heading, explained = re.match(r"(\S+)  # (.*)", part).groups()
            parts[heading] = part
            assert explained, heading
        headings = {
            "Settings": "Settings",
            "NewTask": "[[model.new_tasks]]",
            "Loss": "[data.loss]",
            "Matryoshka": "[data.loss.matryoshka]",
            "Data": "[[data]]",
            "EvaluationSection": "[[evaluation]]",
        }
        assert len(parts) == len(sections()) == 10
        for section in sections():
            part = parts[headings.get(section.__name__, f"[{section.__name__.lower()}]")]
            for name, field in section.model_fields.items():
                if any(heading.strip("[]").split(".")[-1] == name for heading in parts):
                    continue  # a section of its own
                (line,) = re.findall(rf"^{name} +.*$", part, re.MULTILINE)
                assert field.description in line, name
                assert ("(required)" in line) == field.is_required(), name

    def test_defaults_are_written_as_in_toml(self):
        text = settings.describe()
        assert re.search(r'^name +.*the package \(default "tiny"\)$', text, re.MULTILINE)
        assert re.search(r'^train +.*\(default "adapters"\)$', text, re.MULTILINE)
        assert re.search(r"^drop_overlap +.*\(default false\)$", text, re.MULTILINE)
        assert re.search(r"^epsilon +.*\(default 1e-08\)$", text, re.MULTILINE)
        assert re.search(r"^revision +.*\(default not set\)$", text, re.MULTILINE)
        assert re.search(r"^tasks +.*\(default \[\]\)$", text, re.MULTILINE)

    def test_it_is_what_the_command_prints(self):
        result = CliRunner().invoke(cli.main, ["train", "--fields"])
        assert (result.exit_code, result.stdout) == (0, settings.describe())


ROOT = Path(__file__).parents[1]


def test_the_manuals_file_is_valid(tmp_path):
    page = (ROOT / "docs/training.md").read_text("utf-8")
    block = next(
        own for own in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "retrieval" in own
    )
    path = tmp_path / "retrieval.toml"
    path.write_text(block, encoding="utf-8")
    assert Settings.from_toml(path).model.tasks == ("retrieval.query", "retrieval.passage")


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/*.toml")), ids=lambda path: path.stem)
def test_the_recipes_files_are_valid(path):
    assert Settings.from_toml(path).output.parts[0] == "runs"
