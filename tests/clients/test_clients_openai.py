"""The package openai."""

import asyncio
from typing import Any

import numpy as np
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

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture
def client(server):
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        yield client


def vectors(client: Any, texts: Any, **options: Any) -> list[Any]:
    reply = client.embeddings.create(model=NAME, input=texts, **options)
    assert [row.index for row in reply.data] == list(range(len(reply.data)))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    return [row.embedding for row in reply.data]


def test_the_example_of_the_docs(check_example):
    check_example("openai")


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_base64_and_float(client, model, options):
    assert_equal(vectors(client, DOCUMENTS, **options), model.encode(DOCUMENTS))
    assert_equal(vectors(client, QUERY, **options), model.encode([QUERY]))


def test_base64_as_it_is_sent(client, model):
    (found,) = vectors(client, [QUERY], encoding_format="base64")
    assert isinstance(found, str)
    reply = client.embeddings.with_raw_response.create(
        model=NAME, input=[QUERY], encoding_format="base64"
    )
    assert reply.headers["x-request-id"]


def test_async(server, model):
    from openai import AsyncOpenAI

    async def embed():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            replies = await asyncio.gather(
                *(client.embeddings.create(model=NAME, input=text) for text in DOCUMENTS)
            )
        return [reply.data[0].embedding for reply in replies]

    expected = [model.encode(text) for text in DOCUMENTS]
    np.testing.assert_allclose(asyncio.run(embed()), expected, rtol=0, atol=1e-6)


def test_dimensions(client, model):
    found = vectors(client, DOCUMENTS, dimensions=64)
    assert_equal(found, model.encode(DOCUMENTS, truncate_dim=64))


def test_a_task_per_text(client, model):
    tasks = ["separation", None]
    found = vectors(client, DOCUMENTS, extra_body={"task": tasks})
    assert_equal(found, model.encode(DOCUMENTS, task=tasks))


def test_late_chunking(client, model):
    body = {"late_chunking": True, "task": "retrieval.passage"}
    found = vectors(client, DOCUMENTS, extra_body=body)
    assert_equal(found, chunk_vectors(model, DOCUMENTS, task="retrieval.passage"))


@pytest.mark.parametrize("field", ["encoding_format", "embedding_type"])
@pytest.mark.parametrize(("kind", "added"), [("ubinary", 0), ("binary", 128)])
def test_bits(client, model, field, kind, added):
    found = vectors(client, DOCUMENTS, extra_body={field: kind})
    bits = np.packbits(model.encode(DOCUMENTS) > 0, axis=-1)
    np.testing.assert_array_equal(np.asarray(found) + added, bits)


def test_many_texts(client, model):
    texts = numbered(2048)
    np.testing.assert_allclose(vectors(client, texts), model.encode(texts), rtol=0, atol=1e-6)


def test_models(client):
    names = [own.id for own in client.models.list()]
    assert {NAME, f"{NAME}/retrieval.query"} <= set(names)
    assert client.models.retrieve(NAME).id == NAME


def test_errors(client, server):
    import openai

    with pytest.raises(openai.UnprocessableEntityError, match=UNKNOWN_TASK) as caught:
        vectors(client, QUERY, extra_body={"task": "summary"})
    assert caught.value.param == "task"
    with pytest.raises(openai.BadRequestError, match="input: expected at most 2048 texts"):
        vectors(client, numbered(2049))
    with pytest.raises(openai.BadRequestError, match="model: expected one of jina-embeddings-v3,"):
        client.embeddings.create(model="text-embedding-3-small", input=QUERY)
    with pytest.raises(openai.UnprocessableEntityError, match="token ids"):
        vectors(client, [[1, 2, 3]])
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match=UNKNOWN_KEY):
        vectors(stranger, QUERY)
