"""Ranks from launchers' variables, and devices of the processes of a host."""

import pytest

from jina_jax.bulk.ranks import Position, local_devices_environ, nested, rank_and_world

STEP = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}


def array(index, count, first, last):
    values = {"ID": index, "COUNT": count, "MIN": first, "MAX": last}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


SLICE = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        ({"JAX_PROCESS_ID": "5", "JAX_NUM_PROCESSES": "8"}, (5, 8)),
        ({"JAX_PROCESS_INDEX": "5", "JAX_PROCESS_COUNT": "8"}, (5, 8)),
        (STEP, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # a batch script
        (array(7, 8, 0, 7), (7, 8)),
        (array(5, 8, 1, 8), (4, 8)),
        (array(5, 4, 1, 7), (2, 4)),  # --array=1-7:2
        (array(9, 2, 5, 9), (1, 2)),  # two that failed, again
        (array(9, 1, 9, 9), (0, 1)),
        ({**array(2, 3, 0, 2), **STEP}, (10, 12)),
        (SLICE, (3, 4)),
        ({"TPU_WORKER_ID": "0"}, (0, 1)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, (0, 1)),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, (0, 1)),
        ({**SLICE, "MEGASCALE_SLICE_ID": "1", "MEGASCALE_NUM_SLICES": "2"}, (7, 8)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, (1, 2)),
        ({"SKYPILOT_JOB_RANK": "3", "SKYPILOT_NUM_JOBS": "5"}, (3, 5)),
        # Launchers of one process say nothing; several may agree.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"},
            (1, 2),
        ),
        ({**SLICE, "JAX_PROCESS_ID": "3", "JAX_NUM_PROCESSES": "4"}, (3, 4)),
    ],
)
def test_ranks_of_launchers(environ, expected):
    assert rank_and_world(environ=environ) == expected


def test_arguments_are_before_variables():
    assert rank_and_world(1, 3, {"RANK": "0", "WORLD_SIZE": "2"}) == (1, 3)


def test_the_variables_of_this_process(monkeypatch):
    monkeypatch.setenv("RANK", "6")
    monkeypatch.setenv("WORLD_SIZE", "7")
    assert rank_and_world() == (6, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 1}, "world=None: expected a number beside rank"),
        ({"world": 1}, "rank=None: expected a number beside world"),
        ({"rank": 2, "world": 2}, "rank=2: expected an integer from 0 to 1"),
        ({"rank": -1, "world": 2}, "rank=-1"),
        ({"rank": 0, "world": 0}, "world=0: expected an integer of at least 1"),
        ({"rank": True, "world": 2}, "rank=True"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_and_world(**arguments, environ={})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1"}, "WORLD_SIZE: expected this environment variable beside RANK=1"),
        ({"WORLD_SIZE": "1"}, "RANK: expected this environment variable beside WORLD_SIZE=1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: expected an integer from 0 to 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x': expected an integer"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID: expected"),
        ({"SLURM_ARRAY_TASK_ID": "2"}, "SLURM_ARRAY_TASK_COUNT: expected"),
        (array(4, 3, 1, 9), "SLURM_ARRAY_TASK_ID=4: expected indices with equal distances"),
        (array(1, 4, 0, 6), "SLURM_ARRAY_TASK_ID=1: .* got 4 from 0 to 6"),
        (array(0, 4, 0, 7), "SLURM_ARRAY_TASK_ID=0: "),
        ({"TPU_WORKER_ID": "1"}, "TPU_WORKER_HOSTNAMES: expected"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID: expected"),
        ({**SLICE, "TPU_WORKER_ID": "4"}, "TPU_WORKER_ID=4: expected an integer from 0 to 3"),
        (
            {**STEP, "RANK": "0", "WORLD_SIZE": "8"},
            r"differ: 2 of 4 \(Slurm\), 0 of 8 \(torchrun\)",
        ),
    ],
)
def test_variables_that_are_refused(environ, message):
    with pytest.raises(ValueError, match=message):
        rank_and_world(environ=environ)


def test_nested_positions_are_each_there_once():
    places = [
        nested(Position(outer, 3), Position(inner, 4)) for outer in range(3) for inner in range(4)
    ]
    assert places == [(rank, 12) for rank in range(12)]


def test_cuda_devices():
    def devices(*args, **environ):
        return local_devices_environ(*args, environ=environ)["CUDA_VISIBLE_DEVICES"]

    assert [devices(index, 3, "cuda") for index in range(3)] == ["0", "1", "2"]
    assert devices(1, 2, "cuda", 2) == "2,3"
    assert devices(1, 2, "cuda", CUDA_VISIBLE_DEVICES="4,GPU-8932f937") == "GPU-8932f937"


def test_chips():
    found = [local_devices_environ(index, 2, "tpu", 2, {}) for index in range(2)]
    chips = [environ.pop("TPU_VISIBLE_CHIPS") for environ in found]
    ports = [environ.pop("TPU_PROCESS_PORT") for environ in found]
    assert chips == ["0,1", "2,3"]
    assert ports == ["8476", "8477"]
    addresses = [environ.pop("TPU_PROCESS_ADDRESSES") for environ in found]
    assert addresses == ["localhost:8476", "localhost:8477"]
    assert found[0] == found[1]
    assert found[0] == {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "CLOUD_TPU_TASK_ID": "0",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
    }


def test_a_process_with_chips_of_its_own_is_alone():
    """Its rank was read before; its variables do not name other hosts."""
    environ = {**SLICE, **local_devices_environ(0, 4, "tpu", environ=SLICE)}
    assert rank_and_world(environ=environ) == (0, 1)


def test_cpu_devices():
    assert local_devices_environ(0, 1, "cpu", 2) == {"JAX_NUM_CPU_DEVICES": "2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, "gpu"), "platform='gpu': expected \"cuda\""),
        ((2, 2, "cuda"), "index=2: expected an integer from 0 to 1"),
        ((0, 0, "cuda"), "count=0"),
        ((0, 1, "cuda", 0), "each=0"),
        ((0, 1, "tpu", 3), "each=3: expected 1, 2, 4 or 8 chips"),
        ((0, 2, "cuda", 1, {"CUDA_VISIBLE_DEVICES": "7"}), "='7': expected at least 2 devices"),
    ],
)
def test_devices_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        local_devices_environ(*arguments)
