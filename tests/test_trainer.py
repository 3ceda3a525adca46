"""Training runs: every kind of data and loss, what they change and what they leave alone."""

import collections
import dataclasses
import gc
import json
import logging
import math
import shutil
import sys
import threading
import types
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from published import TASKS
from runs import PAIRS, ROWS, losses, reported, settings, train, write_data
from runs import quick_compiling as quick_compiling

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.convert import add_task, open_checkpoint, write_checkpoint
from jina_jax.data.records import DataError
from jina_jax.evaluation import Evaluation
from jina_jax.nn.parameters import to_checkpoint
from jina_jax.runtime.compiling import jit
from jina_jax.runtime.sharding import make_mesh
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training import programs
from jina_jax.training import run as training_run
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.metrics import Interval, TrainingError, read_metrics
from jina_jax.training.run import BAD_ROWS, CHECKPOINTS, METRICS, load_run
from jina_jax.training.settings import SettingsError
from jina_jax.training.step import StepResult
from jina_jax.training.trainer import Trainer

WARM = {"learning_rate": 1e-3, "warmup_steps": 2}
RETRIEVAL = {"tasks": ["retrieval.query", "retrieval.passage"]}
TEACHER = {"paths": ["texts.txt"], "kind": "texts", "teacher": "teacher.npy"}
LABELLED = {"paths": ["labelled.csv"], "kind": "labelled"}
SCORED = {"paths": ["scored.csv"], "kind": "scored", "columns": [0, 1, 2]}
FORMS = [
    {**PAIRS, "loss": {"name": "info_nce", "matryoshka": {"dims": [16, 64]}}},
    {"paths": ["triplets.jsonl"], "kind": "triplets", "loss": {"name": "triplet"}},
    {**SCORED, "loss": {"name": "cosent"}},
    {**LABELLED, "batch_size": 2, "loss": {"name": "triplet", "temperature": 0.02}},
    {**LABELLED, "loss": {"name": "separation"}},
    {**TEACHER, "loss": {"name": "cosine_distillation"}},
    {**TEACHER, "loss": {"name": "similarity_distillation"}},
    {**TEACHER, "loss": {"name": "contrastive_distillation", "temperature": 0.1}},
]
NAMES = {
    *("info_nce:pairs.jsonl", "triplet:triplets.jsonl", "cosent:scored.csv"),
    *("triplet:labelled.csv", "separation:labelled.csv"),
    *("cosine_distillation:texts.txt", "similarity_distillation:texts.txt"),
    "contrastive_distillation:texts.txt",
}
STS = {"kind": "sts", "paths": ["scored.csv"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(root):
    return arrays(open_checkpoint(root / "model"))


@pytest.fixture(scope="module")
def matching(root):
    """One task, four steps: what others are compared with."""
    train(settings(root, "matching"))
    return root / "matching"


@pytest.fixture(scope="module")
def pair(root):
    """The retrieval pair."""
    train(settings(root, "pair", model=RETRIEVAL))
    return root / "pair"


def arrays(checkpoint):
    return {path: np.array(tensor.read()) for path, tensor in checkpoint.tensors.items()}


def changed(before, after):
    """Name what differs by a bit; of adapters the tasks."""
    assert before.keys() == after.keys()
    found = {}
    for path, old in before.items():
        if ".lora_" in path:
            tasks = [k for k in range(len(old)) if old[k].tobytes() != after[path][k].tobytes()]
            found |= {path: tasks} if tasks else {}
        elif old.tobytes() != after[path].tobytes():
            found[path] = []
    return found


def info_nce(queries, documents, tau=0.05):
    """Compute the paper's sum of both directions, a mean over rows, in float64."""
    queries, documents = (
        v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (queries, documents)
    )
    cosines = np.exp(queries @ documents.T / tau)
    return sum(np.mean(-np.log(np.diag(c) / c.sum(1))) for c in (cosines, cosines.T))


def pair_vectors(model, root, tasks, prompt="auto"):
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    columns = ([row[name] for row in rows] for name in ("anchor", "positive"))
    return [
        model.encode(texts, task=task, prompt=prompt)
        for texts, task in zip(columns, tasks, strict=True)
    ]


# --- What a run tells


def make_forward_step(objective, optimizer, platform):
    """Compile the loss alone, in a third of the time; test_step has the gradients of each."""
    loss = jit(objective, platform)

    def step(trained, opt_state, *inputs):
        return trained, opt_state, StepResult(loss(trained, *inputs), np.float32(1), {})

    return step


@pytest.fixture(scope="module")
def forms(root):
    # A seed with which nine batches are of all eight sources.
    wanted = settings(root, "forms", FORMS, steps=9, seed=108, model=RETRIEVAL, optimizer=WARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "make_step", make_forward_step)
        train(wanted)
    return read_metrics(root / "forms" / "metrics.jsonl")


def test_every_kind_and_loss_has_its_batches_and_is_reported(forms):
    assert {name for line in forms for name in line["losses"]} == NAMES
    assert [line["step"] for line in forms] == [*range(1, 10)]
    for line in forms:
        assert line.keys() == {
            *("step", "loss", "losses", "grad_norm", "steps_per_second", "tokens_per_second"),
            *("padding", "dropped_tokens", "learning_rate"),
        }
        numbers = [line["loss"], line["grad_norm"], line["steps_per_second"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert 0 <= line["padding"] < 1
        assert [line["loss"]] == [*line["losses"].values()]
        assert line["tokens_per_second"] > line["steps_per_second"]


def test_the_rate_goes_up_and_down_as_told(forms):
    expected = [0, 1 / 2, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    rates = [line["learning_rate"] for line in forms]
    np.testing.assert_allclose(rates, 1e-3 * np.array(expected), rtol=1e-5)


def test_what_is_cut_off_is_counted(root, matching):
    model = JinaEmbeddings.from_pretrained(root / "model")
    texts = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    lengths = [len(ids) for row in texts for ids in model.tokenize([*row.values()])]
    trainer = Trainer(settings(root, "cut", model={"max_length": 10}))
    inputs = next(trainer._batches()).inputs
    assert inputs.dropped == sum(length - 10 for length in lengths) > 0
    assert inputs.tokens == 10 * 2 * ROWS
    window = Interval()
    for _ in range(2):
        window.add("pairs", inputs, StepResult(np.float32(1), np.float32(1), {}))
    summary = window.summary(2)
    assert summary["dropped_tokens"] == 2 * inputs.dropped
    ratio = summary["tokens_per_second"] / summary["steps_per_second"]
    assert ratio == pytest.approx(inputs.tokens)
    assert all(line["dropped_tokens"] == 0 for line in reported(matching))


def test_sources_of_the_same_name_are_told_apart(root, tmp_path):
    shutil.copy(root / "pairs.jsonl", tmp_path)
    other = {**PAIRS, "paths": [tmp_path / "pairs.jsonl"]}
    trainer = Trainer(settings(root, "same", [PAIRS, other]))
    for name in ("info_nce:pairs.jsonl#1", "info_nce:pairs.jsonl#2"):
        assert f"{name}: {ROWS} rows" in trainer.summary()


def test_the_first_loss_is_that_of_the_models_own_vectors(root, pair, matching):
    """With all rows in a batch: prompts, adapters, columns and loss, without the trainer."""
    model = JinaEmbeddings.from_pretrained(root / "model")
    vectors = pair_vectors(model, root, RETRIEVAL["tasks"])
    assert losses(pair)[0] == pytest.approx(info_nce(*vectors), abs=1e-4)
    vectors = pair_vectors(model, root, ["text-matching"] * 2)
    assert losses(matching)[0] == pytest.approx(info_nce(*vectors), abs=1e-4)
    assert abs(losses(pair)[0] - losses(matching)[0]) > 0.01


def test_the_last_loss_is_that_of_the_vectors_before_the_last_step(root, pair):
    model = to_model(load_run(pair, 2), root / "pair-2")
    vectors = pair_vectors(model, root, RETRIEVAL["tasks"])
    assert losses(pair)[2] == pytest.approx(info_nce(*vectors), abs=1e-4)
    assert abs(losses(pair)[2] - losses(pair)[0]) > 0.005


def to_model(checkpoint, directory):
    write_checkpoint(checkpoint, directory, "native")
    return JinaEmbeddings.from_pretrained(directory)


def test_eight_devices_train_as_one(root, matching):
    assert len(jax.devices()) == 8
    train(settings(root, "alone"), mesh=make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(losses(matching), losses(root / "alone"), rtol=0, atol=1e-5)


def test_what_a_step_is_given(root):
    """Rows of micro-batches split over the devices, and random numbers of its own for each step."""

    def keys_of(output, seed):
        trainer, keys = Trainer(settings(root, output, seed=seed)), []

        def step(trained, opt_state, frozen, micro_batches, targets, key):
            keys.append(jax.random.key_data(key).tolist())
            assert (
                micro_batches.input_ids.sharding.shard_shape(micro_batches.input_ids.shape)[1] * 8
                == (micro_batches.input_ids.shape[1])
            )
            assert all(array.sharding.is_fully_replicated for array in trained.values())
            return trained, opt_state, StepResult(np.float32(1), np.float32(1), {})

        trainer._programs._make_step = lambda *_: step
        trainer.fit()
        return keys

    first, again, other = (keys_of(f"keys-{i}", seed) for i, seed in enumerate([0, 0, 1]))
    assert first == again
    assert len({tuple(key) for key in first + other}) == 8


def test_a_mesh_with_a_model_axis_is_refused(root):
    with pytest.raises(ValueError, match="mesh: expected a model axis of 1, got 2"):
        Trainer(settings(root, "split"), mesh=make_mesh(model=2))


# --- What a run changes


def test_only_the_named_adapter_changes(base, matching):
    found = changed(base, arrays(load_run(matching)))
    # The pooler's is no part of an embedding, and without decay it stays as it is.
    adapters = {path for path in base if ".lora_" in path and not path.startswith("pooler")}
    assert found == {path: [4] for path in adapters}


def test_both_adapters_of_a_pair_change(base, pair):
    found = changed(base, arrays(load_run(pair)))
    adapters = {path for path in base if ".lora_" in path and not path.startswith("pooler")}
    assert found == {path: [0, 1] for path in adapters}


def test_the_whole_network_but_tables(root, base):
    model = {"tasks": ["separation"], "train": "all-but-embeddings"}
    train(settings(root, "but-tables", model=model, steps=2))
    found = changed(base, arrays(load_run(root / "but-tables")))
    tables = {"word_embeddings.embedding", "token_type_embeddings.embedding"}
    assert found.keys() == {path for path in base if not path.startswith("pooler")} - tables
    assert all(tasks == [2] for path, tasks in found.items() if ".lora_" in path)


@pytest.fixture(scope="module")
def legal(root):
    """A new task, trained at another rotary base."""
    new = [{"name": "legal", "copy_of": "text-matching", "prompt": "find: "}]
    model = {"tasks": ["legal"], "new_tasks": new, "rotary_emb_base": 10000}
    train(settings(root, "legal", model=model))
    return root / "legal"


def test_a_new_task_is_trained_and_encodes(root, legal):
    checkpoint = load_run(legal)
    assert checkpoint.config.lora_adaptations == (*TASKS, "legal")
    before = arrays(add_task(open_checkpoint(root / "model"), "legal", copy_of="text-matching"))
    found = changed(before, arrays(checkpoint))
    assert found
    assert all(tasks == [5] for tasks in found.values())
    model = to_model(checkpoint, root / "legal-model")
    original = JinaEmbeddings.from_pretrained(root / "model")
    texts = ["abcdef", "hij"]
    for task in (None, *TASKS):
        # Another number of adapters is another program.
        np.testing.assert_allclose(
            model.encode(texts, task=task), original.encode(texts, task=task), rtol=0, atol=1e-6
        )
    prompted = original.encode(texts, task="text-matching", prompt="find: ")
    assert np.abs(model.encode(texts, task="legal") - prompted).max() > 0.01


def test_training_at_another_rotary_base(root, legal, tmp_path):
    config = load_run(legal).config
    assert config.rotary_emb_base == open_checkpoint(root / "model").config.rotary_emb_base == 20000
    # The losses of a checkpoint whose config says 10000 …
    shutil.copytree(root / "model", tmp_path / "model")
    fields = json.loads((root / "model" / "config.json").read_text())
    fields["rotary_emb_base"] = 10000.0
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    other, own = map(JinaEmbeddings.from_pretrained, (tmp_path / "model", root / "model"))
    expected, at_20000 = (
        info_nce(*pair_vectors(model, root, ["text-matching"] * 2, prompt="find: "))
        for model in (other, own)
    )
    assert losses(legal)[0] == pytest.approx(expected, abs=1e-4)
    # … are not those at its own.
    assert abs(expected - at_20000) > 5e-4


def test_dropout_changes_the_losses_and_no_evaluation(root, matching):
    wanted = settings(root, "dropout", steps=1, model={"dropout": 0.3}, evaluation=sts(root))
    trainer = train(wanted)
    assert abs(losses(root / "dropout")[0] - losses(matching)[0]) > 0.01
    assert trainer.evaluate() == trainer.evaluate()


def test_the_head_of_masked_language_modelling_stays_behind(root, base):
    texts = {"paths": ["texts.txt"], "kind": "texts", "loss": {"name": "mlm", "mask_rate": 0.3}}
    trainer = train(settings(root, "mlm", [texts], model={"tasks": [], "train": "all"}))
    head = [path for path in trainer.state.trained if path.startswith("mlm_head")]
    assert len(head) == 5
    saved = RunCheckpoints(root / "mlm" / CHECKPOINTS, read_only=True).trained(4)
    assert saved.keys() == trainer.state.trained.keys()
    # All of the network is trained, but adapters, which this loss does not use.
    found = changed(base, arrays(load_run(root / "mlm")))
    whole = {path for path in base if ".lora_" not in path and not path.startswith("pooler")}
    assert found.keys() == whole


def test_bfloat16_keeps_trained_weights_in_float32(root, base):
    trainer = Trainer(settings(root, "bf16", model={"dtype": "bfloat16"}))
    assert trainer._programs.network.dtype == "bfloat16"
    assert all(array.dtype == np.float32 for array in trainer.state.trained.values())
    assert {array.dtype.name for array in trainer._programs.frozen.values()} == {"bfloat16"}
    after = arrays(trainer.checkpoint())
    assert all(after[path].dtype == base[path].dtype for path in base)


def test_a_copy_of_the_state_does_not_change_with_later_steps(root):
    trainer = Trainer(settings(root, "copied"))
    path = "layers.0.mlp.fc1.lora_b"
    before = trainer.checkpoint()
    first = np.array(before.tensors[path].read())
    trainer.fit()
    np.testing.assert_array_equal(before.tensors[path].read(), first)
    last = np.array(trainer.checkpoint().tensors[path].read())
    assert (last != first).any()
    np.testing.assert_array_equal(load_run(root / "copied").tensors[path].read(), last)


# --- Evaluation


def sts(root, **fields):
    return [{**STS, "paths": [str(root / "scored.csv")], **fields}]


@pytest.fixture(scope="module")
def evaluated(root):
    wanted = settings(
        root, "evaluated", evaluation=sts(root), log={"every": 3, "evaluate_every": 2}
    )
    trainer = Trainer(wanted)
    return root / "evaluated", trainer.fit(), trainer


def test_evaluations_are_those_of_the_model_at_each_step(root, evaluated):
    run, results, _ = evaluated
    lines = {line["step"]: line for line in reported(run) if "evaluation" in line}
    assert [*lines] == [0, 2, 4]
    assert lines[4]["evaluation"] == results
    alone = Evaluation(kind="sts", paths=[root / "scored.csv"])
    models = {
        0: JinaEmbeddings.from_pretrained(root / "model"),
        4: to_model(load_run(run, 4), root / "evaluated-4"),
    }
    for step, model in models.items():
        for name, value in alone.run(model).items():
            assert lines[step]["evaluation"][name] == pytest.approx(value, abs=1e-5), (step, name)
        assert lines[step]["score"] == lines[step]["evaluation"]["sts/scored/spearman"]


def test_a_finished_run_returns_its_last_evaluation(root, evaluated):
    wanted, results, _ = evaluated
    wanted = settings(root, wanted, evaluation=sts(root))
    resumed = Trainer(wanted, resume=True)
    lines = (wanted.output / METRICS).read_bytes()
    assert resumed.fit() == resumed.fit() == results
    assert (wanted.output / METRICS).read_bytes() == lines
    # Without the line it is evaluated again.
    shutil.copytree(wanted.output, root / "unevaluated")
    (root / "unevaluated" / METRICS).unlink()
    again = Trainer(settings(root, "unevaluated", evaluation=sts(root)), resume=True).fit()
    assert again == pytest.approx(results, abs=1e-6)


@pytest.mark.parametrize(
    ("train", "tasks", "dtype", "scan_layers"),
    [
        ("adapters", RETRIEVAL["tasks"][::-1], None, False),
        ("adapters", ["separation"], "bfloat16", True),
        ("all", [], "bfloat16", False),
        ("all-but-embeddings", ["legal"], None, True),
    ],
)
def test_evaluation_reads_no_weight_of_the_base_again(
    root, tmp_path, monkeypatch, train, tasks, dtype, scan_layers
):
    reads, open_base = collections.Counter(), training_run.open_base

    def counting(path, tensor):
        def read():
            reads[path] += 1
            return tensor.read()

        return dataclasses.replace(tensor, read=read)

    def opened(*args):
        base = open_base(*args)
        tensors = {path: counting(path, tensor) for path, tensor in base.tensors.items()}
        return dataclasses.replace(base, tensors=tensors)

    monkeypatch.setattr(training_run, "open_base", opened)
    model = {"train": train, "tasks": tasks, "dtype": dtype, "scan_layers": scan_layers}
    model |= {"new_tasks": [{"name": "legal"}] if "legal" in tasks else [], "rotary_emb_base": 1e4}
    trainer = Trainer(settings(root, tmp_path, model=model))
    moved = {path: array * 1.3 + 0.1 for path, array in trainer.state.trained.items()}
    trainer.state = trainer.state._replace(trained=moved)
    weights = {path for path in reads if ".lora_" not in path}
    assert weights == {path for path in trainer.base.tensors if ".lora_" not in path}
    assert {reads[path] for path in weights} == {1}
    first, before = trainer.embedder(), reads.copy()
    assert {reads[path] for path in weights} == {1}
    second = trainer.embedder()
    assert reads == before
    # To the bit what the checkpoint gives, read afresh.
    checkpoint = trainer.checkpoint()
    assert first.config == second.config == checkpoint.config
    fresh = to_state(
        checkpoint.config, checkpoint.tensors, dtype or "float32", scan_layers=scan_layers
    )
    expected = nnx.to_flat_state(fresh)
    for model in (first, second):
        found = nnx.to_flat_state(model.state)
        assert [keys for keys, _ in found] == [keys for keys, _ in expected]
        for (keys, ours), (_, theirs) in zip(found, expected, strict=True):
            ours, theirs = np.asarray(ours[...]), np.asarray(theirs[...])
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), keys
            assert ours.tobytes() == theirs.tobytes(), keys


def test_frozen_weights_are_shared_with_evaluation(root):
    trainer = Trainer(settings(root, "shared"))
    path = "layers.0.mlp.fc1.kernel"
    found = {".".join(map(str, k)): v[...] for k, v in nnx.to_flat_state(trainer.embedder().state)}
    assert found[path] is trainer._programs.frozen[path]


def test_there_is_a_line_at_each_checkpoint(evaluated):
    assert [line["step"] for line in reported(evaluated[0]) if "loss" in line] == [2, 3, 4]


def test_the_best_checkpoint_is_kept_and_loaded(root, monkeypatch):
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4])
    monkeypatch.setattr(Evaluation, "run", lambda self, _: {self.primary: next(scores)})
    log = {"evaluate_every": 1, "keep": 2}
    train(settings(root, "best", evaluation=sts(root), log=log))
    store = RunCheckpoints(root / "best" / CHECKPOINTS, read_only=True)
    assert store.steps == [1, 3, 4]
    found = arrays(load_run(root / "best"))
    for step in (1, 4):
        trained = to_checkpoint(store.trained(step))
        same = [np.array_equal(trained[path][0], found[path][4]) for path in trained]
        assert all(same) if step == 1 else not all(same)


def test_the_mean_of_several_evaluations_is_the_score(root):
    two = sts(root, task="none") + sts(root, name="other", task="text-matching")
    trainer = Trainer(settings(root, "two", evaluation=two))
    results = trainer.evaluate()
    names = ("sts/scored/spearman", "sts/other/spearman")
    assert trainer._evaluations.score(results) == pytest.approx(
        np.mean([results[name] for name in names])
    )
    assert results[names[0]] != results[names[1]]


# --- What cannot be trained


def refused(wanted, error, match):
    """Expect a refusal before there is a directory."""
    with pytest.raises(error, match=match):
        Trainer(wanted)
    assert not wanted.output.exists()


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"model": {"tasks": ["unknown"]}}, "task='unknown'"),
        ({"model": {"tasks": ["separation", "separation"]}}, "separation"),
        ({"model": {"max_length": 129}}, "max_length=129: expected at most 128"),
        ({"model": {"new_tasks": [{"name": "separation"}]}}, "name='separation'"),
        ({"batches": {"size": 9}}, "expected at most the 8 rows"),
    ],
)
def test_models_and_batches_that_do_not_fit(root, sections, match):
    refused(settings(root, "unfit", **sections), ValueError, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            {**PAIRS, "loss": {"name": "info_nce", "matryoshka": {"dims": [65]}}},
            r"data\[0\].loss: dims=.*65.*: expected none above 64",
        ),
        (
            {**PAIRS, "loss": {"name": "info_nce", "matryoshka": {"dims": [8], "weights": [1, 2]}}},
            r"data\[0\].loss: weights",
        ),
        (
            {**TEACHER, "batch_size": 1, "loss": {"name": "similarity_distillation"}},
            "at least 2 rows",
        ),
        (
            {**PAIRS, "batch_size": 9},
            r"data\[0\].batch_size: expected at most the 8 rows of the source, got 9",
        ),
    ],
)
def test_losses_that_do_not_fit(root, data, match):
    refused(settings(root, "unfit", [data]), SettingsError, match)


