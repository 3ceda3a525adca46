"""Requests in, vectors out, without a pause: while the device computes, a thread prepares the next.

Requests are read a *pool* at a time: enough for many full steps, yet few enough for the device to
start early, and for memory to be bounded however many there are. A pool is prepared ahead, in a
thread, whose only result is what it returns; batches are made, run and added up in order.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard, TypeVar

import numpy as np

from jina_jax.runtime.batching import CompleteBatching
from jina_jax.runtime.distributed import share_preparation, spans_processes
from jina_jax.runtime.engine import Engine, Step
from jina_jax.runtime.requests import Preparation, Prepared, Request
from jina_jax.runtime.steps import Packer, Result, Sum, results

_T = TypeVar("_T")
_STEPS_IN_POOL = 32
_STEPS_IN_FIRST_POOL = 4
_CHARACTERS_PER_TOKEN = 4


class Pipeline:
    """Runs requests through an engine.

    Args:
      engine: the encoder.
      batching: how items are put into batches (``Batching.on``).
      preparation: how requests become items.
      pooling: as for ``jina_jax.nn.pooling.pool``; None for the vectors of all tokens.

    Attributes:
      waited: seconds in which there was nothing to compute, as nothing was prepared.
    """

    def __init__(
        self,
        engine: Engine,
        batching: CompleteBatching,
        preparation: Preparation,
        pooling: str | None,
    ):
        self._engine, self._packer = engine, Packer(engine, batching)
        self._preparation, self._pooling = preparation, pooling
        self.waited = 0.0

    @property
    def padding(self) -> float:
        """Share of the computed positions that held no token."""
        return self._packer.padding

    def run(self, requests: Iterable[Request | None]) -> Iterator[Result]:
        """Encode requests.

        Args:
          requests: read as they are needed, about a pool ahead of the device. None among them
            means that nothing more is there for now: results of those before it are yielded
            without waiting for more, and they share no step with those behind it, which are
            encoded as if they were the first. On a mesh of several processes, the same requests on
            each.

        Yields:
          Each request's result, once it is complete: near the order of requests, not in it.
        """
        for is_section, pools in itertools.groupby(self._prepared(requests), bool):
            if is_section:
                yield from self._results(pools)

    def _results(self, pools: Iterable[list[tuple[int, Prepared]]]) -> Iterator[Result]:
        """Yield the results of pools, all of them before anything behind these is asked for."""
        empty: deque[Result] = deque()

        def steps() -> Iterator[Step]:
            for pool in pools:
                sums = [Sum(position, prepared) for position, prepared in pool]
                empty.extend(self._empty(own) for own in sums if not own.prepared.items)
                parts = [part for own in sums for part in own.parts]
                yield from self._packer.steps(parts, self._pooling)

        for step, output in self._engine.run(steps()):
            yield from results(step, output)
            while empty:
                yield empty.popleft()
        yield from empty  # of pools without a step behind them

    def _prepared(self, requests: Iterable[Request | None]) -> Iterator[list[tuple[int, Prepared]]]:
        """Yield pools of prepared requests with their positions."""
        if spans_processes(self._engine.mesh):
            # Processes share the work by collectives, which must not meet those of the device.
            everything = [request for request in requests if request is not None]
            yield list(enumerate(share_preparation(everything, self._preparation)))
            return
        if isinstance(requests, Sequence) and self._is_one_pool(requests):
            # A thread would save nothing, and delay calls of several threads.
            yield list(enumerate(self._preparation(requests)))
            return
        pools = self._pools(requests)
        start = 0
        begun = time.perf_counter()
        for pool in ahead(map(self._preparation, pools)):
            self.waited += time.perf_counter() - begun
            yield list(enumerate(pool, start))
            start += len(pool)
            begun = time.perf_counter()

    def _pools(self, requests: Iterable[Request | None]) -> Iterator[list[Request]]:
        """Yield pools, and an empty one for each None."""
        step = self._characters_per_step
        pool: list[Request] = []
        characters, most = 0, _STEPS_IN_FIRST_POOL * step
        for request in requests:
            if request is not None:
                pool.append(request)
                characters += len(request.text)
            if pool and (request is None or characters >= most):
                yield pool
                pool, characters, most = [], 0, _STEPS_IN_POOL * step
            if request is None:
                yield []
                most = _STEPS_IN_FIRST_POOL * step
        if pool:
            yield pool

    @property
    def _characters_per_step(self) -> int:
        return self._packer.budget * _CHARACTERS_PER_TOKEN

    def _is_one_pool(self, requests: Sequence[Request | None]) -> TypeGuard[Sequence[Request]]:
        """Return whether nothing is left to prepare while the device computes."""
        characters = sum(len(request.text) for request in requests if request is not None)
        is_short = characters < _STEPS_IN_FIRST_POOL * self._characters_per_step
        return is_short and None not in requests

    def _empty(self, own: Sum) -> Result:
        width = self._engine.config.hidden_size
        return Result(own.owner, np.zeros((0, width), np.float32), own.prepared)


def ahead(values: Iterator[_T]) -> Iterator[_T]:
    """Yield values, each computed in a thread while the one before is being used."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, values, nothing)
        while (value := coming.result()) is not nothing:
            coming = pool.submit(next, values, nothing)
            yield value  # type: ignore[misc]
