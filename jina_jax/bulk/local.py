"""Several processes on this machine, each with devices of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from jina_jax.bulk.ranks import Position, local_devices_environ, nested

# Another process asks, as this one must not take the devices from those that it starts.
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"
_PLATFORMS = {"gpu": "cuda"}


def run_processes(
    arguments: Sequence[str], each: int, outer: Position, *, by_rank: bool = True
) -> int:
    """Run the command ``jina-jax`` in as many processes as have ``each`` devices.

    Args:
      arguments: of the command, without those that say which process it is.
      each: devices of a process.
      outer: the place of this machine among all.
      by_rank: give each process its rank; not to those that work by leases.

    Returns:
      The highest exit status, once all have ended. They end with this process's group, and one
      that ends with an error leaves the others their work.

    Raises:
      ValueError: if there are fewer devices, or a number that is no multiple.
    """
    asked = subprocess.run([sys.executable, "-c", _ASK], check=True, capture_output=True, text=True)
    backend, devices = asked.stdout.split()[-2:]
    count, rest = divmod(int(devices), each)
    if rest or not count:
        raise ValueError(
            f"local_devices={each}: expected a divisor of this machine's {devices} devices"
        )
    platform = _PLATFORMS.get(backend, backend)
    processes = []
    for index in range(count):
        place = nested(outer, Position(index, count))
        environment = os.environ | local_devices_environ(index, count, platform, each)
        ranks = ["--rank", str(place.rank), "--world", str(place.world)] if by_rank else []
        command = [sys.executable, "-m", "jina_jax.cli", *arguments, *ranks]
        processes.append(subprocess.Popen(command, env=environment))
    try:
        return max(abs(process.wait()) for process in processes)
    finally:
        for process in processes:
            process.terminate()
