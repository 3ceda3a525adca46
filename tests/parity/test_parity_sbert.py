"""Models that sentence-transformers wrote, read by us, and ours read by it through its own call."""

import pytest
from peers import PARITY
from sbert_cases import CASES, compare

pytestmark = PARITY


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sbert")


@pytest.mark.parametrize("name", CASES)
def test_every_option_of_its_files_gives_its_vectors(root, name):
    (root / name.replace(" ", "_")).mkdir()
    rows = list(compare(name, root / name.replace(" ", "_")))
    assert len(rows) == 3
    for row in rows:
        print(f"{row.what}: {row.ours} and {row.theirs}: {row.difference:.1e}")
        assert row.difference < 2e-6, row
