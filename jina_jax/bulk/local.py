"""Several processes on this machine, each with devices of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from jina_jax.bulk.plan import MANIFEST
from jina_jax.bulk.ranks import Position, local_devices_environ, nested
from jina_jax.bulk.stores import Store

# Another process asks, as this one must not take the devices from those that it starts.
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"
_PLATFORMS = {"gpu": "cuda"}
_POLL = 0.1  # seconds
_PATIENCE = 20.0  # seconds in which processes may end in order; a cluster's own are often 30


def run_processes(
    arguments: Sequence[str], each: int, outer: Position, store: Store, *, by_rank: bool = True
) -> int:
    """Run the command ``jina-jax`` in as many processes as have ``each`` devices.

    Args:
      arguments: of the command, without those that say which process it is.
      each: devices of a process.
      outer: the place of this machine among all.
      store: the output.
      by_rank: give each process its rank; not to those that work by leases.

    Returns:
      The highest exit status of those that end by themselves. One that ends with an error leaves
      the others their work; before there is a plan, for which these may wait, it ends them. An
      exception here, as of a signal, ends all.

    Raises:
      ValueError: if there are fewer devices, or a number that is no multiple.
    """
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"local_devices={each}: expected devices that JAX can use: {reason}")
    backend, devices = asked.stdout.split()[-2:]
    count, rest = divmod(int(devices), each)
    if rest or not count:
        raise ValueError(
            f"local_devices={each}: expected a divisor of this machine's {devices} devices"
        )
    platform = _PLATFORMS.get(backend, backend)
    behind = end_of_options(arguments)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(count):
            place = nested(outer, Position(index, count))
            environment = os.environ | local_devices_environ(index, count, platform, each)
            ranks = ["--rank", str(place.rank), "--world", str(place.world)] if by_rank else []
            own = [*arguments[:behind], *ranks, *arguments[behind:]]
            command = [sys.executable, "-m", "jina_jax.cli", *own]
            processes.append(subprocess.Popen(command, env=environment))
        return _wait(processes, store)
    finally:
        _end(processes)


def end_of_options(arguments: Sequence[str]) -> int:
    """Return the position of ``--``, behind which there are no options."""
    return list(arguments).index("--") if "--" in arguments else len(arguments)


def _wait(processes: Sequence[subprocess.Popen[bytes]], store: Store) -> int:
    """Wait for all processes, or for one that fails before there is a plan; return the status."""
    is_planned = False
    while True:
        codes = [process.poll() for process in processes]
        ended = [_status(code) for code in codes if code is not None]
        if any(ended) and not is_planned:
            is_planned = store.exists(MANIFEST)
        if len(ended) == len(codes) or (any(ended) and not is_planned):
            return max(ended)
        time.sleep(_POLL)


def _status(code: int) -> int:
    """Return an exit status as shells report it, 128 and the signal's number for a signal."""
    return 128 - code if code < 0 else code


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes: in order, else by a kill, which costs them their shards only."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _PATIENCE
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
