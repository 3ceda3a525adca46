"""Hard negatives as sentence-transformers' function of that name mines them."""

import re
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from theirs import PARITY

from jina_jax.search import Rules, mine_hard_negatives

_MISSING = [name for name in ("sentence_transformers", "datasets") if find_spec(name) is None]
pytestmark = [*PARITY, pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}")]

QUERIES, TEXTS = 20, 60


class Model:
    """Looks vectors up; has what both sides ask of a model."""

    device = "cpu"
    config = SimpleNamespace(lora_adaptations=())

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, **_):
        return np.stack([self.vectors[text] for text in texts])

    encode_query = encode_document = encode

    def similarity(self, a, b):
        from sentence_transformers.util import cos_sim

        return cos_sim(a, b)

    def similarity_pairwise(self, a, b):
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(a, b)


@pytest.fixture(scope="module")
def case():
    """Two positives a query, the nearest texts of all, and a corpus of which they are no part.

    sentence-transformers looks at as many texts more as any query has positives, wherever these
    lie; here that is ``range_max`` others for every query, which is our rule.
    """
    rng = np.random.default_rng(0)

    def unit(vector):
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    vectors = {f"t{i}": unit(rng.standard_normal(8)) for i in range(TEXTS)}
    pairs = []
    for i in range(QUERIES):
        vectors[f"q{i}"] = query = unit(rng.standard_normal(8))
        for name in (f"p{i}", f"r{i}"):
            vectors[name] = unit(query + 0.1 * rng.standard_normal(8))
            pairs.append((f"q{i}", name))
    return Model(vectors), pairs, [f"t{i}" for i in range(TEXTS)]


def theirs(case, **options):
    """Mine with sentence-transformers: (query, positive) → (negatives, scores)."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as peer

    model, pairs, corpus = case
    queries, positives = zip(*pairs, strict=True)
    rows = peer(
        Dataset.from_dict({"query": queries, "answer": positives}),
        model,
        corpus=corpus,
        output_format="n-tuple",
        output_scores=True,
        **options,
    )
    names = [f"negative_{i + 1}" for i in range(options["num_negatives"])]
    return {
        (row["query"], row["answer"]): ([row[name] for name in names], row["scores"])
        for row in rows
    }


OPTIONS = [
    {"range_max": 5},
    {"range_min": 2, "range_max": 9},
    {"range_max": 1000},
    {"range_max": 20, "absolute_margin": 0.4},
    {"range_max": 12, "relative_margin": 0.5},
    {"range_max": 12, "relative_margin": 0.5, "absolute_margin": 0.4, "range_min": 1},
    {"range_max": 15, "max_score": 0.5},
    {"range_max": 30, "min_score": 0.1, "range_min": 3},
    {"range_max": 40, "max_score": 0.45, "relative_margin": 0.3, "min_score": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_negatives_with_the_same_scores(case, options, capsys):
    options = {"num_negatives": 5, **options}
    expected = theirs(case, **options)
    printed = capsys.readouterr().out
    mined = mine_hard_negatives(*case, rules=Rules(**options))
    found = {(row.query, row.positive): row for row in mined.rows}
    assert list(found) == list(expected)
    assert len(found) + len(mined.left_out) == 2 * QUERIES
    for pair, (negatives, scores) in expected.items():
        assert list(found[pair].negatives) == negatives
        np.testing.assert_allclose(found[pair].scores, scores, rtol=0, atol=1e-6)
    skipped = re.findall(r"Skipped ([\d,]+) potential negatives .* due to the (\w+)", printed)
    # Theirs counts positives and what was removed before as below min_score, ours does not.
    counts = {name: n for name, n in mined.removed.items() if n and name != "min_score"}
    theirs_counts = {name: int(n.replace(",", "")) for n, name in skipped}
    assert counts == {name: n for name, n in theirs_counts.items() if name != "min_score"}


def test_the_options_leave_some_out_and_not_all(case):
    rules = [Rules(num_negatives=5, **each) for each in OPTIONS]
    rows = [len(mine_hard_negatives(*case, rules=each).rows) for each in rules]
    assert min(rows) > 0
    assert any(count < 2 * QUERIES for count in rows)


def test_random_negatives_come_from_the_same_candidates(case):
    options = {"num_negatives": 3, "range_min": 2, "range_max": 8, "sampling_strategy": "random"}
    drawn: dict[tuple[str, str], set[str]] = {}
    for seed in range(30):
        for row in mine_hard_negatives(*case, rules=Rules(seed=seed, **options)).rows:
            drawn.setdefault((row.query, row.positive), set()).update(row.negatives)
    options = {"num_negatives": 6, "range_min": 2, "range_max": 8}
    expected = {pair: set(negatives) for pair, (negatives, _) in theirs(case, **options).items()}
    assert drawn == expected
