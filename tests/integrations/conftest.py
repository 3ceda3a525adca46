"""A model for libraries of others, and texts."""

import os

import pytest

from jina_jax import JinaEmbeddings

DOCUMENTS = [
    "The town hall opens at nine on weekdays.",
    "Trains to the coast leave every half hour.",
    "Fresh bread is sold in the bakery by the church.",
    "The museum shows paintings of the nineteenth century.",
]
QUERY = "Where can I buy bread?"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> None:
    """Keep libraries from reporting their use."""
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    os.environ["ANONYMIZED_TELEMETRY"] = "False"


@pytest.fixture(scope="session")
def model() -> JinaEmbeddings:
    return JinaEmbeddings.from_pretrained("tiny")
