"""Jobs from the event loop to the device: admitted, tokenised together, and ended.

The loop submits jobs and awaits their futures. Two threads tokenise their texts, one of them those
of more characters than a block, for which others do not wait. The texts then wait as items with
their exact lengths for the thread of ``jina_jax.serving.device``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jina_jax.runtime.requests import Request
from jina_jax.runtime.steps import Part, Sum
from jina_jax.serving.device import Device
from jina_jax.serving.errors import ApiError
from jina_jax.serving.jobs import Job
from jina_jax.serving.lanes import Lanes, Unit, is_large
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.settings import Settings

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_LOGGER = logging.getLogger("jina_jax.serving")
_CHARACTERS_PER_BLOCK = 1 << 14  # tokenised at once: 8 ms in one thread, for which others wait
_BLOCKS_BESIDE_PROCESSES = 64
_TIMES_WITH_CHUNKS = 8  # what a character takes, at least, where those of each token are asked for
_LONGEST_RETRY = 60.0
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
        self._model, self._settings = model, settings
        self._metrics, self._on_death = metrics, on_death
        self._loop = asyncio.get_running_loop()
        self._texts, self._long_texts, self._items = Lanes(), Lanes(), Lanes()
        self._jobs: set[Job] = set()
        self._arrived: list[Job] = []
        self._waiting_tokens = 0
        self._stopped, self._reason = False, _DEAD
        self._device = Device(model, self._items, settings.max_wait, metrics, self)
        self._threads = [
            threading.Thread(target=self._tokenize_all, args=(texts,), name=name, daemon=True)
            for texts, name in (
                (self._texts, "jina-jax-tokenize"),
                (self._long_texts, "jina-jax-tokenize-long"),
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
        self._admit(job.estimate)
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._forget(job))
        if not job.requests:
            self.settle([job])
            return
        self._arrived.append(job)
        if len(self._arrived) == 1:
            self._loop.call_soon(self._pass_on)

    @contextlib.contextmanager
    def admitted(self, tokens: int) -> Iterator[None]:
        """Let tokens of what is done beside the device wait, like those of a job.

        Raises:
          ApiError: as ``submit``.
        """
        self._admit(tokens)
        try:
            yield
        finally:
            self._waiting_tokens -= tokens

    def _admit(self, tokens: int) -> None:
        if self._stopped:
            raise ApiError(503, self._reason)
        most = self._settings.max_queue_tokens
        if self._waiting_tokens and self._waiting_tokens + tokens > most:
            raise ApiError(
                429,
                f"about {self._waiting_tokens} tokens wait already, and this request has about "
                f"{tokens}: expected at most {most} together",
                headers={"Retry-After": str(self._retry_after())},
            )
        self._waiting_tokens += tokens

    def _pass_on(self) -> None:
        """Wake the threads that tokenise, once for all jobs that arrived together."""
        jobs, self._arrived = self._arrived, []
        units = [(job, _units(job)) for job in jobs]
        for texts, are_long in ((self._texts, False), (self._long_texts, True)):
            texts.put([(own[are_long], self._is_large(job), None) for job, own in units])

    def stop(self) -> None:
        """End the threads; what still waits fails with status 503."""
        self._end("the server stops")

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, after ``stop``."""
        for thread in (*self._threads, self._device.thread):
            thread.join(seconds)

    @property
    def is_stalled(self) -> bool:
        """Whether the device has had no result for longer than it may take."""
        return self._device.seconds_under_way > self._settings.stall

    @property
    def waiting_tokens(self) -> int:
        """Tokens of all requests that have not ended, estimated."""
        return self._waiting_tokens

    def _end(self, reason: str) -> None:
        self._stopped, self._reason = True, reason
        for lanes in (self._texts, self._long_texts, self._items):
            lanes.close()
        for job in list(self._jobs):
            job.fail(ApiError(503, reason))
            job.settle()
        self._device.stop()

    def _forget(self, job: Job) -> None:
        job.drop()
        self._jobs.discard(job)
        self._waiting_tokens -= job.estimate

    def _retry_after(self) -> int:
        """Return the seconds that the device needs for what waits."""
        rate = self._device.tokens_per_second
        seconds = self._waiting_tokens / rate if rate else 1.0
        return max(1, round(min(seconds, _LONGEST_RETRY)))

    def _is_large(self, job: Job) -> bool:
        return is_large(job, self._device.budget)

    # ------------------------------------------------------------ in any thread

    def settle(self, jobs: list[Job]) -> None:
        """Report the end of jobs."""

        def settle() -> None:
            for job in jobs:
                job.settle()

        if jobs:
            self._in_loop(settle)

    def _in_loop(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(call)

    def fail(self, jobs: Iterable[Job], message: str) -> None:
        """End jobs that cannot be served, through no fault of theirs."""
        jobs = list(dict.fromkeys(jobs))
        for job in jobs:
            job.fail(ApiError(500, message))
        self.settle(jobs)

    def die(self) -> None:
        """Fail what waits, in the event loop: there, nothing can be submitted meanwhile."""
        self._stopped = True

        def end() -> None:
            self._end(_DEAD)
            self._on_death()

        self._in_loop(end)

    # ------------------------------------------------------------ in the threads that tokenise

    def _tokenize_all(self, texts: Lanes) -> None:
        in_processes = self._model.preparation().processes is not None
        blocks = _BLOCKS_BESIDE_PROCESSES if in_processes else 1
        while not self._stopped:
            _, units = texts.take(blocks * _CHARACTERS_PER_BLOCK)
            if not units:
                texts.wait()
                continue
            try:
                self.settle(self._tokenize(units))
            except Exception as error:  # without these threads, nothing would ever be encoded
                _LOGGER.exception("texts could not be prepared")
                self.fail((unit.job for unit in units), f"texts cannot be prepared: {error}")

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
        self._items.put([(own, self._is_large(job), kind) for (job, kind), own in by_job.items()])
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
        return Sum((job, index), prepared).parts


def _units(job: Job) -> tuple[list[Unit], list[Unit]]:
    """Return the texts of a job: those within a block, and longer ones."""
    found: tuple[list[Unit], list[Unit]] = ([], [])
    for index, request in enumerate(job.requests):
        size = _size(request)
        found[size > _CHARACTERS_PER_BLOCK].append(Unit(job, size, (index, request)))
    return found


def _size(request: Request) -> int:
    """Return how many characters of plain text take as long to tokenise."""
    times = 1 if request.chunks is None else _TIMES_WITH_CHUNKS
    return times * (len(request.prompt) + len(request.text) + 1)


def _refusal(unit: Unit, error: Exception) -> ApiError:
    """Return the error of a text that cannot be tokenised or divided into its chunks."""
    field = unit.job.fields[unit.value[0]]
    if isinstance(error, ValueError):
        return ApiError(422, f"{field}: {str(error).partition(': ')[2] or error}", field)
    return ApiError(500, f"{field}: cannot be tokenised: {error}", field)
