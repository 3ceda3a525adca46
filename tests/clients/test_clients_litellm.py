"""The provider jina_ai of the package litellm."""

import asyncio

import pytest
from client_cases import (
    DOCUMENTS,
    KEY,
    NAME,
    QUERY,
    UNKNOWN_KEY,
    UNKNOWN_TASK,
    assert_equal,
    chunk_vectors,
    numbered,
)

pytestmark = [pytest.mark.clients_slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def options(server):
    return {"model": f"jina_ai/{NAME}", "api_base": f"{server.url}/v1", "api_key": KEY}


def vectors(reply):
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    return [row["embedding"] for row in reply.data]


def test_the_example_of_the_docs(check_example):
    check_example("litellm")


def test_fields(options, model):
    import litellm

    found = litellm.embedding(**options, input=DOCUMENTS, dimensions=64, task="separation")
    assert_equal(vectors(found), model.encode(DOCUMENTS, task="separation", truncate_dim=64))
    found = litellm.embedding(**options, input=QUERY)
    assert_equal(vectors(found), model.encode([QUERY]))


def test_late_chunking(options, model):
    import litellm

    found = litellm.embedding(
        **options, input=DOCUMENTS, late_chunking=True, task="retrieval.passage"
    )
    expected = chunk_vectors(model, DOCUMENTS, task="retrieval.passage")
    assert_equal(vectors(found), expected)


def test_async(options, model):
    import litellm

    texts = numbered(100)
    found = asyncio.run(litellm.aembedding(**options, input=texts))
    assert_equal(vectors(found), model.encode(texts))


def test_openai_provider(options, model):
    import litellm

    own = options | {"model": f"openai/{NAME}/retrieval.query"}
    found = litellm.embedding(**own, input=[QUERY], encoding_format="float")
    assert_equal(vectors(found), model.encode([QUERY], task="retrieval.query"))


def test_errors(options):
    import litellm

    with pytest.raises(litellm.BadRequestError, match=UNKNOWN_TASK):
        litellm.embedding(**options, input=QUERY, task="summary")
    with pytest.raises(litellm.AuthenticationError, match=UNKNOWN_KEY):
        litellm.embedding(**options | {"api_key": "wrong"}, input=QUERY)
