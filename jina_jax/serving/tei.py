"""The routes of text-embeddings-inference, with ``task`` on top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jina_jax import __version__
from jina_jax.serving import vectors
from jina_jax.serving.bodies import DecodeBody, EmbedBody, TokenizeBody
from jina_jax.serving.errors import invalid
from jina_jax.serving.http import Call, Reply
from jina_jax.serving.service import Wanted


async def embed(call: Call) -> Reply:
    """Return a list of vectors."""
    body: EmbedBody = await call.read(EmbedBody)
    dim = call.service.dimension(body.dimensions)
    job, texts = await _encode(call, body, by_token=False)
    found = call.service.vectors(job, dim, normalize=body.normalize is not False)
    call.count(texts=len(texts), tokens=job.tokens, truncated=job.truncated)
    return call.reply(b"[", vectors.rows(found), b"]")


async def embed_all(call: Call) -> Reply:
    """Return the vectors of all tokens of each text, never normalised."""
    body: EmbedBody = await call.read(EmbedBody)
    if body.normalize:
        raise invalid("normalize", "expected false: vectors of tokens are never normalised")
    if call.service.model.config.dense and body.dimensions is not None:
        raise invalid("dimensions", "expected none for a model with Dense modules")
    dim = None if body.dimensions is None else call.service.dimension(body.dimensions)
    job, texts = await _encode(call, body, by_token=True)
    call.count(texts=len(texts), tokens=job.tokens, truncated=job.truncated)
    found = [own.vectors[:, :dim] for own in job.results if own is not None]
    return call.reply(b"[", _nested(found), b"]")


async def tokenize(call: Call) -> Reply:
    """Return the tokens of each text: id, text, whether special, and its characters."""
    body: TokenizeBody = await call.read(TokenizeBody)
    texts = call.service.texts(body.inputs, "inputs")
    model, special = call.service.model, body.add_special_tokens is not False
    prompt = ""
    if body.prompt_name is not None:
        try:
            prompt = model.config.named_prompt(body.prompt_name)
        except ValueError as error:
            raise invalid("prompt_name", str(error).partition(": ")[2]) from None
    found = await call.service.in_thread(
        lambda: [_tokens(model, prompt + t, special) for t in texts]
    )
    return call.json(found)


async def decode(call: Call) -> Reply:
    """Return the text of each list of token ids."""
    body: DecodeBody = await call.read(DecodeBody)
    is_nested = [isinstance(own, list) for own in body.ids]
    if any(is_nested) and not all(is_nested):
        raise invalid("ids", "expected a list of ids, or a list of such lists")
    rows: list[Any] = body.ids if any(is_nested) else [body.ids]
    tokenizer = call.service.model.tokenizer
    for number, row in enumerate(rows):
        for own in row:
            if not 0 <= own < tokenizer.vocab_size:
                message = f"expected ids from 0 to {tokenizer.vocab_size - 1}, got {own}"
                raise invalid(f"ids[{number}]", message)
    skip = body.skip_special_tokens is not False
    found = await call.service.in_thread(
        lambda: [tokenizer.decode(row, skip_special_tokens=skip) for row in rows]
    )
    return call.json(found)


async def info(call: Call) -> Reply:
    """Return the model and the server's bounds."""
    service = call.service
    model, settings = service.model, service.settings
    return call.json(
        {
            "model_id": settings.served_names[0],
            "model_sha": None,
            "model_dtype": model.engine.dtype,
            "model_type": {"embedding": {"pooling": model.config.emb_pooler}},
            "tasks": list(model.config.lora_adaptations),
            "dimension": model.config.embedding_dim(None),
            "max_input_length": model.max_seq_length,
            "max_client_batch_size": settings.max_inputs,
            "max_batch_tokens": model.batching.token_budget * model.engine.row_multiple,
            "max_concurrent_requests": None,
            "max_queue_tokens": settings.max_queue_tokens,
            "auto_truncate": False,
            "device": model.engine.platform,
            "version": __version__,
        }
    )


async def _encode(call: Call, body: EmbedBody, *, by_token: bool) -> tuple[Any, list[str]]:
    direction = (body.truncation_direction or "right").lower()
    if direction != "right":
        raise invalid("truncation_direction", "expected 'Right': texts are cut at their ends")
    texts = call.service.texts(body.inputs, "inputs")
    task, prompt_name = call.service.pick_prompt(body.task, body.prompt_name)
    wanted = Wanted(
        task=task,
        prompt_name=prompt_name,
        truncate=bool(body.truncate),
        by_token=by_token,
        bulk=call.is_bulk,
        field="inputs",
    )
    return await call.service.encode(texts, wanted, call.receive), texts


def _nested(found: list[np.ndarray]) -> Iterator[bytes]:
    for number, own in enumerate(found):
        yield b",[" if number else b"["
        yield from vectors.rows(own)
        yield b"]"


def _tokens(model: Any, text: str, special: bool) -> list[dict[str, Any]]:
    tokenizer = model.tokenizer
    ids, spans = tokenizer.encode_with_offsets(
        text, split_special_tokens=model.split_special_tokens
    )
    rows = [
        {
            "id": own,
            "text": tokenizer.piece(own),
            "special": tokenizer.is_special(own),
            "start": None if span == (0, 0) else span[0],
            "stop": None if span == (0, 0) else span[1],
        }
        for own, span in zip(ids, spans, strict=True)
    ]
    first, last = tokenizer.template_sizes
    return rows if special else rows[first : len(rows) - last]
