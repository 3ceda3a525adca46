"""The thread that computes: it packs a step when the device can take one.

Steps are packed from what waits, and run by the engine that ``JinaEmbeddings.encode`` uses. One
whose program is not compiled waits aside until another thread has compiled it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jina_jax.runtime.engine import Program, Step
from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.steps import Packer, Part, Sum, results
from jina_jax.serving.errors import ApiError
from jina_jax.serving.jobs import Job
from jina_jax.serving.lanes import Lanes, Unit, is_large
from jina_jax.serving.metrics import Metrics

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_LOGGER = logging.getLogger("jina_jax.serving")
_POLL = 0.02  # seconds, while programs are compiled


class Reports(Protocol):
    """What the thread reports, and to whom; called in it."""

    def settle(self, jobs: list[Job]) -> None:
        """Take jobs that have ended."""

    def fail(self, jobs: Iterable[Job], message: str) -> None:
        """End jobs that cannot be served, through no fault of theirs."""

    def die(self) -> None:
        """Take that the device fails on a text that it must be able to encode."""


class Device:
    """Computes items on a model's devices, in a thread.

    Args:
      model: whose engine and batching are used.
      items: what waits.
      max_wait: seconds that a step waits for more texts than there are.
      metrics: counts what happens.
      reports: takes the ends of jobs.
    """

    def __init__(
        self,
        model: JinaEmbeddings,
        items: Lanes,
        max_wait: float,
        metrics: Metrics,
        reports: Reports,
    ):
        self._model, self._engine, self._items = model, model.engine, items
        self._max_wait, self._metrics, self._reports = max_wait, metrics, reports
        self._packer = Packer(model.engine, model.batching)
        self._last = time.perf_counter()  # when the device had its last result, or was last idle
        self._under_way: deque[Step] = deque()
        self._ready: deque[Step] = deque()  # packed, and their programs are compiled
        self._compiling: dict[Program, list[Step]] = {}
        self._compiling_lock = threading.Lock()
        self._compiler = ThreadPoolExecutor(1, "jina-jax-compile")
        self._stopped = False
        # On CPU a step that waits behind another one is only a delay for what comes next.
        self._in_flight = 0 if self._engine.platform == "cpu" else 1
        self.tokens_per_second = 0.0
        self.thread = threading.Thread(
            target=self._compute_all, name="jina-jax-compute", daemon=True
        )
        self.thread.start()

    @property
    def budget(self) -> int:
        """Tokens of a full step, padding included."""
        return self._packer.budget

    @property
    def seconds_under_way(self) -> float:
        """Seconds since the last result, while others are expected; else 0."""
        return time.perf_counter() - self._last if self._under_way else 0.0

    def stop(self) -> None:
        """End the thread after the steps that are under way."""
        self._stopped = True
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def _compute_all(self) -> None:
        while not self._stopped:
            try:
                for step, output in self._engine.run(self._steps(), self._in_flight):
                    self._under_way.popleft()
                    self._deliver_or_fail(step, output)
            except Exception as error:
                _LOGGER.error("a step failed, its texts are tried one by one: %s", error)
                self._metrics.failed_steps.inc()
                if not self._retry():
                    self._stopped = True
                    self._reports.die()

    def _steps(self) -> Iterator[Step | None]:
        """Yield a step whenever the engine can take one; None when nothing waits for now."""
        may_pass = True  # whether small jobs may pass steps that are packed; not twice in a row
        while not self._stopped:
            if self._ready and not (may_pass and self._items.small_waits()):
                step, may_pass = self._ready.popleft(), True
                if not all(job.ended for job in _jobs(step.owners)):
                    self._under_way.append(step)
                    yield step
                continue
            passing = bool(self._ready)
            kind, units = self._items.take(self._packer.budget, small_only=passing)
            if units:
                self._pack(kind, units)
                may_pass = not passing
            elif self._under_way:
                yield None
            else:
                self._items.wait(_POLL if self._compiling or self._ready else None)
                if self._max_wait and not self._stopped:
                    time.sleep(self._max_wait)
                self._last = time.perf_counter()

    def _pack(self, kind: Any, units: list[Unit]) -> None:
        """Pack texts into steps that are ready, or will be.

        None is left in this thread's hands: a step that fails would take the others with it.
        """
        try:
            steps = [step for step in self._packed(kind, units) if self._is_ready(step)]
            small: list[Step] = []
            for step in steps:
                (small if self._has_small(step) else self._ready).append(step)
            self._ready.extendleft(reversed(small))
        except Exception as error:
            _LOGGER.exception("texts could not be packed")
            self._reports.fail((unit.job for unit in units), f"texts cannot be packed: {error}")

    def _has_small(self, step: Step) -> bool:
        return not all(is_large(job, self.budget) for job in _jobs(step.owners))

    def _packed(self, kind: Any, units: list[Unit]) -> Iterator[Step]:
        now = time.perf_counter()
        self._metrics.wait_seconds.observe(now - min(unit.job.arrival for unit in units))
        pooling, _ = kind
        used, computed = self._packer.used, self._packer.computed
        yield from self._packer.steps([unit.value for unit in units], pooling)
        self._metrics.tokens.inc(self._packer.used - used)
        self._metrics.positions.inc(self._packer.computed - computed)

    def _is_ready(self, step: Step) -> bool:
        """Return whether a step can be run now; if not, it comes back when it is compiled."""
        program = step.program
        with self._compiling_lock:
            if self._engine.is_compiled(program):
                return True
            waiting = self._compiling.setdefault(program, [])
            waiting.append(step)
        if len(waiting) == 1:
            self._compiler.submit(self._compile, program)
        return False

    def _compile(self, program: Program) -> None:
        """Compile a program, in a thread of its own; steps that fail there fail again when run."""
        _LOGGER.info("compiling %s", program)
        try:
            self._engine.compile([program], threads=1)
        except Exception as error:
            _LOGGER.error("%s cannot be compiled: %s", program, error)
        with self._compiling_lock:
            self._ready.extend(self._compiling.pop(program))
        self._items.notify()

    def _deliver_or_fail(self, step: Step, output: np.ndarray) -> None:
        """Return the vectors of a step; if that fails, so do its jobs, as some have theirs."""
        try:
            self._deliver(step, output)
        except Exception as error:
            _LOGGER.exception("vectors could not be delivered")
            self._reports.fail(_jobs(step.owners), f"vectors cannot be delivered: {error}")

    def _deliver(self, step: Step, output: np.ndarray) -> None:
        """Return the vectors of a step to their jobs."""
        ended = []
        for result in results(step, output):
            job, index = result.owner
            if not job.ended and job.add(index, result):
                ended.append(job)
        now = time.perf_counter()
        rate = sum(len(part.item.ids) for part in step.owners) / max(now - self._last, 1e-6)
        self.tokens_per_second = 0.9 * (self.tokens_per_second or rate) + 0.1 * rate
        self._last = now
        self._metrics.steps.inc()
        self._reports.settle(ended)

    def _retry(self) -> bool:
        """Run the parts of failed steps one by one; return whether the device is alive.

        A part that fails alone ends its job.
        """
        steps, failed = list(self._under_way), []
        self._under_way.clear()
        for step in steps:
            for part in step.owners:
                job, _ = part.sum.owner
                if job.ended:
                    continue
                try:
                    for single in self._packer.steps([part], step.pooling):
                        ((_, output),) = self._engine.run([single])
                        self._deliver(single, output)
                except Exception as error:
                    job.fail(ApiError(500, f"its texts cannot be computed: {error}"))
                    failed.append(job)
        self._reports.settle(failed)
        return not failed or self._is_alive()

    def _is_alive(self) -> bool:
        """Return whether the device still encodes a text of two tokens."""
        tokenizer = self._model.tokenizer
        prepared = Preparation(tokenizer, False, 2, None)([Request("")])[0]
        try:
            parts = Sum(None, prepared).parts
            for step in self._packer.steps(parts, self._model.config.emb_pooler):
                list(self._engine.run([step]))
        except Exception as error:
            _LOGGER.error("the device is dead: %s", error)
            return False
        return True


def _jobs(parts: Iterable[Part]) -> Iterator[Job]:
    for part in parts:
        yield part.sum.owner[0]
