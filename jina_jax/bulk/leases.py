"""Leases: workers that start and die at any time divide the shards of a job among them.

A worker that takes a shard puts a small file for it into the output, if there is none yet, and
writes it anew every few seconds. Whoever sees the content of such a file unchanged for long, by
its own monotonic clock, takes the shard over: no clocks of two machines are compared, and no times
of files. Leases only avoid work that is done twice: a shard's own file is its commit, and of two
workers with the same shard one puts it. So nothing here needs a lock or a transaction of the store.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from jina_jax.bulk.plan import LEASES

if TYPE_CHECKING:
    from jina_jax.bulk.stores import Store

WATCHED = 32  # leases of others that a worker reads at once, however many there are
_LOGGER = logging.getLogger("jina_jax")


def lease_name(name: str) -> str:
    """Return the name of the lease of a shard's file."""
    return f"{LEASES}/{PurePosixPath(name).stem}.json"


class Leases:
    """The leases of one worker.

    A lease has JSON: "worker", its name; "token", unique to this object; "beat", a number that
    grows.

    Attributes:
      worker: name of this worker, for those who read the leases.
      held: names of shards whose leases this worker has, with the content of each.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        seconds: float = 120.0,
        heartbeat: float = 30.0,
        pause: float = 5.0,
    ) -> None:
        """Prepare; nothing is written before ``take``.

        Args:
          store: the output of the job.
          worker: name of this worker, such as host and process.
          seconds: after which a lease that does not change is taken over.
          heartbeat: seconds after which a worker writes its own leases anew.
          pause: least seconds between two listings of the store; while others have all that is
            left, it grows up to ``heartbeat``.

        Raises:
          ValueError: for ``seconds`` below two heartbeats, or a pause that is not positive.
        """
        if not 0 < heartbeat <= seconds / 2:
            raise ValueError(
                f"heartbeat={heartbeat}: expected a positive number of at most half of {seconds=}"
            )
        if not 0 < pause <= heartbeat:
            raise ValueError(f"pause={pause}: expected a positive number of at most {heartbeat=}")
        self.store, self.worker = store, worker
        self.seconds, self.heartbeat, self.pause = seconds, heartbeat, pause
        self.held: dict[str, bytes] = {}
        self._token, self._beats = secrets.token_hex(8), 0
        self._given: set[str] = set()
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def take(self, names: Sequence[str]) -> Iterator[str]:
        """Take shards, one when asked for the next, until every one is done or this worker's.

        While other workers have all that is left, it waits for them, to take over from those that
        die. The caller goes on with the shards that it has meanwhile: whoever committed none of
        them before would wait for others who do the same.

        Args:
          names: the files of the shards; those in the store are done.

        Yields:
          Names of shards to compute, each once.
        """
        self._start()
        first = int(self._token, 16) % max(len(names), 1)  # workers start far from each other
        left, pause = [*names[first:], *names[:first]], self.pause
        while not self._stopped.is_set():
            listed, leased = time.monotonic(), set(self.store.names(LEASES))
            done = set(self.store.names())
            left = [name for name in left if name not in done]
            pause = min(1.5 * pause, self.heartbeat)
            for name in self._candidates(left, leased):
                if self._claim(name):
                    pause = self.pause
                    yield name
                if time.monotonic() - listed >= self.pause:
                    break
            left = [name for name in left if name not in self._given]
            if not left:
                return self._clean(leased, [name for name in names if name in done])
            self._stopped.wait(listed + pause - time.monotonic())

    def release(self, name: str) -> None:
        """Remove the lease of a shard that is done, if it is this worker's."""
        with self._lock:
            self._release(name)

    def stop(self) -> None:
        """Let ``take`` end at once; may be called in a handler of signals."""
        self._stopped.set()

    def close(self) -> None:
        """End the heartbeat; leave the shards that are not done to others."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            held = list(self.held)
        for name in held:
            try:
                self.release(name)
            except OSError as error:
                _LOGGER.warning("the lease of %s was not removed: %s", name, error)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._thread.start()

    def _candidates(self, left: Sequence[str], leased: set[str]) -> Iterator[str]:
        """Name the shards without a lease; after them, those whose lease nobody renews."""
        others = []
        for name in left:
            if PurePosixPath(lease_name(name)).name in leased:
                others.append(name)
            else:
                yield name
        for name in others[:WATCHED]:
            if self._is_dead(name):
                self.store.remove(lease_name(name))
                yield name

    def _is_dead(self, name: str) -> bool:
        """Return whether a lease is as it was ``seconds`` ago, here and in a last look at it."""
        content, now = self.store.read(lease_name(name)), time.monotonic()
        seen, since = self._seen.get(name, (None, now))
        if content is None or content != seen:
            self._seen[name] = content, now
            return False
        return now - since >= self.seconds

    def _claim(self, name: str) -> bool:
        """Take the lease of a shard, unless another has it, or it was done since the listing."""
        with self._lock:
            if self._stopped.is_set():  # else a thread may claim what ``close`` does not see
                return False
            content = self._content()
            if not self.store.put_new(lease_name(name), content):
                return False
            self.held[name] = content
            if self.store.exists(name):
                self._release(name)
                return False
        self._given.add(name)
        return True

    def _content(self) -> bytes:
        self._beats += 1
        fields = {"worker": self.worker, "token": self._token, "beat": self._beats}
        return json.dumps(fields).encode()

    def _release(self, name: str) -> None:
        content = self.held.pop(name, None)
        if content is not None and self.store.read(lease_name(name)) == content:
            self.store.remove(lease_name(name))

    def _beat(self) -> None:
        """Renew all leases, again and again."""
        while not self._stopped.wait(self.heartbeat):
            for name in list(self.held):
                try:
                    with self._lock:
                        self._renew(name)
                except OSError as error:  # a shard's own file will show whether it is serious
                    _LOGGER.warning("the lease of %s was not renewed: %s", name, error)

    def _renew(self, name: str) -> None:
        """Renew a lease, unless its shard is done, or another worker took it over."""
        if name not in self.held:
            return
        if self.store.exists(name):
            self._release(name)
        elif self.store.read(lease_name(name)) != self.held[name]:
            _LOGGER.warning("another worker took %s over; both compute it, and one puts it", name)
            del self.held[name]
        else:
            content = self._content()
            self.store.put(lease_name(name), content)
            self.held[name] = content

    def _clean(self, leased: set[str], done: Sequence[str]) -> None:
        """Remove the leases of shards that are done, whose workers died just after."""
        for name in done:
            if PurePosixPath(lease_name(name)).name in leased:
                self.store.remove(lease_name(name))
