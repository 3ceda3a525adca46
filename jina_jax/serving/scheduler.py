"""Two threads between the event loop and the device: one tokenises, one computes.

The loop submits jobs and awaits their futures. Texts of all jobs are tokenised together, and wait
as items with their exact lengths. A step is packed when the device can take one, from the items
of all jobs; it is computed by the engine that ``JinaEmbeddings.encode`` uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from jina_jax.runtime.engine import Program, Step
from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.steps import Packer, Part, Sum, results
from jina_jax.serving.errors import ApiError
from jina_jax.serving.jobs import Job
from jina_jax.serving.lanes import Lanes, Unit
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.settings import Settings

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_LOGGER = logging.getLogger("jina_jax.serving")
_CHARACTERS_PER_BLOCK = 1 << 14  # tokenised at once: 8 ms in one thread, for which others wait
_BLOCKS_BESIDE_PROCESSES = 64
_LONGEST_RETRY = 60.0
_POLL = 0.02  # seconds, while programs are compiled
_DEAD = "the device does not answer any more"


class Scheduler:
    """Encodes jobs on a model's devices.

    Args:
      model: whose engine, tokenizer and batching are used.
      settings: bounds of what may wait.
      metrics: counts what happens.
      on_death: called once if the device fails on a text that it must be able to encode.
    """

    def __init__(
        self,
        model: JinaEmbeddings,
        settings: Settings,
        metrics: Metrics,
        on_death: Callable[[], None],
    ):
        self._model, self._engine = model, model.engine
        self._settings, self._metrics, self._on_death = settings, metrics, on_death
        self._packer = Packer(model.engine, model.batching)
        self._loop = asyncio.get_running_loop()
        self._texts, self._items = Lanes(), Lanes()
        self._jobs: set[Job] = set()
        self._arrived: list[Job] = []
        self._waiting_tokens = 0
        self._tokens_per_second = 0.0
        self._last = time.perf_counter()  # when the device had its last result, or was last idle
        self._under_way: deque[Step] = deque()
        self._ready: deque[Step] = deque()  # packed, and their programs are compiled
        self._compiling: dict[Program, list[Step]] = {}
        self._compiling_lock = threading.Lock()
        self._compiler = ThreadPoolExecutor(1, "jina-jax-compile")
        self._stopped, self._reason = False, _DEAD
        # On CPU a step that waits behind another one is only a delay for what comes next.
        self._in_flight = 0 if self._engine.platform == "cpu" else 1
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in (
                (self._tokenize_all, "jina-jax-tokenize"),
                (self._compute_all, "jina-jax-compute"),
            )
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ in the event loop

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
          ApiError: 429 if too much waits already, 503 after ``stop`` or the death of the device.
        """
        if self._stopped:
            raise ApiError(503, self._reason)
        if self._jobs and self._waiting_tokens + job.estimate > self._settings.max_queue_tokens:
            raise ApiError(
                429,
                f"about {self._waiting_tokens} tokens wait already, and this request has about "
                f"{job.estimate}: expected at most {self._settings.max_queue_tokens} together",
                headers={"Retry-After": str(self._retry_after())},
            )
        self._jobs.add(job)
        self._waiting_tokens += job.estimate
        job.future.add_done_callback(lambda _: self._forget(job))
        if not job.requests:
            self._settle([job])
            return
        self._arrived.append(job)
        if len(self._arrived) == 1:
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        """Wake the thread that tokenises, once for all jobs that arrived together."""
        jobs, self._arrived = self._arrived, []
        self._texts.put_all([(_units(job), self._is_large(job), None) for job in jobs])

    def stop(self) -> None:
        """End the threads; what still waits fails with status 503."""
        self._end("the server stops")

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, after ``stop``."""
        for thread in self._threads:
            thread.join(seconds)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of all jobs that have not ended, estimated."""
        return self._waiting_tokens

    def _end(self, reason: str) -> None:
        self._stopped, self._reason = True, reason
        self._texts.close()
        self._items.close()
        for job in list(self._jobs):
            job.fail(ApiError(503, reason))
            job.settle()
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def _forget(self, job: Job) -> None:
        job.drop()
        self._jobs.discard(job)
        self._waiting_tokens -= job.estimate

    def _retry_after(self) -> int:
        """Return the seconds that the device needs for what waits."""
        seconds = self._waiting_tokens / self._tokens_per_second if self._tokens_per_second else 1.0
        return max(1, round(min(seconds, _LONGEST_RETRY)))

    def _is_large(self, job: Job) -> bool:
        return job.bulk or job.estimate > self._packer.budget

    def _settle(self, jobs: list[Job]) -> None:
        """Report the end of jobs; in any thread."""

        def settle() -> None:
            for job in jobs:
                job.settle()

        if jobs:
            self._in_loop(settle)

    def _in_loop(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(call)

    def _fail(self, jobs: Iterable[Job], message: str) -> None:
        """End jobs that cannot be served, through no fault of theirs; in any thread."""
        jobs = list(dict.fromkeys(jobs))
        for job in jobs:
            job.fail(ApiError(500, message))
        self._settle(jobs)

    # ------------------------------------------------------------ in the thread that tokenises

    def _tokenize_all(self) -> None:
        in_processes = self._model.preparation().processes is not None
        blocks = _BLOCKS_BESIDE_PROCESSES if in_processes else 1
        while not self._stopped:
            _, units = self._texts.take(blocks * _CHARACTERS_PER_BLOCK)
            if not units:
                self._texts.wait()
                continue
            try:
                self._settle(self._tokenize(units))
            except Exception as error:  # without this thread, nothing would ever be encoded
                _LOGGER.exception("texts could not be prepared")
                self._fail((unit.job for unit in units), f"texts cannot be prepared: {error}")

    def _tokenize(self, units: list[Unit]) -> list[Job]:
        """Tokenise texts, and let their items wait; return the jobs that failed."""
        start = time.perf_counter()
        preparation = units[0].job.preparation
        requests: list[Request] = [unit.value[1] for unit in units]
        try:
            tokens = preparation.tokenize(requests)
        except Exception as error:
            if len(units) > 1:  # one bad text fails alone
                return [job for unit in units for job in self._tokenize([unit])]
            units[0].job.fail(_refusal(units[0], error))
            return [units[0].job]
        failed: list[Job] = []
        by_job: dict[tuple[Job, Any], list[Unit]] = {}
        for unit, found in zip(units, tokens, strict=True):
            job, (index, request) = unit.job, unit.value
            if job.ended:
                continue
            try:
                parts = self._parts(job, index, request, found)
            except Exception as error:
                job.fail(error if isinstance(error, ApiError) else _refusal(unit, error))
                failed.append(job)
                continue
            kind = (job.pooling, bool(parts[0].item.pieces))
            own = by_job.setdefault((job, kind), [])
            own += [Unit(job, len(part.item.ids), part) for part in parts]
        self._items.put_all(
            [(own, self._is_large(job), kind) for (job, kind), own in by_job.items()]
        )
        self._metrics.tokenize_seconds.observe(time.perf_counter() - start)
        return failed

    def _parts(self, job: Job, index: int, request: Request, tokens: Any) -> list[Part]:
        """Prepare a text.

        Raises:
          ApiError: if it is too long for the model, and may not be cut.
          ValueError: for chunks that are not in the text.
        """
        prepared = job.preparation.prepare(request, tokens)
        most, count = job.preparation.max_length, prepared.tokens + prepared.dropped
        if count > most and (job.whole or (prepared.dropped and not job.truncate)):
            advice = 'long_text="windows" encodes' if job.whole else "truncate=true cuts"
            raise ApiError(
                400,
                f"{job.fields[index]}: expected at most {most} tokens, got {count}; {advice} "
                "longer texts",
                job.fields[index],
                "INPUT_TOO_LONG",
            )
        job.truncated += bool(prepared.dropped)
        return Sum((job, index), prepared).parts

    # ------------------------------------------------------------ in the thread that computes

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
                    self._die()

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
                if self._settings.max_wait and not self._stopped:
                    time.sleep(self._settings.max_wait)
                self._last = time.perf_counter()

    def _pack(self, kind: Any, units: list[Unit]) -> None:
        """Pack texts into steps that are ready, or will be.

        None is left in this thread's hands: a step that fails would take the others with it.
        """
        try:
            steps = [step for step in self._packed(kind, units) if self._is_ready(step)]
            small = [not all(map(self._is_large, _jobs(step.owners))) for step in steps]
            pairs = list(zip(steps, small, strict=True))
            self._ready.extendleft([step for step, is_small in pairs if is_small][::-1])
            self._ready.extend(step for step, is_small in pairs if not is_small)
        except Exception as error:
            _LOGGER.exception("texts could not be packed")
            self._fail((unit.job for unit in units), f"texts cannot be packed: {error}")

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
            self._fail(_jobs(step.owners), f"vectors cannot be delivered: {error}")

    def _deliver(self, step: Step, output: np.ndarray) -> None:
        """Return the vectors of a step to their jobs."""
        ended = []
        for result in results(step, output):
            job, index = result.owner
            if not job.ended and job.add(index, result):
                ended.append(job)
        now = time.perf_counter()
        rate = sum(len(part.item.ids) for part in step.owners) / max(now - self._last, 1e-6)
        self._tokens_per_second = 0.9 * (self._tokens_per_second or rate) + 0.1 * rate
        self._last = now
        self._metrics.steps.inc()
        self._settle(ended)

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
        self._settle(failed)
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

    def _die(self) -> None:
        """Fail what waits, in the event loop: there, nothing can be submitted meanwhile."""
        self._stopped = True

        def end() -> None:
            self._end(_DEAD)
            self._on_death()

        self._in_loop(end)


def _units(job: Job) -> list[Unit]:
    requests = enumerate(job.requests)
    return [Unit(job, len(own.prompt) + len(own.text) + 1, (i, own)) for i, own in requests]


def _jobs(parts: Iterable[Part]) -> Iterator[Job]:
    for part in parts:
        yield part.sum.owner[0]


def _refusal(unit: Unit, error: Exception) -> ApiError:
    """Return the error of a text that cannot be tokenised or divided into its chunks."""
    field = unit.job.fields[unit.value[0]]
    if isinstance(error, ValueError):
        return ApiError(422, f"{field}: {str(error).partition(': ')[2] or error}", field)
    return ApiError(500, f"{field}: cannot be tokenised: {error}", field)
