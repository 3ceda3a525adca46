"""The package mteb itself, on data made here: it takes our model, and its scores are ours."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.evaluation import bitext, classification, clustering, retrieval, sts
from jina_jax.evaluation.mteb_model import MtebModel
from jina_jax.tasks import MTEB_TYPES

_MISSING = [name for name in ("mteb", "torch", "datasets") if find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}"),
    # What mteb says about its own computations is not about us.
    *map(
        pytest.mark.filterwarnings,
        (
            "ignore::FutureWarning",
            "ignore::DeprecationWarning",
            "ignore:To copy construct from a tensor",
            "ignore:Precision is ill-defined",
        ),
    ),
]


@pytest.fixture(scope="module")
def local():
    """Import what takes long, and may not be there."""
    import mteb_tasks

    return mteb_tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return JinaEmbeddings.from_pretrained(write_tiny(tmp_path_factory.mktemp("model") / "tiny"))


def scores(model, task, dim):
    import mteb

    ours = MtebModel(model, "none/tiny", truncate_dim=dim)
    results = mteb.evaluate(ours, task, cache=None, show_progress_bar=False)
    (result,) = results.task_results[0].scores["test"]
    return result


class TestScores:
    """Theirs and ours on the same data, at full and at half width."""

    @pytest.fixture(params=[None, 32])
    def dim(self, request):
        return request.param

    def test_sts(self, model, local, dim):
        theirs = scores(model, local.LocalSTS(), dim)
        ours = of(sts(model, local.FIRST, local.SECOND, local.SCORES, dims=[32]), dim)
        assert theirs["main_score"] == pytest.approx(ours["spearman"], abs=1e-6)
        assert theirs["cosine_pearson"] == pytest.approx(ours["pearson"], abs=1e-6)

    def test_bitext(self, model, local, dim):
        theirs = scores(model, local.LocalBitext(), dim)
        ours = of(bitext(model, local.FIRST, local.TRANSLATIONS, dims=[32]), dim)
        assert theirs["f1"] == pytest.approx(ours["f1"], abs=1e-9)
        assert theirs["accuracy"] == pytest.approx(ours["source_to_target"], abs=1e-9)
        assert 0.1 < theirs["accuracy"] < 0.9

    def test_classification(self, model, local, dim):
        theirs = scores(model, local.LocalClassification(), dim)
        train, test = slice(0, 40), slice(40, None)
        split = [column[rows] for rows in (train, test) for column in (local.FIRST, local.LABELS)]
        ours = of(classification(model, *split, dims=[32]), dim)
        assert theirs["accuracy"] == pytest.approx(ours["logistic_accuracy"], abs=1e-9)
        assert theirs["f1"] == pytest.approx(ours["logistic_f1"], abs=1e-9)

    def test_clustering(self, model, local, dim):
        theirs = scores(model, local.LocalClustering(), dim)
        ours = of(clustering(model, local.FIRST, local.LABELS, dims=[32]), dim)
        assert theirs["v_measure"] == pytest.approx(ours["v_measure"], abs=1e-6)

    @pytest.mark.parametrize("name", ["LocalRetrieval", "LocalArguAna"])
    def test_retrieval(self, model, local, dim, name):
        task = getattr(local, name)()
        theirs = scores(model, task, dim)
        ours = of(
            retrieval(
                model,
                local.CORPUS,
                local.QUERIES,
                local.QRELS,
                task="auto" if name == "LocalRetrieval" else "text-matching",
                dims=[32],
                ignore_identical_ids=task.ignore_identical_ids,
            ),
            dim,
        )
        for metric in ("ndcg_at_10", "recall_at_10"):
            # They give five digits.
            assert theirs[metric] == pytest.approx(round(ours[metric], 5), abs=1e-9), metric
            assert 0.05 < theirs[metric] < 0.95
        assert theirs["mrr_at_10"] == pytest.approx(ours["mrr_at_10"], abs=1e-6)


def of(results, dim):
    """Pick the metrics of a dimension."""
    suffix = f"@{dim}" if dim else ""
    return {
        name.removesuffix(suffix): value
        for name, value in results.items()
        if name.endswith(suffix) and (dim or "@" not in name)
    }


def adapter(ours, name, kind, side=None):
    from mteb.types import PromptType

    task = SimpleNamespace(name=name, type=kind)
    return ours.adapter(task, None if side is None else PromptType(side))


class TestAdapters:
    @pytest.mark.parametrize(
        ("name", "kind", "side", "expected"),
        [
            ("Banking77Classification", "Classification", None, "classification"),
            ("TwitterURLCorpus", "PairClassification", None, "classification"),
            ("STS12", "STS", None, "text-matching"),
            ("SummEval", "Summarization", None, "text-matching"),
            ("Tatoeba", "BitextMining", None, "text-matching"),
            ("TwentyNewsgroupsClustering", "Clustering", None, "separation"),
            ("AskUbuntuDupQuestions", "Reranking", "query", "separation"),
            ("AskUbuntuDupQuestions", "Reranking", "document", "separation"),
            ("QuoraReranking", "Reranking", "query", "separation"),
            ("SciFact", "Retrieval", "query", "retrieval.query"),
            ("SciFact", "Retrieval", "document", "retrieval.passage"),
            ("ArguAna", "Retrieval", "query", "text-matching"),
            ("CQADupstackTexRetrieval", "Retrieval", "document", "text-matching"),
            ("QuoraRetrieval", "Retrieval", "query", "text-matching"),
            ("LEMBPasskeyRetrieval", "Retrieval", "query", "text-matching"),
        ],
    )
    def test_the_papers_choice(self, model, name, kind, side, expected):
        assert adapter(MtebModel(model, "none/tiny"), name, kind, side) == expected

    def test_every_type_of_text_task_has_one(self):
        import mteb

        tasks = [task.metadata for task in mteb.get_tasks()]
        types = {task.type for task in tasks if task.modalities == ["text"]}
        assert types | {"ZeroShotClassification"} == MTEB_TYPES.keys()

    def test_adapters_are_those_of_mtebs_own_entry(self, model):
        """Types with one adapter; the paper has other tasks for some names of retrieval."""
        import mteb

        published = mteb.get_model_meta("jinaai/jina-embeddings-v3").loader_kwargs["model_prompts"]
        ours = MtebModel(model, "none/tiny")
        for kind in MTEB_TYPES:
            for side in ("query", "document"):
                theirs = published.get(f"{kind}-{side}", published.get(kind))
                assert adapter(ours, "X", kind, side) == theirs, kind

    def test_of_ones_choice(self, model):
        tasks = {"STS": None, "STS12": "separation", "Retrieval": ("separation", None)}
        ours = MtebModel(model, "none/tiny", tasks=tasks)
        assert adapter(ours, "STS12", "STS") == "separation"
        assert adapter(ours, "STS13", "STS") is None
        assert adapter(ours, "ArguAna", "Retrieval", "query") == "separation"
        assert adapter(ours, "ArguAna", "Retrieval", "document") is None
        assert adapter(ours, "X", "Clustering") == "separation"

    def test_a_model_without_adapters(self, model):
        plain = MtebModel(SimpleNamespace(config=model.config.only(())), "none/tiny")
        assert adapter(plain, "SciFact", "Retrieval", "query") is None

    def test_refusals(self, model):
        with pytest.raises(ValueError, match="task='retrieval': this checkpoint has"):
            MtebModel(model, "none/tiny", tasks={"STS": "retrieval"})
        with pytest.raises(ValueError, match="task 'X' is of type 'ImageClustering'"):
            adapter(MtebModel(model, "none/tiny"), "X", "ImageClustering")
        with pytest.raises(ValueError, match="truncate_dim=33"):
            MtebModel(model, "none/tiny", truncate_dim=33)

    def test_mteb_is_not_there(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
        with pytest.raises(ImportError, match=r'needs mteb: pip install "jina-jax\[mteb\]"'):
            MtebModel(model, "none/tiny")


class TestMocks:
    """mteb's own suite of made-up tasks, one or more of each type."""

    # The dialogue of one task is longer than this model's 128 tokens.
    @pytest.mark.filterwarnings("ignore:1 of 2 texts were longer than max_length=128")
    def test_every_task_of_texts_passes(self, model):
        from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
        from mteb.mocks.mock_run import mock_run
        from mteb.results.task_result import TaskError

        results = mock_run(MtebModel(model, "none/tiny"))
        of_texts = [
            task.metadata.name
            for task in ALL_MOCK_TASK_TEST_GRID
            if task.metadata.modalities == ["text"]
        ]
        assert len(of_texts) > 20
        failed = {name: results[name] for name in of_texts if isinstance(results[name], TaskError)}
        assert not failed
        assert all(results[name] is not None for name in of_texts)


