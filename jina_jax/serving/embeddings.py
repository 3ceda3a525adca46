"""POST /v1/embeddings: Jina's Embedding API and OpenAI's, in one route."""

from __future__ import annotations

from typing import Any

import orjson

from jina_jax.serving import vectors
from jina_jax.serving.bodies import EMBEDDING_TYPES, EmbeddingsBody
from jina_jax.serving.errors import invalid
from jina_jax.serving.http import Call, Reply
from jina_jax.serving.service import Wanted


async def embeddings(call: Call) -> Reply:
    """Return a vector for each text of ``input``."""
    body: EmbeddingsBody = await call.read(EmbeddingsBody)
    service = call.service
    name, task = service.pick_model(body.model)
    texts = service.texts(body.input, "input")
    kinds, several = pick_kinds(body)
    if body.encoding_format not in (None, *kinds):
        call.ignore("encoding_format")
    dim = service.dimension(body.dimensions)
    task, prompt_name = service.pick_prompt(pick_task(body, task), body.prompt_name)
    wanted = Wanted(
        task=task,
        prompt_name=prompt_name,
        truncate=bool(body.truncate) or body.long_text == "truncate",
        windows=body.long_text == "windows",
        late_chunking=bool(body.late_chunking),
        bulk=call.is_bulk,
    )
    job = await service.encode(texts, wanted, call.receive)
    found = await service.vectors(job, dim, normalize=body.normalized is not False)
    usage = {"total_tokens": job.tokens, "prompt_tokens": job.tokens}
    head = {"model": name, "object": "list", "usage": usage}
    call.count(texts=len(texts), tokens=job.tokens, truncated=job.truncated)
    return call.reply(
        orjson.dumps(head)[:-1] + b',"data":[', vectors.data(found, kinds, several), b"]}"
    )


def pick_task(body: EmbeddingsBody, named: str | None) -> Any:
    """Return the task: of the body, or of the model's name.

    Raises:
      ApiError: 422 if body and name differ.
    """
    if body.task is None:
        return named
    if named is not None and body.task != named:
        raise invalid("task", f"expected {named!r}, as in the model's name; got {body.task!r}")
    return body.task


def pick_kinds(body: EmbeddingsBody) -> tuple[list[str], bool]:
    """Return the kinds of embeddings, and whether each is an object by kind.

    Jina's fields precede ``encoding_format``: OpenAI's client sends that one unasked.

    Raises:
      ApiError: 422 if the fields that name them differ, or name none.
    """
    names = ("embedding_type", "encoding_type")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    if not given:
        return [body.encoding_format or "float"], False
    (name, chosen), *others = given.items()
    for other, value in others:
        if value != chosen:
            raise invalid(other, f"expected {chosen!r}, as {name} says; got {value!r}")
    if isinstance(chosen, str):
        return [chosen], False
    if not chosen:
        raise invalid(name, f"expected one of {', '.join(EMBEDDING_TYPES)}, got an empty list")
    kinds = list(dict.fromkeys(chosen))
    return kinds, len(kinds) > 1
