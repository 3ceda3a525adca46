"""Parts of ``benchmarks/gpu.py`` that a CPU's dry run does not reach: a GPU's trace, idle time."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_profile


def plane(name, **lines):
    return SimpleNamespace(
        name=name,
        lines=[SimpleNamespace(name=line, events=events) for line, events in lines.items()],
    )


def event(name, start, duration, stats=()):
    return SimpleNamespace(
        name=name, start_ns=start, duration_ns=duration, end_ns=start + duration, stats=stats
    )


def test_kernels_of_a_gpu_are_those_of_its_streams():
    streams = {
        "Stream #13(Compute)": [
            event("nvjet_tst_128x256", 1e6, 4e6),
            event("loop_add_fusion_3", 5e6, 1e6),
            event("loop_add_fusion_7", 6e6, 1e6),
        ],
        "XLA Ops": [event("dot.1", 0, 9e9)],
    }
    host = plane("/host:CPU", tf_XLA=[event("dot.1", 0, 9e9, [("hlo_op", "dot.1")])])
    data = SimpleNamespace(planes=[host, plane("/device:GPU:0", **streams)])
    found = gpu_profile.summary(gpu_profile.read(data), steps=2)
    assert found["planes"] == "/device:GPU:0"
    assert found["kernels, ms"] == 3
    assert found["span, ms"] == 3
    assert found["groups"] == {"matmuls": [2, 0.5], "loop_add_fusion": [1, 1]}
    assert found["longest"][0] == ["nvjet_tst_128x256", 2, 0.5]


def test_without_a_device_plane_the_operations_of_the_host_are_read():
    events = [event("dot.1", 0, 2e6, [("hlo_op", "dot.1")]), event("Await", 0, 9e9)]
    found = gpu_profile.read(SimpleNamespace(planes=[plane("/host:CPU", tf_XLA=events)]))
    assert "no device plane" in found.source
    assert found.nanoseconds == {"dot.1": 2e6}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_NNT", "matmuls"),
        ("gemm_fusion_dot_12_0", "matmuls"),
        ("input_transpose_fusion_4", "transposes and copies"),
        ("MemcpyD2H", "transposes and copies"),
        ("loop_convert_fusion_12", "loop_convert_fusion"),
        ("loop_convert_fusion.3", "loop_convert_fusion"),
    ],
)
def test_groups(name, expected):
    assert gpu_profile.group(name) == expected


class Engine:
    """Results that are ready a while after their dispatch."""

    def __init__(self, seconds):
        self._seconds = seconds

    def _start(self, step, pooling):
        ready = time.perf_counter() + self._seconds
        return SimpleNamespace(
            block_until_ready=lambda: time.sleep(max(0.0, ready - time.perf_counter()))
        )


def test_the_device_waits_while_no_step_is_in_flight():
    engine = Engine(0.2)
    with gpu_profile.Flights(engine) as flights:
        engine._start("step", "mean")
        engine._start("step", "mean")  # at the same time: counts once
        time.sleep(0.4)
    assert 0.35 < flights.idle < 0.65
    assert "_start" not in vars(engine)
