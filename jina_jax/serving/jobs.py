"""Jobs: what a request wants encoded, until it has its vectors or an error."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.steps import Result
from jina_jax.serving.errors import ApiError

_CHARACTERS_PER_TOKEN = 3  # of languages that take many tokens; a text has at least two tokens


def estimate(texts: int, characters: int) -> int:
    """Return about how many tokens a number of texts have together."""
    return 2 * texts + characters // _CHARACTERS_PER_TOKEN


@dataclasses.dataclass(eq=False)
class Job:
    """Texts of one request.

    Attributes:
      requests: one per text.
      preparation: how they become items.
      pooling: as for ``jina_jax.nn.pooling.pool``; None for the vectors of all tokens.
      fields: what the request calls each text, for errors.
      truncate: cut texts of more than ``max_length`` tokens, instead of refusing them.
      bulk: let others pass, however small it is.
      whole: refuse what does not fit ``max_length``, instead of encoding it in windows.
      results: vectors of each text, once they are there.
      estimate: its tokens, before they are counted.
      arrival: seconds of ``time.perf_counter``.
    """

    requests: Sequence[Request]
    preparation: Preparation
    pooling: str | None
    fields: Sequence[str]
    truncate: bool = False
    bulk: bool = False
    whole: bool = False
    results: list[Result | None] = dataclasses.field(default_factory=list)
    arrival: float = dataclasses.field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.results = [None] * len(self.requests)
        self.missing = len(self.requests)
        self.error: ApiError | None = None
        self.ended = False
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        characters = sum(len(own.prompt) + len(own.text) for own in self.requests)
        self.estimate = estimate(len(self.requests), characters)

    @property
    def tokens(self) -> int:
        """Its tokens, prompts, ``<s>`` and ``</s>`` included, once it has its vectors."""
        return sum(own.prepared.tokens for own in self.results if own is not None)

    @property
    def truncated(self) -> int:
        """Its texts that were cut, once it has its vectors."""
        return sum(own.prepared.dropped > 0 for own in self.results if own is not None)

    def add(self, index: int, result: Result) -> bool:
        """Take the vectors of a text; return whether they were the last ones."""
        vectors = result.vectors
        if not np.isfinite(vectors).all():
            self.fail(ApiError(500, f"{self.fields[index]}: its vector is not finite"))
            return True
        self.results[index] = result._replace(vectors=vectors.copy())
        self.missing -= 1
        self.ended = self.ended or not self.missing
        return not self.missing

    def fail(self, error: ApiError) -> None:
        """End it with an error; texts of it that still wait are dropped."""
        if not self.ended:
            self.error, self.ended = error, True

    def drop(self) -> None:
        """End it, as nobody waits for it any more."""
        self.ended = True

    def settle(self) -> None:
        """Report its end to who waits for it; in the event loop."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self.error)
            self.future.exception()  # whoever waited for it may have left