def test_a_teacher_that_is_too_narrow(root, tmp_path):
    np.save(tmp_path / "narrow.npy", np.ones((ROWS, 63), np.float32))
    data = {**TEACHER, "teacher": tmp_path / "narrow.npy", "loss": {"name": "cosine_distillation"}}
    refused(settings(root, "unfit", [data]), SettingsError, r"data\[0\].loss: .*63")


def test_evaluations_of_one_name_are_refused(root):
    wanted = settings(root, "twice", evaluation=sts(root) * 2)
    refused(wanted, SettingsError, "evaluation.name: expected one for each, sts/scored")


def test_a_model_without_mask_is_refused(root, monkeypatch):
    tokenizer = Tokenizer.from_file(root / "model" / "tokenizer.json")  # the one that all share
    monkeypatch.setattr(tokenizer, "mask_id", None)
    texts = {"paths": ["texts.txt"], "kind": "texts", "loss": {"name": "mlm"}}
    wanted = settings(root, "unmasked", [texts], model={"train": "all"})
    refused(wanted, ValueError, "expected one with the token <mask>")


def bad_pairs(root, tmp_path, **fields):
    good = (root / "pairs.jsonl").read_text()
    (tmp_path / "bad.jsonl").write_text('{"anchor": "a"}\n' + good + '{"anchor": " "}\n')
    return {**PAIRS, "paths": [tmp_path / "bad.jsonl"], **fields}


