"""Work beside the device: a thread for tokens and texts that nobody wants encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jina_jax.serving.errors import left_error, time_error
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.scheduler import Scheduler

_Value = TypeVar("_Value")


class Beside:
    """Does work in one thread, in the order of arrival; what waits counts as waiting tokens.

    Args:
      scheduler: admits tokens.
      timeout: seconds that work may take, the time that it waits included.
      metrics: counts the requests that nobody waits for any more.
    """

    def __init__(self, scheduler: Scheduler, timeout: float, metrics: Metrics):
        self._scheduler, self._timeout, self._metrics = scheduler, timeout, metrics
        self._executor = ThreadPoolExecutor(1, "jina-jax-beside")

    async def do(self, work: Callable[[], _Value], tokens: int, receive: Any) -> _Value:
        """Return the result of work.

        Args:
          work: is dropped if the client leaves, or its time is over, before it begins.
          tokens: that it is about.
          receive: of ASGI, after the body was read.

        Raises:
          ApiError: 429 if too much waits already, 499 if the client left, 504 if it takes too long.
        """
        with self._scheduler.admitted(tokens):
            done = asyncio.get_running_loop().run_in_executor(self._executor, work)
            left = asyncio.ensure_future(receive())
            try:
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait({done, left}, timeout=self._timeout, return_when=first)
                if done.done():
                    return done.result()
                has_left = left.done()
            finally:
                done.cancel()
                left.cancel()
            self._metrics.dropped.labels("disconnect" if has_left else "timeout").inc()
            raise left_error() if has_left else time_error(self._timeout)
