"""Programs compiled for TPUs ahead of time, in reduced form, and the report about them."""

import importlib.util
import json
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import jax
import pytest
from published import SMALL, published_config

from jina_jax import make_mesh
from jina_jax.config import Config
from jina_jax.runtime.engine import Engine, Program
from jina_jax.runtime.sharding import abstract_state

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from tpu_chips import CHIPS, chip_of, flops_per_token  # noqa: E402
from tpu_hlo import float32_matmuls  # noqa: E402
from tpu_programs import program_shape  # noqa: E402
from tpu_report import Layer, Options, Report, line, per_layer, shape  # noqa: E402


@pytest.fixture(scope="module")
def config():
    fields = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
    return Config.from_dict({**published_config(SMALL), **fields})


@pytest.mark.parametrize("tokens", [16, 256])
def test_float32_encoders_are_told_from_others(config, tokens):
    mesh = make_mesh(devices=jax.devices()[:1])
    for dtype in ("float32", "bfloat16"):
        state = abstract_state(config, dtype, mesh, scan_layers=True)
        engine = Engine(config, state, mesh=mesh, scan_layers=True)
        text = engine.lower(Program(2, tokens, 2, None, True, "mean")).as_text()
        matmuls = text.count("stablehlo.dot_general ")
        assert matmuls > 10
        assert float32_matmuls(text) == (matmuls if dtype == "float32" else 0)


def test_shapes_of_programs():
    assert shape(Program(32, 512, 64, None, True, "mean")) == "32 x 512 x 64"
    assert program_shape("32x512") == (32, 512, 64)
    assert program_shape("21x768x1") == (21, 768, 1)
    for text in ("32", "0x512", "32x512x64x1", "axb"):
        with pytest.raises(ArgumentTypeError, match="expected B x T or B x T x S, got"):
            program_shape(text)


def test_operations_per_token():
    matmuls = 2 * (1024 * 3072 + 1024 * 1024 + 2 * 1024 * 4096)
    assert flops_per_token(512, 3, tasks=False) == 3 * (matmuls + 4 * 512 * 1024)
    adapters = 2 * 20 * (1024 + 3072 + 2048 + 2 * (1024 + 4096))
    assert flops_per_token(512, 1, tasks=True) == matmuls + 4 * 512 * 1024 + adapters


def test_chips_by_the_names_of_jax():
    assert [chip_of(chip.kind) for chip in CHIPS.values()] == list(CHIPS)
    assert chip_of("cpu") is None


class Compiled:
    """A program of so many layers, each with one kernel, one operation and one copy."""

    def __init__(self, layers):
        self._layers = layers

    def cost_analysis(self):
        return {"bytes accessed": 1e9 + self._layers * 2e9}

    def as_text(self):
        lines = ["\nENTRY %main (p: bf16[4,8]) -> bf16[4,8] {"]
        for i in range(self._layers):
            lines += [
                f"  %copy.{i} = bf16[4,8]{{0,1}} copy(%p)",
                f'  %own.{i} = bf16[4,8]{{1,0}} fusion(%p), x="estimated_cycles":"5000"',
                f"  %rows.{i} = bf16[4,8]{{1,0}} custom-call(%own.{i}), "
                'custom_call_target="tpu_custom_call", "cost_estimate":{"bytes_accessed":"128"}',
            ]
        return "\n".join([*lines, "}"])


