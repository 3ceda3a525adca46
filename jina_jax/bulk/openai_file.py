"""A file of requests in OpenAI's batch format, answered on this machine."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from jina_jax.bulk.openai_batch import (
    BadRequest,
    BatchRequest,
    Rules,
    read_batch,
    write_bad,
    write_batch,
)
from jina_jax.data.lines import Line, read_lines
from jina_jax.files import new_output

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_LINES = 1024  # that are encoded together


class Answered(NamedTuple):
    """Numbers of requests: answered, and wrong."""

    good: int
    bad: int


def answer_file(
    model: JinaEmbeddings,
    source: BinaryIO,
    output: Path,
    errors: Path,
    rules: Rules,
    *,
    long_text: str = "error",
    force: bool = False,
) -> Answered:
    """Answer all requests of a file.

    Args:
      model: encodes their texts.
      source: the requests, one per line.
      output: new file for the answers, in the order of the requests.
      errors: new file for the errors of wrong requests; there only if there are any.
      rules: what requests may ask for.
      long_text: "error" for texts above the model's ``max_seq_length``, or as for ``encode``.
      force: replace existing files.

    Returns:
      How many there were.

    Raises:
      FileExistsError: if a file exists and ``force`` is not given.
    """
    good, bad = 0, list[bytes]()
    if errors.exists() and not force:
        raise FileExistsError(f"{errors}: exists already; --force overwrites it")
    with new_output(output, force=force) as file:
        for line in _answers(model, source, rules, long_text):
            if isinstance(line, BadRequest):
                bad.append(write_bad(line))
            else:
                file.write(line)
                good += 1
        errors.unlink(missing_ok=True)
        if bad:
            with new_output(errors, force=force) as other:
                other.writelines(bad)
    return Answered(good, len(bad))


def _answers(
    model: JinaEmbeddings, source: BinaryIO, rules: Rules, long_text: str
) -> Iterator[bytes | BadRequest]:
    """Yield the lines of answers, and wrong requests, a block of lines at a time."""
    lines, seen = read_lines(source), set[str]()
    while block := list(itertools.islice(lines, _LINES)):
        readable = [(line.number, line.text) for line in block if not line.reason]
        requests, bad = read_batch(readable, rules, seen)
        yield from (_unreadable(line) for line in block if line.reason)
        yield from bad
        yield from _encoded(model, requests, long_text)


def _encoded(
    model: JinaEmbeddings, requests: list[BatchRequest], long_text: str
) -> Iterator[bytes | BadRequest]:
    texts = [text for request in requests for text in request.texts]
    with warnings.catch_warnings():
        if long_text == "error":  # texts that are cut are errors, and no warnings
            warnings.simplefilter("ignore", UserWarning)
        vectors, info = model.encode(
            texts,
            task=[request.task for request in requests for _ in request.texts],
            long_text="truncate" if long_text == "error" else long_text,
            normalize_embeddings=False,
            return_info=True,
        )
    start = 0
    for request in requests:
        own = slice(start, start + len(request.texts))
        start = own.stop
        if long_text == "error" and info.dropped[own].any():
            yield _too_long(request, model.max_seq_length)
            continue
        normalize = model.config.normalize
        yield write_batch(request, vectors[own], int(info.tokens[own].sum()), normalize=normalize)


def _unreadable(line: Line) -> BadRequest:
    return BadRequest(line.number, None, "invalid_json_line", line.reason)


def _too_long(request: BatchRequest, most: int) -> BadRequest:
    message = f"body.input: expected at most {most} tokens per text, got more"
    return BadRequest(request.row, request.custom_id, "context_length_exceeded", message)
