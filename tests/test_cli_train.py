"""The command train, and convert of its runs: what they print and write, and how they refuse."""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from published import TASKS
from runs import RATES, ROWS, settings, write_data
from runs import quick_compiling as quick_compiling
from test_cli import START, refusal, run, subprocess_run
from test_resume import as_toml
from test_trainer import arrays, changed

from jina_jax import JinaEmbeddings
from jina_jax.convert import open_checkpoint
from jina_jax.nn.parameters import to_checkpoint
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.metrics import read_metrics
from jina_jax.training.plot import CURVES, plot_run
from jina_jax.training.run import CHECKPOINTS, METRICS, load_run
from jina_jax.training.trainer import Trainer

TEXTS = ["abcdef", "hij"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def write_settings(root, name, **sections):
    path = root / f"{name}.toml"
    path.write_text(as_toml(settings(root, name, **sections)))
    return path


@pytest.fixture(scope="module")
def trained(root):
    """Both adapters of the retrieval pair, evaluated; what the command printed."""
    path = write_settings(
        root,
        "trained",
        model={"tasks": ["retrieval.query", "retrieval.passage"]},
        evaluation=[{"kind": "sts", "paths": [str(root / "scored.csv")], "dims": [32]}],
    )
    return root / "trained", run("train", path)


@pytest.fixture(scope="module")
def plain(root):
    """A run without evaluations."""
    Trainer(settings(root, "plain")).fit()
    return root / "plain"


class TestTrain:
    def test_what_it_prints(self, root, trained):
        directory, result = trained
        assert result.exit_code == 0, result.stderr
        last = [line for line in read_metrics(directory / METRICS) if "evaluation" in line][-1]
        assert result.stdout.splitlines() == [
            f"{name:<48} {value:.4f}" for name, value in last["evaluation"].items()
        ]
        assert "sts/scored/spearman@32 " in result.stdout
        lines = result.stderr.splitlines()
        assert re.match(rf"model    {root}/model: [\d,]+ parameters trained, [\d,]+ fr", lines[0])
        assert lines[1].startswith("tasks    retrieval.query, retrieval.passage; rotary base 20000")
        assert lines[2:] == [
            f"data     info_nce:pairs.jsonl: {ROWS} rows",
            "steps    0 of 4 done",
            f"run      {directory}: 4 steps",
            f"curves   {directory / CURVES}",
        ]
        assert {path.name for path in directory.iterdir()} == {
            *("settings.json", "base.json", METRICS, CHECKPOINTS, CURVES)
        }

    def test_output_and_resume(self, root, trained, tmp_path):
        path = root / "trained.toml"
        result = run("train", path, "--output", tmp_path / "other")
        assert result.exit_code == 0, result.stderr
        lines, expected = (
            [{k: v for k, v in line.items() if k not in RATES} for line in read_metrics(file)]
            for file in (tmp_path / "other" / METRICS, trained[0] / METRICS)
        )
        assert lines == expected
        before = result.stdout
        result = run("train", path, "--output", tmp_path / "other", "--resume")
        assert (result.exit_code, result.stdout) == (0, before)
        assert before == trained[1].stdout
        assert "steps    4 of 4 done" in result.stderr

    def test_refusals(self, root, trained, tmp_path):
        message = refusal("train", root / "trained.toml")
        assert message == f"{trained[0]}: has a run already: resume it (--resume), or name another"
        message = refusal("train", tmp_path / "none.toml")
        assert message == f"{tmp_path / 'none.toml'}: No such file or directory"
        assert "Missing argument 'CONFIG'" in refusal("train")
        (tmp_path / "bad.toml").write_text("output = ")
        assert f"{tmp_path / 'bad.toml'}: not valid TOML" in refusal("train", tmp_path / "bad.toml")

    def test_every_field_at_fault_has_a_line(self, tmp_path):
        (tmp_path / "bad.toml").write_text(
            'output = "x"\ndata = []\nsed = 1\n[batches]\nsize = 0\n'
        )
        result = run("train", tmp_path / "bad.toml")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [
            f"jina-jax: error: {tmp_path / 'bad.toml'}: 4 problems:",
            "  model: is missing",
            "  optimizer: is missing",
            "  batches.size: Input should be greater than or equal to 1, got 0",
            "  sed: is not a field",
        ]

    def test_other_settings_and_files_are_named(self, root, trained, tmp_path):
        path = write_settings(root, "other", seed=3)
        result = run("train", path, "--output", trained[0], "--resume")
        assert result.exit_code == 2
        assert f"{trained[0]}: the run was started with other settings:" in result.stderr
        assert "\n  seed: was 0, is 3\n" in result.stderr
        broken = {"paths": [str(tmp_path / "p.jsonl")], "kind": "pairs"}
        broken["loss"] = {"name": "info_nce"}
        (tmp_path / "p.jsonl").write_text("{}\n")
        path = write_settings(root, "broken", data=[broken])
        result = run("train", path)
        assert result.exit_code == 2
        assert f"{tmp_path / 'p.jsonl'}:1: " in result.stderr
        assert not (root / "broken").exists()

    @pytest.mark.filterwarnings("default")
    def test_rows_that_are_left_out_are_a_warning(self, root, tmp_path):
        (tmp_path / "p.jsonl").write_text("{}\n" + (root / "pairs.jsonl").read_text())
        data = {"paths": [str(tmp_path / "p.jsonl")], "kind": "pairs", "bad_rows": "skip"}
        data["loss"] = {"name": "info_nce"}
        result = run("train", write_settings(root, "skip", data=[data]))
        assert result.exit_code == 0, result.stderr
        warning = f"1 rows are left out; {root / 'skip' / 'bad_rows.txt'} lists them"
        assert f"jina-jax: warning: {warning}\n" in result.stderr

    def test_a_loss_that_is_not_finite(self, root):
        fields = {"learning_rate": 1e30, "max_grad_norm": None}
        result = run("train", write_settings(root, "diverged", steps=20, optimizer=fields))
        assert (result.exit_code, result.stdout) == (2, "")
        error = result.stderr.splitlines()[-1]
        assert re.match("jina-jax: error: step .* the loss of info_nce:pairs.jsonl is", error)

    @pytest.mark.parametrize(
        ("library", "command"),
        [
            ("pydantic", ["train", "--fields"]),
            ("orbax", ["train", "x.toml"]),
            ("orbax", ["convert", "run", "out", "--to", "native"]),
        ],
    )
    def test_without_the_extra(self, library, command, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "settings.json").touch()
        code = f"import sys; sys.modules[{library!r}] = None\n{START}"
        result = subprocess_run(*command, code=code)
        message = f'this command needs {library}: pip install "jina-jax[train]"'
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"jina-jax: error: {message}\n"

    def test_without_the_extra_of_evaluations(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)
        message = refusal("train", root / "trained.toml", "--output", root / "never")
        assert message == 'this evaluation needs scipy: pip install "jina-jax[eval]"'

    def test_bugs_have_a_traceback(self, root, monkeypatch):
        def fail(*_, **__):
            raise ModuleNotFoundError("No module named 'jina_jax.nothing'", name="jina_jax.nothing")

        monkeypatch.setattr("jina_jax.training.trainer.Trainer.__init__", fail)
        assert isinstance(run("train", root / "trained.toml").exception, ModuleNotFoundError)


class TestCurves:
    def test_none_without_matplotlib(self, trained, tmp_path, monkeypatch):
        shutil.copytree(trained[0], tmp_path / "run")
        (tmp_path / "run" / CURVES).unlink()
        find = importlib.util.find_spec
        monkeypatch.setattr(
            "jina_jax.training.plot.find_spec",
            lambda name: None if name == "matplotlib" else find(name),
        )
        assert plot_run(tmp_path / "run") is None
        assert not (tmp_path / "run" / CURVES).exists()

    def test_names_in_any_script(self, tmp_path):
        line = {"step": 1, "losses": {"cosent:中文.csv": 1.0}, "loss": 1.0, "learning_rate": 0.1}
        (tmp_path / METRICS).write_text(json.dumps(line) + "\n")
        assert plot_run(tmp_path) == tmp_path / CURVES

    def test_none_of_nothing(self, tmp_path):
        assert plot_run(tmp_path) is None
        (tmp_path / METRICS).write_text('{"step": 0, "evaluation": {"a": 1}, "score": 1}\n')
        assert plot_run(tmp_path) is None
        assert not (tmp_path / CURVES).exists()

    def test_a_picture_with_or_without_evaluations(self, trained, plain):
        import matplotlib.image

        wide = matplotlib.image.imread(plot_run(trained[0]))
        assert wide.shape[:2] == (600, 1200)
        assert plot_run(plain) == plain / CURVES
        # Half of the first is the curves of evaluations, which the second does not have.
        narrow = matplotlib.image.imread(plain / CURVES)
        assert wide.shape == narrow.shape
        assert np.abs(wide - narrow).max() > 0.5

    def test_what_is_drawn(self, tmp_path, monkeypatch):
        from matplotlib.figure import Figure

        drawn = {}

        def keep(figure, path, **_):
            drawn.update({axes.get_title() or "rate": axes for axes in figure.axes}, path=path)

        monkeypatch.setattr(Figure, "savefig", keep)
        names = ["info_nce:$a_$.jsonl", "cosent:b.csv"]
        lines = [
            {"step": 0, "evaluation": {"x/m": 0.1, "x/m@32": 0.2, "y/m": 0.5}, "score": 0.3},
            {"step": 5, "losses": {names[0]: 3.0}, "loss": 3.0, "learning_rate": 0.5},
            {"step": 9, "losses": {names[1]: 2.0, names[0]: 1.0}, "loss": 1, "learning_rate": 0.1},
            {"step": 9, "evaluation": {"x/m": 0.3, "x/m@32": 0.4, "y/m": 0.7}, "score": 0.5},
        ]
        for line in lines:
            line |= {"primary": ["x/m", "y/m"]} if "evaluation" in line else {}
        (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert plot_run(tmp_path) == drawn["path"] == tmp_path / CURVES

        def curves(axes):
            return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}

        assert curves(drawn["loss"]) == {
            "cosent:b.csv": [[9, 2]],
            r"info_nce:\$a_\$.jsonl": [[5, 3], [9, 1]],
        }
        assert [*curves(drawn["rate"]).values()] == [[[5, 0.5], [9, 0.1]]]
        assert curves(drawn["evaluation"]) == {
            "x/m": [[0, 0.1], [9, 0.3]],
            "y/m": [[0, 0.5], [9, 0.7]],
            "mean": [[0, 0.3], [9, 0.5]],
        }


class TestConvert:
    @pytest.mark.parametrize("layout", ["published", "transformers", "native"])
    def test_every_layout_has_the_trained_values(self, root, trained, layout, tmp_path):
        directory, _ = trained
        result = run("convert", directory, tmp_path / "out", "--to", layout)
        assert result.exit_code == 0, result.stderr
        assert f"read     {root / 'model'}: layout published, float32" in result.stdout
        assert f"wrote    {tmp_path / 'out'}: layout {layout}" in result.stdout
        written = open_checkpoint(tmp_path / "out")
        assert written.layout == layout
        store = RunCheckpoints(directory / CHECKPOINTS, read_only=True)
        saved = to_checkpoint(store.trained(store.best))
        found = arrays(written)
        for path, values in saved.items():
            np.testing.assert_array_equal(found[path][:2], values, err_msg=path)
        others = changed(arrays(open_checkpoint(root / "model")), found)
        assert all(tasks == [0, 1] for tasks in others.values())
        model = JinaEmbeddings.from_pretrained(tmp_path / "out")
        original = JinaEmbeddings.from_pretrained(root / "model")
        for task in TASKS:
            apart = np.abs(model.encode(TEXTS, task=task) - original.encode(TEXTS, task=task)).max()
            assert apart > 0.01 if task.startswith("retrieval") else apart == 0, task

    def test_merged(self, root, trained, tmp_path):
        directory, _ = trained
        result = run(
            "convert", directory, tmp_path / "out", *("--to", "transformers", "--merge", TASKS[1])
        )
        assert result.exit_code == 0, result.stderr
        assert f"merged   {TASKS[1]}; left out: {TASKS[0]}, separation" in result.stdout
        assert "layout transformers" in result.stdout
        written = open_checkpoint(tmp_path / "out")
        assert (written.layout, written.config.num_tasks) == ("transformers", 0)
        found, run_ = arrays(written), arrays(load_run(directory))
        for name in ("layers.0.mlp.fc1", "layers.0.attention.out_proj"):
            a, b = (run_[f"{name}.lora_{x}"][1].astype(np.float64) for x in "ab")
            expected = run_[f"{name}.kernel"] + a @ b / 4
            np.testing.assert_allclose(found[f"{name}.kernel"], expected, rtol=0, atol=1e-6)
        tuned = JinaEmbeddings.from_pretrained(tmp_path / "out")
        assert tuned.config.default_prompt == "Represent the document for retrieval: "

    def test_a_step_of_ones_own(self, plain, tmp_path):
        for step in (2, 4):
            result = run("convert", plain, tmp_path / f"{step}", "--to", "native", "--step", step)
            assert result.exit_code == 0, result.stderr
        result = run("convert", plain, tmp_path / "latest", "--to", "native")
        early, late, latest = (arrays(open_checkpoint(tmp_path / n)) for n in ("2", "4", "latest"))
        assert changed(early, late)
        assert not changed(late, latest)

    def test_the_note_about_a_tokenizer(self, plain, tmp_path):
        run("convert", plain, tmp_path / "out", "--to", "published")
        assert (tmp_path / "out" / "tokenizer.json").exists()

    def test_refusals(self, root, plain, tmp_path):
        target = tmp_path / "out"

        def message(*options, source=plain):
            found = refusal("convert", source, target, *options)
            assert not target.exists()
            return found

        assert "--merge 'x': expected one of" in message("--to", "native", "--merge", "x")
        revision = message("--to", "native", "--revision", "v1")
        assert "--revision: expected none for a training run" in revision
        assert "no checkpoint of step 3; there are [2, 4]" in message("--to", "native", "--step", 3)
        assert "'--to': 'onnx' is not one of" in message("--to", "onnx")
        assert "Missing option '--to'" in message()
        Trainer(settings(root, "empty"))
        nothing = message("--to", "native", source=root / "empty")
        assert nothing == f"{root / 'empty'}: no checkpoint; there are none"

    def test_a_target_that_is_there(self, plain, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
        message = refusal("convert", plain, tmp_path / "out", "--to", "native")
        assert message.startswith(f"{tmp_path / 'out'}: exists already")

    def test_a_torn_checkpoint(self, plain, tmp_path):
        shutil.copytree(plain, tmp_path / "run")
        folder = tmp_path / "run" / CHECKPOINTS / "4"
        for path in (folder / "trained").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-9])
        message = refusal("convert", tmp_path / "run", tmp_path / "out", "--to", "native")
        assert message.startswith(
            f"{folder}: the checkpoint cannot be read; remove it to go on fro"
        )
        shutil.rmtree(folder)
        result = run("convert", tmp_path / "run", tmp_path / "out", "--to", "native")
        assert result.exit_code == 0, result.stderr