def test_bad_rows_are_an_error(root, tmp_path):
    wanted = settings(root, "bad", [bad_pairs(root, tmp_path)])
    refused(wanted, DataError, r"2 of 10 rows are bad:\n.*bad.jsonl:1: .*positive")


def test_bad_rows_are_left_out_and_listed(root, tmp_path):
    wanted = settings(root, "skipped", [bad_pairs(root, tmp_path, bad_rows="skip")])
    with pytest.warns(UserWarning, match=f"2 rows are left out; .*{BAD_ROWS} lists them"):
        trainer = Trainer(wanted)
    assert f"bad.jsonl: {ROWS} rows" in trainer.summary()
    lines = (root / "skipped" / BAD_ROWS).read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path / 'bad.jsonl'}:1",
        f"{tmp_path / 'bad.jsonl'}:10",
    ]


def test_a_loss_that_is_not_finite_ends_the_run(root):
    fields = {"learning_rate": 1e30, "max_grad_norm": None}
    log = {"every": 100, "save_every": 1}
    trainer = Trainer(settings(root, "diverged", steps=20, optimizer=fields, log=log))
    with pytest.raises(TrainingError, match=r"step .* loss of info_nce:pairs.jsonl is (nan|inf)"):
        trainer.fit()
    store = RunCheckpoints(root / "diverged" / CHECKPOINTS, read_only=True)
    assert trainer.step <= 4
    assert trainer.step not in store.steps
    for step in store.steps:
        assert all(np.isfinite(array).all() for array in store.trained(step).values())


