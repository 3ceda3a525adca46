"""A model for the tests with libraries of others."""

import os

import pytest

from jina_jax import JinaEmbeddings


@pytest.fixture(scope="session", autouse=True)
def no_network() -> None:
    """Keep libraries from reporting their use."""
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    os.environ["ANONYMIZED_TELEMETRY"] = "False"


@pytest.fixture(scope="session")
def model() -> JinaEmbeddings:
    return JinaEmbeddings.from_pretrained("tiny")
