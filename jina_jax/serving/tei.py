"""The routes of text-embeddings-inference, with ``task`` on top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from jina_jax import __version__
from jina_jax.serving import vectors
from jina_jax.serving.bodies import DecodeBody, EmbedBody, TokenizeBody
from jina_jax.serving.errors import ApiError, invalid
from jina_jax.serving.http import Call, Reply
from jina_jax.serving.jobs import estimate
from jina_jax.serving.service import Wanted

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_BYTES_PER_TOKEN = 768  # of /tokenize: its reply, and Python's objects on the way to it
_BOUNDS = (
    *("max_body", "max_reading", "max_reply", "max_request_tokens", "max_queue_tokens"),
    *("timeout", "read_timeout"),
)
_ROWS = 1000  # tokens per piece


async def embed(call: Call) -> Reply:
    """Return a list of vectors."""
    body: EmbedBody = await call.read(EmbedBody)
    dim = call.service.dimension(body.dimensions)
    job, texts = await _encode(call, body, by_token=False)
    found = await call.service.vectors(job, dim, normalize=body.normalize is not False)
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
    tokens = estimate(len(texts), sum(len(prompt) + len(text) for text in texts))
    call.service.check_tokens(tokens, "inputs", _BYTES_PER_TOKEN)
    pieces = await call.service.beside.do(
        lambda: list(_tokens(model, [prompt + text for text in texts], special)),
        tokens,
        call.receive,
    )
    return call.reply(b"[", pieces, b"]")


async def decode(call: Call) -> Reply:
    """Return the text of each list of token ids."""
    body: DecodeBody = await call.read(DecodeBody)
    rows = _rows_of_ids(body.ids, call.service.settings.max_inputs)
    tokens = sum(map(len, rows.values()))
    call.service.check_tokens(tokens, "ids")
    skip = body.skip_special_tokens is not False
    pieces = await call.service.beside.do(
        lambda: list(_texts(call.service.model, rows, skip)), tokens, call.receive
    )
    return call.reply(b"[", pieces, b"]")


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
            **{name: getattr(settings, name) for name in _BOUNDS},
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


def _tokens(model: JinaEmbeddings, texts: list[str], special: bool) -> Iterator[bytes]:
    """Yield the elements of a list with the tokens of each text, in pieces."""
    tokenizer = model.tokenizer
    first, last = tokenizer.template_sizes if not special else (0, 0)
    for number, text in enumerate(texts):
        ids, spans = tokenizer.encode_with_offsets(
            text, split_special_tokens=model.split_special_tokens
        )
        yield b",[" if number else b"["
        for start in range(first, len(ids) - last, _ROWS):
            part = slice(start, min(start + _ROWS, len(ids) - last))
            rows = [_token(model, *own) for own in zip(ids[part], spans[part], strict=True)]
            yield (b"," if start > first else b"") + orjson.dumps(rows)[1:-1]
        yield b"]"


def _token(model: JinaEmbeddings, token_id: int, span: tuple[int, int]) -> dict[str, Any]:
    start, stop = (None, None) if span == (0, 0) else span
    return {
        "id": token_id,
        "text": model.tokenizer.piece(token_id),
        "special": model.tokenizer.is_special(token_id),
        "start": start,
        "stop": stop,
    }


def _rows_of_ids(ids: list[int | list[int]], most: int) -> dict[str, list[int]]:
    """Return the ids of each text by what the body calls them."""
    rows = [own for own in ids if isinstance(own, list)]
    if not rows:
        return {"ids": [own for own in ids if isinstance(own, int)]}
    if len(rows) < len(ids):
        raise invalid("ids", "expected a list of ids, or a list of such lists")
    if len(rows) > most:
        message = f"ids: expected at most {most} lists, got {len(rows)}"
        raise ApiError(400, message, "ids", "INPUT_TOO_MANY")
    return {f"ids[{number}]": own for number, own in enumerate(rows)}


def _texts(model: JinaEmbeddings, rows: dict[str, list[int]], skip: bool) -> Iterator[bytes]:
    """Yield the elements of a list with the text of each list of ids, in pieces.

    Raises:
      ApiError: 422 for an id that the vocabulary does not have.
    """
    tokenizer, size = model.tokenizer, model.tokenizer.vocab_size
    for number, (field, ids) in enumerate(rows.items()):
        wrong = next((own for own in ids if not 0 <= own < size), None)
        if wrong is not None:
            raise invalid(field, f"expected ids from 0 to {size - 1}, got {wrong}")
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        yield (b"," if number else b"") + orjson.dumps(text)
