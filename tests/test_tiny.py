"""The packaged model, which is used when no model is named, from end to end."""

import hashlib
import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from published import TASKS

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.hub import PACKAGED
from jina_jax.convert import open_checkpoint, write_checkpoint
from jina_jax.evaluation import Evaluation
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.verify.compare import NO_TASK, references_of, verify
from jina_jax.verify.record import TEXTS

MOST_BYTES = 32_000_000
TOLERANCE = 1e-5
SUBJECTS = (None, *TASKS)
GOLD = json.loads((PACKAGED / "gold.json").read_text(encoding="utf-8"))
FILES = {
    "flax_model.safetensors": "290229a9d9b8f40b4e98c8495227f0ab39b2f738558ff0f1862fa3ef069788fd",
    "tokenizer.json": "90754d602ae552c7a730e602b73f0e755b8431dbf2ebc1e80b87f588fff3a7ab",
}
SENTENCES = {
    "Arabic": "ما هي عاصمة فرنسا؟",
    "Bengali": "ফ্রান্সের রাজধানী কী?",
    "Chinese": "法国的首都是哪里？",
    "Danish": "Hvad er hovedstaden i Frankrig, og hvor mange bor der på øen?",
    "Dutch": "Wat is de hoofdstad van Frankrijk?",
    "English": "What is the capital of France?",
    "Finnish": "Mikä on Ranskan pääkaupunki?",
    "French": "Quelle est la capitale de la France, et où se trouve-t-elle ?",
    "Georgian": "რა არის საფრანგეთის დედაქალაქი?",
    "German": "Wie heißt die größte Stadt in Frankreich?",
    "Greek": "Ποια είναι η πρωτεύουσα της Γαλλίας;",
    "Hindi": "फ्रांस की राजधानी क्या है?",
    "Indonesian": "Apa ibu kota Prancis?",
    "Italian": "Qual è la capitale della Francia?",
    "Japanese": "フランスの首都はどこですか。",
    "Korean": "프랑스의 수도는 어디입니까?",
    "Latvian": "Kāda ir Francijas galvaspilsēta, un kur tā atrodas?",
    "Norwegian": "Hva er hovedstaden i Frankrike, og når ble den grunnlagt på øya?",
    "Polish": "Jak nazywa się stolica Francji i gdzie leży?",
    "Portuguese": "Qual é a capital da França, e onde estão os museus?",
    "Romanian": "Care este capitala Franței și în ce țară se află?",
    "Russian": "Какой город является столицей Франции?",
    "Slovak": "Ktoré mesto je hlavným mestom Francúzska?",
    "Spanish": "¿Cuál es la capital de Francia, señor?",
    "Swedish": "Vad heter Frankrikes huvudstad, och var ligger den på kartan?",
    "Thai": "เมืองหลวงของประเทศฝรั่งเศสคืออะไร",
    "Turkish": "Fransa'nın başkenti neresidir, çok mu büyük?",
    "Ukrainian": "Яке місто є столицею Франції?",
    "Urdu": "فرانس کا دارالحکومت کیا ہے؟",
    "Vietnamese": "Thủ đô của nước Pháp là gì?",
}
# Every text under every task, in one batch of mixed tasks.
EVERYTHING = [text for text in TEXTS.values() for _ in SUBJECTS]
MIXED = {"task": [*SUBJECTS] * len(TEXTS)}


@pytest.fixture(scope="module")
def model():
    return JinaEmbeddings.from_pretrained(PACKAGED, dtype="float32")


@pytest.fixture(scope="module")
def stored():
    """The model in its own dtype, the default."""
    return JinaEmbeddings.from_pretrained(PACKAGED)


@pytest.fixture(scope="module")
def vectors(model):
    """All texts under all tasks: float32 (texts · tasks, d)."""
    return model.encode(EVERYTHING, **MIXED)