# --- Runs that cannot be loaded


def test_load_run_refuses(root, pair, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the directory of a run"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are \[2, 4\]"):
        load_run(pair, 3)
    Trainer(settings(root, "empty"))
    with pytest.raises(CheckpointError, match="empty: no checkpoint; there are none"):
        load_run(root / "empty")


def test_load_run_touches_nothing_that_is_being_written(pair):
    partial = pair / CHECKPOINTS / "6.orbax-checkpoint-tmp"
    partial.mkdir()
    load_run(pair)
    assert partial.is_dir()
    partial.rmdir()


def test_load_run_finds_a_base_that_has_changed(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "model")
    train(settings(root, tmp_path / "run", model={"name": str(tmp_path / "model")}))
    load_run(tmp_path / "run")
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**fields, "unused": 1}))
    with pytest.raises(CheckpointError, match=r"not the files that the run .* started from"):
        load_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "run")


def test_a_run_may_move(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "elsewhere")
    before, after = arrays(load_run(pair)), arrays(load_run(tmp_path / "elsewhere"))
    assert not changed(before, after)


def test_settings_are_read_as_they_were(pair):
    assert dataclasses.is_dataclass(load_run(pair))
    assert json.loads((pair / "settings.json").read_text())["model"]["tasks"] == RETRIEVAL["tasks"]


