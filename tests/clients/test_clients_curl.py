"""The example of curl."""

import json
import subprocess

import pytest
from client_cases import DOCUMENTS, QUERY, assert_equal

pytestmark = pytest.mark.clients


def test_the_example_of_the_docs(example, model):
    done = subprocess.run(["sh", "-c", example("curl")], check=True, capture_output=True)
    found = [row["embedding"] for row in json.loads(done.stdout)["data"]]
    texts, tasks = [QUERY, DOCUMENTS[0]], ["retrieval.query", "retrieval.passage"]
    assert_equal(found, model.encode(texts, task=tasks, truncate_dim=128))