def test_it_loads_without_a_network(monkeypatch):
    def refuse(*args, **_):
        raise AssertionError(f"asked the network: {args}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    model = JinaEmbeddings.from_pretrained("tiny")
    vector = model.encode("hello", task="text-matching")
    assert (vector.shape, vector.dtype) == ((model.config.hidden_size,), np.float32)


def test_the_command_line_warns_once_on_stderr(tmp_path):
    code = "from jina_jax.cli.main import main; main(prog_name='jina-jax')"
    command = [sys.executable, "-c", code, "search", "-", "a ferry", "--json"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    done = subprocess.run(command, input="a boat\n\na ferry\n", **options)
    lines = [json.loads(line)["first_line"] for line in done.stdout.splitlines()]
    assert sorted(lines) == [1, 3]
    assert done.stderr.startswith("jina-jax: warning: no model named: using tiny")
    assert done.stderr.count("\n") == 1


class TestPackage:
    def test_its_files_and_their_size(self):
        sizes = {path.name: path.stat().st_size for path in PACKAGED.iterdir()}
        assert sizes.keys() == {
            *("config.json", "flax_model.safetensors", "tokenizer.json"),
            *("README.md", "gold.json"),
        }
        assert sum(sizes.values()) <= MOST_BYTES

    def test_they_are_in_the_wheel(self):
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
        assert "tiny/*" in project["tool"]["setuptools"]["package-data"]["jina_jax"]

    def test_tasks_and_prompts_are_those_of_jina_embeddings_v3(self, model):
        assert set(model.config.lora_adaptations) == set(TASKS)
        assert model.config.prompt("retrieval.query").startswith("Represent the query")
        assert model.config.prompt("retrieval.passage").startswith("Represent the document")

    @pytest.mark.parametrize("language", SENTENCES)
    def test_the_vocabulary_covers_the_language(self, model, language):
        (ids,) = model.tokenize([SENTENCES[language]])
        assert model.tokenizer.unk_id not in ids


class TestVectors:
    def test_every_task_gives_unit_vectors(self, vectors, model):
        assert vectors.shape == (len(EVERYTHING), model.config.hidden_size)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)

    def test_every_adapter_does_something(self, vectors):
        by_task = vectors.reshape(len(TEXTS), len(SUBJECTS), -1)
        for first in range(len(SUBJECTS)):
            for second in range(first):
                assert np.abs(by_task[:, first] - by_task[:, second]).max() > 1e-3

    def test_every_dimension(self, vectors, model):
        dims = model.config.matryoshka_dimensions
        assert max(dims) == model.config.hidden_size
        for dim in dims:
            cut = model.encode(EVERYTHING, truncate_dim=dim, **MIXED)
            assert cut.shape == (len(EVERYTHING), dim)
            expected = vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
            np.testing.assert_allclose(cut, expected, atol=1e-6)

    @pytest.mark.parametrize("task", SUBJECTS)
    def test_mixed_tasks_are_those_of_one(self, vectors, model, task):
        alone = model.encode([*TEXTS.values()], task=task)
        mixed = vectors[SUBJECTS.index(task) :: len(SUBJECTS)]
        np.testing.assert_allclose(alone, mixed, atol=1e-6)

    @pytest.mark.parametrize("layout", ["native", "published", "transformers"])
    def test_round_trips_keep_every_bit(self, vectors, tmp_path, layout):
        write_checkpoint(open_checkpoint(PACKAGED), tmp_path / "there", layout)
        write_checkpoint(open_checkpoint(tmp_path / "there"), tmp_path / "back", "native")
        for name in ("there", "back"):
            copy = JinaEmbeddings.from_pretrained(tmp_path / name, dtype="float32")
            assert copy.encode(EVERYTHING, **MIXED).tobytes() == vectors.tobytes()


def off(vectors):
    """Return the largest difference of vectors (texts · tasks, d) from the packaged values."""
    names = [task or NO_TASK for task in SUBJECTS]
    expected = [GOLD[text]["embeddings"][name] for text in TEXTS for name in names]
    return np.abs(vectors[:, : len(expected[0])] - expected).max()


def changed(model, path, change):
    """Return the model with one parameter changed."""
    arrays = to_dict(model.state)
    return model.with_state(from_dict(model.state, {**arrays, path: change(arrays[path])}))


class TestGold:
    """Stored values: any change of the vectors must fail here."""

    @pytest.mark.parametrize("name", FILES)
    def test_files(self, name):
        """The six texts of gold.json cover few of the pieces; the hashes cover the others."""
        assert hashlib.sha256((PACKAGED / name).read_bytes()).hexdigest() == FILES[name]

    def test_vectors(self, vectors):
        assert off(vectors) < TOLERANCE

    def test_hidden_states(self):
        tokenizer = Tokenizer.from_file(PACKAGED / "tokenizer.json")
        checks = verify(
            open_checkpoint(PACKAGED), tokenizer, references_of(open_checkpoint(PACKAGED))
        )
        names = [task or NO_TASK for task in SUBJECTS]
        subjects = ("tokens", *names, *(f"{name}, vector" for name in names))
        assert {check[:2] for check in checks} == {(t, s) for t in TEXTS for s in subjects}
        assert all(check.agrees for check in checks)

    @pytest.mark.parametrize(
        "path",
        [
            "layers.0.attention.qkv_proj.kernel",
            "layers.1.mlp.fc1.bias",
            "layers.1.mlp.fc2.kernel",
            "layers.1.norm2.scale",
            "embedding_norm.bias",
            "token_type_embeddings.embedding",
        ],
    )
    def test_one_changed_number_fails(self, model, path):
        def change(array):
            return array.at[(0,) * (array.ndim - 1) + (5,)].add(0.05)

        wrong = changed(model, path, change)
        assert off(wrong.encode(EVERYTHING, **MIXED)) > TOLERANCE

    @pytest.mark.parametrize("task", TASKS)
    def test_a_changed_adapter_fails(self, model, task):
        k = model.config.task_id(task)
        path = "layers.0.attention.qkv_proj.lora_b"
        wrong = changed(model, path, lambda array: array.at[k].multiply(1.1))
        assert off(wrong.encode(EVERYTHING, **MIXED)) > TOLERANCE

    def test_a_changed_prompt_fails(self, model):
        prompts = {task: model.config.prompt(task) for task in TASKS}
        prompts["retrieval.query"] += "x "
        pairs = zip(MIXED["task"], EVERYTHING, strict=True)
        wrong = [prompts.get(task, "") + text for task, text in pairs]
        assert off(model.encode(wrong, prompt=None, **MIXED)) > TOLERANCE


def test_lengths_in_the_picture_of_packing(model):
    docs = Path(__file__).parents[1] / "docs/pictures/packing.json"
    kept = json.loads(docs.read_text(encoding="utf-8"))
    licence = (docs.parents[2] / "LICENSE").read_text(encoding="utf-8")
    paragraphs = [" ".join(own.split()) for own in re.split(r"\n\s*\n", licence)]
    assert [len(ids) for ids in model.tokenizer.encode(paragraphs[: len(kept)])] == kept


class TestQuality:
    """Development data: thresholds a little below the scores of the model card."""

    def test_similarity(self, shared, stored):
        scores = []
        for code in ("en", "fr", "ja"):
            path = shared / f"eval/stsb-{code}-dev.csv"
            sts = Evaluation(kind="sts", paths=[path], columns=(0, 1, 2), name="x")
            scores.append(sts.run(stored)["sts/x/spearman"])
        assert np.mean(scores) > 0.77  # 0.780

    def test_translations(self, shared, stored):
        paths = [shared / f"eval/tatoeba.spa-eng.{side}" for side in ("spa", "eng")]
        bitext = Evaluation(kind="bitext", paths=paths, name="x", task=None)
        assert bitext.run(stored)["bitext/x/accuracy"] > 0.76  # 0.78

    def test_search_across_languages(self, model):
        """Questions about France's capital are nearer to the English one than to the weather."""
        options = {"task": "text-matching"}
        asked = model.encode([*SENTENCES.values()], **options)
        right, wrong = model.encode(
            ["Which city is the capital of France?", "It will rain in the afternoon."], **options
        )
        assert (asked @ right > asked @ wrong).all()
