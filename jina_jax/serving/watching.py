"""Jobs whose clients left, or whose time is over: they end before they are computed."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

from jina_jax.serving.errors import ApiError, left_error, time_error
from jina_jax.serving.jobs import Job
from jina_jax.serving.metrics import Metrics

_SECONDS = 0.1


class Watcher:
    """Looks after jobs that take long; most end before that, and cost nothing.

    Args:
      timeout: seconds that a job may take.
      metrics: counts the jobs that end so.
    """

    def __init__(self, timeout: float, metrics: Metrics):
        self._timeout, self._metrics = timeout, metrics
        self._watched: dict[Job, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, job: Job, receive: Any) -> None:
        """Look after a job until ``forget``; ``receive`` is that of ASGI, after the body."""
        self._watched[job] = receive
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    def forget(self, job: Job) -> None:
        """Look after a job no longer."""
        self._watched.pop(job, None)

    async def _watch(self) -> None:
        leaving: dict[Job, asyncio.Task[Any]] = {}
        try:
            while self._watched:
                await asyncio.sleep(_SECONDS)
                now = time.perf_counter()
                for job in [own for own in leaving if own not in self._watched]:
                    leaving.pop(job).cancel()
                for job, receive in self._watched.items():
                    if now - job.arrival > self._timeout:
                        self._give_up(job, "timeout", time_error(self._timeout))
                    elif job not in leaving and now - job.arrival > _SECONDS:
                        leaving[job] = task = asyncio.ensure_future(receive())
                        task.add_done_callback(functools.partial(self._left, job))
        finally:
            self._task = None
            for task in leaving.values():
                task.cancel()

    def _left(self, job: Job, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and not job.future.done():
            self._give_up(job, "disconnect", left_error())

    def _give_up(self, job: Job, reason: str, error: ApiError) -> None:
        self._metrics.dropped.labels(reason).inc()
        job.fail(error)
        job.settle()