class TestPrecision:
    def test_the_wrapper_that_compresses(self, model, local):
        import mteb
        from mteb.models import CompressionWrapper
        from mteb.types import OutputDType

        plain = scores(model, local.LocalSTS(), None)["main_score"]
        wrapped = CompressionWrapper(MtebModel(model, "none/tiny"), OutputDType.BINARY)
        results = mteb.evaluate(wrapped, local.LocalSTS(), cache=None, show_progress_bar=False)
        (result,) = results.task_results[0].scores["test"]
        assert wrapped.mteb_model_meta.output_dtypes == [OutputDType.BINARY]
        assert 0 < abs(result["main_score"] - plain) < 0.5

    @pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
    @pytest.mark.filterwarnings("ignore:Computing int8 quantization")
    def test_as_sentence_transformers(self, model, local, precision):
        from sentence_transformers.util import quantize_embeddings

        batches = [{"text": local.FIRST}]
        options = {"task_metadata": local.LocalSTS.metadata, "hf_split": "", "hf_subset": ""}
        found = MtebModel(model, "none/tiny").encode(batches, precision=precision, **options)
        vectors = model.encode(local.FIRST, task="text-matching")
        np.testing.assert_array_equal(found, quantize_embeddings(vectors, precision=precision))

    def test_refusals(self, model, local):
        ours = MtebModel(model, "none/tiny")
        options = {"task_metadata": local.LocalSTS.metadata, "hf_split": "", "hf_subset": ""}
        with pytest.raises(ValueError, match="int3"):
            ours.encode([{"text": ["a"]}], precision="int3", **options)
        with pytest.raises(ValueError, match="inputs: expected batches with 'text', got image"):
            ours.encode([{"image": ["a"]}], **options)


