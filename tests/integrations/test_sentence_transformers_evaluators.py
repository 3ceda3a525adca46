"""Evaluators of sentence-transformers: as with vectors that are known, and those that fail."""

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY

st = pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

OTHERS = [
    "The town hall is open from nine.",
    "Every half hour a train goes to the sea.",
    "The bakery sells bread.",
    "Old paintings are in the museum.",
]


@pytest.fixture(scope="module")
def body(model):
    from jina_jax.integrations.sentence_transformers import JinaJaxSentenceTransformer

    return JinaJaxSentenceTransformer(model, task="text-matching")


@pytest.fixture(scope="module")
def evaluators():
    import sentence_transformers.sentence_transformer.evaluation as found

    return found


def test_similarities(evaluators, body, model):
    stats = pytest.importorskip("scipy.stats")
    gold = [0.9, 0.2, 0.4, 0.1]
    given = DOCUMENTS, OTHERS[1:] + OTHERS[:1], gold
    found = evaluators.EmbeddingSimilarityEvaluator(*given, truncate_dim=64)(body)
    options = {"task": "text-matching", "truncate_dim": 64}
    first, second = (model.encode(texts, **options) for texts in given[:2])
    cosines = np.sum(first * second, axis=-1)
    assert found["spearman_cosine"] == pytest.approx(stats.spearmanr(cosines, gold).statistic)
    assert found["pearson_cosine"] == pytest.approx(
        stats.pearsonr(cosines, gold).statistic, abs=1e-5
    )


def test_retrieval_uses_both_adapters(evaluators, body, model, monkeypatch):
    corpus = {str(i): text for i, text in enumerate(DOCUMENTS)}
    tasks, encode = [], model.encode

    def record(texts, **options):
        tasks.append(options["task"])
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode", record)
    found = evaluators.InformationRetrievalEvaluator({"q": QUERY}, corpus, {"q": {"2"}})(body)
    assert tasks == ["retrieval.query", "retrieval.passage"]
    assert found["cosine_ndcg@10"] == found["cosine_accuracy@1"] == 1


@pytest.mark.parametrize(
    ("name", "given", "metric", "expected"),
    [
        ("TripletEvaluator", (DOCUMENTS, OTHERS, OTHERS[1:] + OTHERS[:1]), "cosine_accuracy", 1),
        (
            "BinaryClassificationEvaluator",
            (DOCUMENTS * 2, OTHERS + OTHERS[1:] + OTHERS[:1], [1] * 4 + [0] * 4),
            "cosine_accuracy",
            1,
        ),
        (
            "RerankingEvaluator",
            ([{"query": QUERY, "positive": DOCUMENTS[2:3], "negative": DOCUMENTS[:2]}],),
            "map",
            1,
        ),
        ("TranslationEvaluator", (DOCUMENTS, OTHERS), "mean_accuracy", 1),
        (
            "ParaphraseMiningEvaluator",
            (dict(zip("abcdefgh", DOCUMENTS + OTHERS, strict=True)), ["ae", "bf", "cg", "dh"]),
            "average_precision",
            1,
        ),
    ],
)
def test_evaluator(name, given, metric, expected, evaluators, body):
    assert body.evaluate(getattr(evaluators, name)(*given))[metric] == pytest.approx(expected)


def test_a_teacher(evaluators, body):
    found = evaluators.MSEEvaluator(DOCUMENTS, DOCUMENTS, teacher_model=body)(body)
    assert found["negative_mse"] == 0
    triplets = evaluators.TripletEvaluator(DOCUMENTS, OTHERS, DOCUMENTS, name="a")
    assert "a_cosine_accuracy" in evaluators.SequentialEvaluator([triplets])(body)


def test_mining(body):
    from sentence_transformers.util import mine_hard_negatives, paraphrase_mining

    pairs = {tuple(pair[1:]) for pair in paraphrase_mining(body, DOCUMENTS + OTHERS)[:4]}
    assert pairs == {(0, 4), (1, 5), (2, 6), (3, 7)}
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    dataset = datasets.Dataset.from_dict({"query": [QUERY], "answer": [DOCUMENTS[2]]})
    options = {"corpus": DOCUMENTS, "num_negatives": 2, "verbose": False}
    mined = mine_hard_negatives(dataset, body, **options)
    assert DOCUMENTS[2] not in mined["negative"]
    assert len(mined) == 2


def test_training_and_forward_are_refused(evaluators, body, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    import sentence_transformers.sentence_transformer.losses as losses
    from torch.utils.data import DataLoader

    arguments = st.SentenceTransformerTrainingArguments(str(tmp_path), report_to="none")
    pairs = datasets.Dataset.from_dict({"anchor": DOCUMENTS, "positive": OTHERS})
    loss = losses.MultipleNegativesRankingLoss(body)
    trainer = st.SentenceTransformerTrainer(body, arguments, pairs, loss=loss)
    with pytest.raises(NotImplementedError, match="train is not supported"):
        trainer.train()
    loader = DataLoader([st.InputExample(texts=DOCUMENTS[:2], label=0)])
    accuracy = evaluators.LabelAccuracyEvaluator(
        loader, softmax_model=losses.SoftmaxLoss(body, 192, 2)
    )
    with pytest.raises(NotImplementedError, match="forward is not supported"):
        accuracy(body)
