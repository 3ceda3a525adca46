"""The progress of a job on a terminal, or in a log."""

from __future__ import annotations

import sys
import threading
import time

from tqdm import tqdm

from jina_jax.bulk.plan import Manifest
from jina_jax.bulk.shards import Progress

_SECONDS = 30.0  # between lines of a log


class Bar:
    """Shows rows, tokens per second, padding, what is waited for, and the time left.

    Args:
      manifest: the plan.
      shards: those that are to be computed, if they are known.
      shown: on a terminal; None if stderr is one. Otherwise a line is written every 30 seconds.
    """

    def __init__(self, manifest: Manifest, shards: list[int] | None, shown: bool | None = None):
        self._manifest = manifest
        self._shards = list(range(len(manifest.shards))) if shards is None else shards
        self.rows = self.tokens = self.bad = self.done = 0
        self._begun = self._last = time.monotonic()
        self._lock = threading.Lock()
        self._parts: dict[int, float] = {}
        shown = sys.stderr.isatty() if shown is None else shown
        total = sum(map(manifest.size, self._shards))
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not shown)

    def __call__(self, progress: Progress) -> None:
        """Take what a worker has done; in any thread."""
        with self._lock:
            self.rows += progress.rows
            self.tokens += progress.tokens
            self.bad += progress.bad
            self.done += progress.is_done
            self._advance(progress)
            self._bar.set_postfix_str(self._text(progress))
            now = time.monotonic()
            if self._bar.disable and (now - self._last > _SECONDS):
                self._last = now
                print(self._line(progress), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _advance(self, progress: Progress) -> None:
        """Move the bar by the share of a shard that was written; unknown sizes move at its end."""
        size = self._manifest.size(progress.shard)
        rows = [piece.rows for piece in self._manifest.shards[progress.shard]]
        before = self._parts.get(progress.shard, 0.0)
        part = 1.0
        if not progress.is_done:
            known = None if None in rows else sum(rows)  # type: ignore[arg-type]
            written = progress.rows + progress.bad
            part = min(1.0, before + written / known) if known else before
        self._parts[progress.shard] = part
        self._bar.update(round(size * part) - round(size * before))

    def _text(self, progress: Progress) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        waits = ", ".join(
            f"{name} {share:.0%}"
            for name, own in progress.waits.items()
            if (share := min(own / seconds, 1.0)) >= 0.01
        )
        found = f"{self.rows:,} rows, {self.tokens / seconds:,.0f} tokens/s"
        found += f", padding {progress.padding:.0%}"
        found += f", {self.bad:,} bad" if self.bad else ""
        return found + (f", waits: {waits}" if waits else "")

    def _line(self, progress: Progress) -> str:
        share = self._bar_share()
        seconds = time.monotonic() - self._begun
        left = f", {seconds / share - seconds:,.0f} s left" if share else ""
        shards = f"{self.done} of this run's {len(self._shards)} shards"
        return f"{shards}, {self._text(progress)}{left}"

    def _bar_share(self) -> float:
        total = sum(map(self._manifest.size, self._shards))
        done = sum(self._manifest.size(shard) * part for shard, part in self._parts.items())
        return done / total if total else 0.0