class TestProtocol:
    def test_mteb_takes_it_for_an_encoder(self, model):
        from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

        ours = MtebModel(model, "none/tiny", "r1", truncate_dim=32, max_length=40)
        assert isinstance(ours, EncoderProtocol)
        assert not isinstance(ours, SearchProtocol | CrossEncoderProtocol)
        meta = ours.mteb_model_meta
        assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens) == (
            "none/tiny",
            "r1",
            32,
            40,
        )

    def test_what_reaches_the_encoder(self, model, local):
        batches = [{"text": ["a cat", "the dog"]}, {"text": ["one"], "title": ["no"]}]
        ours = MtebModel(model, "none/tiny", truncate_dim=32, max_length=12)
        task = local.LocalRetrieval.metadata
        side = {"hf_split": "test", "hf_subset": "default", "prompt_type": local.PromptType.query}
        with pytest.warns(UserWarning, match="3 of 3 texts were longer"):
            vectors = ours.encode(batches, task_metadata=task, batch_size=32, **side)
        options = {"task": "retrieval.query", "truncate_dim": 32, "max_length": 12}
        with pytest.warns(UserWarning, match="3 of 3 texts were longer"):
            expected = model.encode(["a cat", "the dog", "one"], **options)
        np.testing.assert_array_equal(vectors, expected)

    def test_similarity_is_cosine(self, model):
        ours = MtebModel(model, "none/tiny")
        left, right = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]
        cosines = units[0] @ units[1].T
        np.testing.assert_allclose(ours.similarity(left, right), cosines, atol=1e-6)
        np.testing.assert_allclose(
            ours.similarity_pairwise(left, right), np.diag(cosines), atol=1e-6
        )