# --- What a run leaves behind


def reachable_arrays(root):
    """Find all arrays that an object refers to, through closures but not through modules."""
    seen, waiting, found = set(), [root], []
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, jax.Array):
            found.append(item)
        elif isinstance(item, types.FunctionType):
            waiting += [cell.cell_contents for cell in item.__closure__ or ()]
        else:
            waiting += gc.get_referents(item)
    return found


def test_no_deleted_array_is_kept(evaluated):
    found = reachable_arrays(evaluated[2])
    assert len(found) > 30
    assert not [array for array in found if array.is_deleted()]


@pytest.fixture
def no_compilation_cache():
    """JAX as it is where nobody has chosen a cache, which loading a model does."""
    kept = {name: jax.config.values[name] for name in jax.config.values if "cache" in name}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


def process_state():
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "jina_jax", None)]
    return {
        "jax": dict(jax.config.values),
        "loggers": [(each.level, [*each.filters], [*each.handlers]) for each in loggers],
        "hooks": (sys.unraisablehook, sys.excepthook, threading.excepthook),
        "warnings": warnings.filters[:],
        "gc": gc.isenabled(),
    }


@pytest.mark.usefixtures("no_compilation_cache")
def test_the_process_is_as_before(root):
    before = process_state()
    trainer = train(settings(root, "process", evaluation=sts(root)))
    trainer.evaluate()
    with pytest.raises(CheckpointError):
        RunCheckpoints(trainer.settings.output / CHECKPOINTS).restore(3, trainer.state)
    assert process_state() == before


def test_rows_that_share_texts_are_refused_before_there_is_a_directory(root):
    row = json.dumps({"anchor": "a", "positive": "b"})
    (root / "same.jsonl").write_text(f"{row}\n" * ROWS, encoding="utf-8")
    wanted = settings(root, "unfit", [{**PAIRS, "paths": ["same.jsonl"]}])
    refused(wanted, ValueError, "rows without a text in common for a batch, found 1")
