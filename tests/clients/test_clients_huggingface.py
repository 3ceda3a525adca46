"""InferenceClient of the package huggingface_hub."""

import asyncio

import huggingface_hub
import pytest
from client_cases import DOCUMENTS, KEY, QUERY, UNKNOWN_KEY, assert_equal, numbered

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """Let it send requests: all other tests keep it from doing so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(params=["", "/embed"])
def client(server, request):
    return huggingface_hub.InferenceClient(model=server.url + request.param, token=KEY)


def test_the_example_of_the_docs(check_example):
    check_example("huggingface_hub")


def test_a_text_and_several(client, model):
    assert_equal(client.feature_extraction(QUERY), model.encode([QUERY]))
    assert_equal(client.feature_extraction(DOCUMENTS), model.encode(DOCUMENTS))


def test_options(client, model):
    own = {"truncate": True, "truncation_direction": "right"}
    found = client.feature_extraction(DOCUMENTS, normalize=False, dimensions=64, **own)
    expected = model.encode(DOCUMENTS, normalize_embeddings=False, truncate_dim=64)
    assert_equal(found, expected)


def test_many_texts(client, model):
    texts = numbered(100)
    assert_equal(client.feature_extraction(texts), model.encode(texts))


def test_async(server, model):
    client = huggingface_hub.AsyncInferenceClient(model=server.url, token=KEY)
    found = asyncio.run(client.feature_extraction(DOCUMENTS, prompt_name="separation"))
    assert_equal(found, model.encode(DOCUMENTS, task="separation"))


def test_errors(client, server):
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match=r"prompt_name: .*summary"):
        client.feature_extraction(QUERY, prompt_name="summary")
    with pytest.raises(HfHubHTTPError, match=r"inputs\[0\]: expected at most 8192 tokens, got"):
        client.feature_extraction("passport " * 9000)
    stranger = huggingface_hub.InferenceClient(model=server.url, token="wrong")
    with pytest.raises(HfHubHTTPError, match=UNKNOWN_KEY):
        stranger.feature_extraction(QUERY)