def test_a_layer_is_half_of_the_difference_of_two(tmp_path):
    (tmp_path / "1-rows.0-02-final_bundles.txt").write_text("   0x0   : > { %a = b }\n" * 3000)
    options = Options("v5e", 24, "bfloat16", None, schedules=tmp_path)
    program = Program(10, 1000, 4, None, False, "mean")
    layer = per_layer(options, program, Compiled(1), Compiled(3))
    assert (layer.kb_per_token_layer, layer.kb_per_token_outside) == (200, 100)
    assert (layer.gb_outside, layer.copies_per_layer, layer.copied_mb_per_layer) == (1, 1, 64e-6)
    assert layer.memory_ms == pytest.approx(2e9 / 819e9 * 1e3)
    assert layer.matmul_ms == pytest.approx(1e4 * flops_per_token(1000, 1, False) / 197e12 * 1e3)
    assert layer.memory_ms > layer.matmul_ms
    assert layer.estimated_tokens_per_s == pytest.approx(1e4 / (49e9 / 819e9))
    assert (layer.kernels, layer.kernel_kcycles) == ({"rows": 1}, {"rows": 3})
    assert (layer.untrue_costs, layer.xla_kcycles, layer.open_loops) == ([], 5, 0)
    assert layer.static_tokens_per_s == pytest.approx(1e4 * CHIPS["v5e"].clock / (24 * 8000))


def test_rows_of_the_table():
    values = [*(1.0,) * 8, {"rows": 2.0, "one": 1.0}, [], 7.0, {"rows": 1200.0}, 0, None]
    row = Report("v6e", 32, 512, 64, True, "splash", Layer(*values), 0.5, 1.25, True, 0, {}, 9, "")
    head, ruler, cells = (
        text.strip("| ").split(" | ") for text in line(row, first=True).split("\n")
    )
    assert len(head) == len(ruler) == len(cells)
    found = dict(zip(head, cells, strict=True))
    assert (found["B x T x S"], found["tasks"], found["memory GB"]) == (
        "32 x 512 x 64",
        "yes",
        "1.25",
    )
    assert found["kernels, kcycles"] == "2 x rows 1,200, one"
    refused = row._replace(layer=None, problem="does not compile: why")
    assert line(refused, first=False).endswith("| does not compile: why |")
    assert set(refused.flat()) == set(row.flat())
    assert refused.flat()["kb_per_token_layer"] is None


needs_libtpu = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra: tpu)"
    ),
]


def run(tmp_path, *args):
    """Run the benchmark on 2 layers for v5e; return its exit status and reports."""
    output = tmp_path / "reports.json"
    command = [sys.executable, BENCHMARKS / "tpu_programs.py", "--chips", "v5e", "--layers", 2]
    command += ["--json", output, *args]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert output.exists(), done.stderr
    return done.returncode, json.loads(output.read_text())


class TestCompiled:
    pytestmark = needs_libtpu

    def test_one_chip(self, tmp_path):
        asked = ("--programs", "32x512", "--tasks", 1, "--cycles")
        status, (report,) = run(tmp_path, *asked)
        assert (status, report["problem"]) == (0, "")
        wanted = {"chip": "v5e", "rows": 32, "tokens": 512, "slots": 64, "tasks": True}
        assert report.items() >= wanted.items()
        assert report["fits"]
        assert report["float32_matmuls"] == 0
        assert report["untrue_costs"] == []
        assert report["kernel_kcycles"].keys() == report["kernels"].keys()
        assert 0.1 < report["temp_gb"] < report["memory_gb"] < 16
        # It took 62.4 KB and 40.5 when this was written, and 226 each before its kernels.
        assert 14 < report["kb_per_token_layer"] <= 80
        assert 10 < report["kb_per_token_outside"] <= 55
        assert report["copies_per_layer"] == 0
        assert report["estimated_tokens_per_s"] > 2e5
        assert report["static_tokens_per_s"] > 1e5

    @pytest.mark.parametrize("tasks", [0, 1])
    def test_mesh_of_both_axes_only_sums(self, tmp_path, tasks):
        asked = ("--programs", "64x512", "--tasks", tasks, "--data", 2, "--model", 2)
        status, (report,) = run(tmp_path, *asked, "--whole-only")
        assert report["fits"]
        assert (report["float32_matmuls"], report["collectives"]) == (0, {"all-reduce": 2})
        assert (status, report["problem"]) == (0, "")
