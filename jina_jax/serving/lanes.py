"""Who is next: texts of small requests before those of large ones, which have a share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from jina_jax.serving.jobs import Job

# Every fourth step is one of large requests, if any wait: a share of the device is theirs. The
# others are not filled up with their texts: small ones would wait for the end of a full step.
_STEPS_WITHOUT_LARGE = 3


class Unit(NamedTuple):
    """A text or a part of one, as it waits.

    Attributes:
      job: whose it is.
      size: in characters or tokens.
      value: the text or part.
    """

    job: Job
    size: int
    value: Any


class _Waiting(NamedTuple):
    """Units of one job."""

    job: Job
    units: deque[Unit]


def is_large(job: Job, budget: int) -> bool:
    """Return whether a job has to let small ones pass: it has more tokens than a step."""
    return job.bulk or job.estimate > budget


class Lanes:
    """Waiting units; threads may put and take at once.

    Small jobs are served first, in the order of their arrival; large ones take turns unit by unit.
    Units of small and large jobs, or of different kinds, are never taken together. Units of jobs
    that have ended are dropped.
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[bool, Hashable], deque[_Waiting]] = {}
        self._passed = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, jobs: Iterable[tuple[Sequence[Unit], bool, Hashable]]) -> None:
        """Add units of several jobs, each with whether it is large, and their kind."""
        jobs = [own for own in jobs if own[0]]
        if not jobs:
            return
        with self._changed:
            self._drop_ended()  # nobody may take any for a while
            for units, large, kind in jobs:
                lane = self._lanes.setdefault((large, kind), deque())
                lane.append(_Waiting(units[0].job, deque(units)))
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> None:
        """Return when something waits, after ``close``, ``notify`` or so many seconds."""
        with self._changed:
            if not self._closed and not any(self._lanes.values()):
                self._changed.wait(seconds)

    def notify(self) -> None:
        """End a ``wait`` for another reason."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def small_waits(self) -> bool:
        """Return whether a unit of a small job waits."""
        return any(lane for (large, _), lane in tuple(self._lanes.items()) if not large)

    def take(self, most: int, *, small_only: bool = False) -> tuple[Hashable, list[Unit]]:
        """Take units of one lane and kind whose sizes add up to ``most``, or one that is larger.

        Args:
          most: sum of the sizes.
          small_only: leave large jobs where they are.

        Returns:
          Their kind, and the units; none if nothing waits.
        """
        with self._changed:
            self._drop_ended()
            heads = [
                (lane[0].job.arrival, large, kind)
                for (large, kind), lane in self._lanes.items()
                if lane and not (large and small_only)
            ]
            if not heads:
                return None, []
            first = self._passed >= _STEPS_WITHOUT_LARGE
            _, large, kind = min(heads, key=lambda head: (head[1] != first, head[0]))
            if not small_only:
                waits = any(head[1] for head in heads)
                self._passed = self._passed + 1 if waits and not large else 0
            return kind, self._take(self._lanes[large, kind], most, turns=large)

    def _take(self, lane: deque[_Waiting], room: int, *, turns: bool) -> list[Unit]:
        """Return the units that have room; the oldest is never overtaken by smaller ones."""
        taken: list[Unit] = []
        while lane and (not taken or lane[0].units[0].size <= room):
            waiting = lane[0]
            taken.append(waiting.units.popleft())
            room -= taken[-1].size
            if not waiting.units:
                lane.popleft()
            elif turns:
                lane.rotate(-1)
        return taken

    def _drop_ended(self) -> None:
        for name, lane in self._lanes.items():
            if any(waiting.job.ended for waiting in lane):
                self._lanes[name] = deque(own for own in lane if not own.job.ended)
