"""Ranks: which of how many processes this one is, and which devices of its host it has.

Bulk jobs need no ``jax.distributed``, with which one lost host stops all others: each process has a
mesh of its own devices, and computes the shards of its rank.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from jina_jax.checks import check_integer

Environment = Mapping[str, str]


class Position(NamedTuple):
    """A process among equal ones: its number, from 0, and how many they are."""

    rank: int
    world: int


ALONE = Position(0, 1)

# Launchers that give each process two variables, in which its rank and their number are.
PAIRS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "JAX": ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    "JAX processes": ("JAX_PROCESS_INDEX", "JAX_PROCESS_COUNT"),
}
# Rectangles of a host's chips, by their number, as in the examples of jax issue #14977.
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
FIRST_PORT = 8476  # of libtpu's processes


def rank_and_world(
    rank: int | None = None, world: int | None = None, environ: Environment = os.environ
) -> Position:
    """Return the rank of this process and the number of all.

    Without arguments these are of the launcher that started the process:

    - Slurm: the tasks of a step, ``SLURM_PROCID`` and ``SLURM_STEP_NUM_TASKS`` (srun(1)), within
      the jobs of an array, ``SLURM_ARRAY_TASK_ID``, ``_COUNT``, ``_MIN`` and ``_MAX`` (sbatch(1)).
      A batch script is one process, however many tasks its job has room for.
    - TPU slices in GKE: ``TPU_WORKER_ID`` among ``TPU_WORKER_HOSTNAMES``, within
      ``MEGASCALE_SLICE_ID`` of ``MEGASCALE_NUM_SLICES`` (as jax/_src/clusters reads them). A TPU VM
      outside of GKE has them in its metadata server only, and needs the arguments.
    - SkyPilot: ``SKYPILOT_NODE_RANK`` of ``SKYPILOT_NUM_NODES``, within ``SKYPILOT_JOB_RANK`` of
      ``SKYPILOT_NUM_JOBS``.
    - torchrun, mpirun and JAX's launchers: ``PAIRS``.

    A launcher of one process does not count beside one of several.

    Args:
      rank, world: in place of all variables; both or none.
      environ: variables.

    Returns:
      rank from 0 to world - 1, and world; (0, 1) if nothing says more.

    Raises:
      ValueError: for one of a pair without the other, a number out of range, and variables of two
        launchers that differ.
    """
    if rank is not None or world is not None:
        if rank is None or world is None:
            name, other = ("world", "rank") if rank is None else ("rank", "world")
            raise ValueError(f"{other}=None: expected a number beside {name}")
        world = check_integer("world", world, least=1)
        return Position(check_integer("rank", rank, least=0, most=world - 1), world)
    found = {name: place for name, place in _launchers(environ).items() if place.world > 1}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{place.rank} of {place.world} ({name})" for name, place in found.items())
        raise ValueError(
            f"rank=None: environment variables differ: {said}; give --rank and --world"
        )
    return next(iter(found.values()), ALONE)


def nested(outer: Position, inner: Position) -> Position:
    """Return the position of a process that is one of ``inner`` on each of ``outer``."""
    return Position(outer.rank * inner.world + inner.rank, outer.world * inner.world)


def _launchers(environ: Environment) -> dict[str, Position]:
    """Return what each launcher says."""
    pairs = {name: _pair(environ, *names) for name, names in PAIRS.items()}
    jobs = _pair(environ, "SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS")
    nodes = _pair(environ, "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES")
    return {
        "Slurm": nested(_array(environ), _step(environ)),
        "TPU": _tpu(environ),
        "SkyPilot": nested(jobs, nodes),
        **pairs,
    }


def _number(environ: Environment, name: str, least: int = 0, most: int | None = None) -> int:
    """Read a variable."""
    value = environ[name]
    try:
        number: int | str = int(value)
    except ValueError:
        number = value
    return check_integer(name, number, least, most)


def _pair(environ: Environment, rank: str, world: str) -> Position:
    """Read a rank and a number of processes, of which there are both or none."""
    there = [name for name in (rank, world) if environ.get(name)]
    if not there:
        return ALONE
    if len(there) == 1:
        other = world if there == [rank] else rank
        raise ValueError(
            f"{other}: expected this environment variable beside {there[0]}={environ[there[0]]}; "
            "unset that or give --rank and --world"
        )
    count = _number(environ, world, least=1)
    return Position(_number(environ, rank, most=count - 1), count)


def _step(environ: Environment) -> Position:
    """Return the position in a step of Slurm; batch scripts have no such variable and one task."""
    if not environ.get("SLURM_STEP_NUM_TASKS"):
        return ALONE
    return _pair(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


def _array(environ: Environment) -> Position:
    """Return the position in an array of jobs, whose indices may be any arithmetic progression."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX")]
    if not environ.get(names[0]):
        return ALONE
    if missing := [name for name in names if not environ.get(name)]:
        raise ValueError(f"{missing[0]}: expected this environment variable beside {names[0]}")
    index, count, first, last = (_number(environ, name) for name in names)
    step = max((last - first) // max(count - 1, 1), 1)
    rank, rest = divmod(index - first, step)
    if rest or not 0 <= rank < count or first + step * (count - 1) != last:
        raise ValueError(
            f"SLURM_ARRAY_TASK_ID={index}: expected indices with equal distances to find a rank, "
            f"got {count} from {first} to {last}; give --rank and --world"
        )
    return Position(rank, count)


def _tpu(environ: Environment) -> Position:
    """Return the position of a host in its slice, within several slices."""
    slices = _pair(environ, "MEGASCALE_SLICE_ID", "MEGASCALE_NUM_SLICES")
    worker = environ.get("TPU_WORKER_ID", "")
    hosts = len([name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name])
    if hosts < 2 and worker in ("", "0"):
        return slices  # a host alone may have one of the two variables
    pair = {"TPU_WORKER_ID": worker, "TPU_WORKER_HOSTNAMES": str(hosts or "")}
    return nested(slices, _pair(pair, *pair))


def local_devices_environ(
    index: int, count: int, platform: str, each: int = 1, environ: Environment = os.environ
) -> dict[str, str]:
    """Return the variables with which one of several processes of a host has devices of its own.

    They must be set before JAX starts. Ranks must be read before: those of the TPU describe a
    process that is alone from then on, so that it does not wait for the other hosts of its slice.

    Args:
      index: of the process on its host, from 0.
      count: processes of the host.
      platform: "cuda", "tpu" or "cpu".
      each: devices of each process: chips of a TPU, of which 1, 2, 4 or 8 are possible.
      environ: variables so far; of "cuda" with ``CUDA_VISIBLE_DEVICES`` the devices there.

    Returns:
      For CUDA ``CUDA_VISIBLE_DEVICES``. For a TPU the variables of libtpu for processes that do not
      communicate: chips, their bounds, a port each, and no query of the metadata server (jax issues
      #14977 and #8809, pytorch/xla #7714, tpu_topology_env_vars.py of github.com/skye).
      For CPU ``JAX_NUM_CPU_DEVICES``.

    Raises:
      ValueError: for an argument out of range, or too few visible devices.
    """
    count = check_integer("count", count, least=1)
    index = check_integer("index", index, least=0, most=count - 1)
    each = check_integer("each", each, least=1)
    own = range(index * each, (index + 1) * each)
    if platform == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(_cuda_devices(own, count * each, environ))}
    if platform == "tpu":
        return _tpu_environ(index, own)
    if platform == "cpu":
        return {"JAX_NUM_CPU_DEVICES": str(each)}
    raise ValueError(f'platform={platform!r}: expected "cuda", "tpu" or "cpu"')


def _cuda_devices(own: range, needed: int, environ: Environment) -> list[str]:
    """Return a process's devices, of those that its launcher left visible."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(device) for device in own]
    devices = [device for device in visible.split(",") if device]
    if len(devices) < needed:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={visible!r}: expected at least {needed} devices for all local "
            f"processes, got {len(devices)}"
        )
    return [devices[device] for device in own]


def _tpu_environ(index: int, own: range) -> dict[str, str]:
    """Return libtpu's variables for a process that is alone with some chips of its host."""
    if len(own) not in BOUNDS:
        raise ValueError(f"each={len(own)}: expected 1, 2, 4 or 8 chips of a TPU per process")
    port = str(FIRST_PORT + index)
    return {
        "TPU_VISIBLE_CHIPS": ",".join(map(str, own)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[len(own)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
    }
