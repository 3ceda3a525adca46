"""Programs compiled for TPUs ahead of time, in reduced form, and what is read off them."""

import importlib.util
import json
import subprocess
import sys
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

from tpu_programs import (  # noqa: E402
    count_collectives,
    count_copies,
    float32_matmuls,
    unwanted,
)

STABLEHLO = """
%5 = stablehlo.dot_general %3, %4, contracting_dims = [1] x [0] : (tensor<8x4xbf16>, tensor<4x2xbf16>) -> tensor<8x2xf32>
%6 = stablehlo.dot_general %5, %4, contracting_dims = [1] x [0] : (tensor<8x2xf32>, tensor<2x2xf32>) -> tensor<8x2xf32>
%7 = stablehlo.convolution(%5, %6) dim_numbers = [b, f]x[i, o]->[b, f], window = {} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<8x2xf32>, tensor<2x2xf32>) -> tensor<8x2xf32>
%8 = stablehlo.add %5, %6 : tensor<8x2xf32>
"""  # noqa: E501
# As the TPU compiler writes them: tiles in the layouts, tuples, memory spaces.
HLO = """
  %copy.1 = bf16[8,4]{0,1:T(8,128)(2,1)} copy(%p.0), sharding={replicated}
  %transpose.2 = f32[4,8]{1,0:T(8,128)} transpose(%copy.1), dimensions={1,0}, metadata={op_name="x"}
  %transpose.3 = f32[4,8]{1,0:T(8,128)} transpose(%p.1), dimensions={0,1}, metadata={op_name="x"}
  %copy.4 = pred[]{:T(128)} copy(%p.2)
  %copy-start.5 = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%p.3)
  %copy-done.5 = f32[8]{0:T(128)S(1)} copy-done(%copy-start.5)
  %all-reduce.6 = (f32[8]{0:T(128)}, bf16[8,4]{1,0}) all-reduce(%x, %y), channel_id=1
  %get-tuple-element.7 = f32[8]{0:T(128)} get-tuple-element(%all-reduce.6), index=0
  %all-reduce-start = f32[8]{0} all-reduce-start(%x), to_apply=%add
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)
  %ag = f32[16]{0} all-gather(%x), dimensions={0}
  %ra = f32[16]{0} ragged-all-to-all(%x)
  %f = f32[8]{0} fusion(%copy.1), kind=kLoop
"""


def test_only_float32_operands_count():
    assert float32_matmuls(STABLEHLO) == 2


@pytest.mark.parametrize("tokens", [16, 256])
def test_float32_encoders_are_told_from_others(tokens):
    fields = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config(SMALL), **fields})
    mesh = make_mesh(devices=jax.devices()[:1])
    for dtype in ("float32", "bfloat16"):
        state = abstract_state(config, dtype, mesh, scan_layers=True)
        engine = Engine(config, state, mesh=mesh, scan_layers=True)
        text = engine.lower(Program(2, tokens, 2, None, True, "mean")).as_text()
        matmuls = text.count("stablehlo.dot_general ")
        assert matmuls > 10
        assert float32_matmuls(text) == (matmuls if dtype == "float32" else 0)


def test_copies_and_collectives():
    assert count_copies(HLO) == (3, 64 + 128 + 1)
    found = {"all-gather": 1, "all-reduce": 2, "ragged-all-to-all": 1}
    assert count_collectives(HLO) == found


def test_collectives_that_no_mesh_calls_for():
    assert unwanted({}, 1) == unwanted({"all-reduce": 2}, 4) == []
    assert unwanted({"all-reduce": 2}, 1) == ["2 all-reduce, expected 0"]
    assert unwanted({"all-gather": 1, "all-reduce": 3}, 2) == [
        "1 all-gather, expected 0",
        "3 all-reduce, expected 2",
    ]
    assert unwanted({}, 2) == ["0 all-reduce, expected 2"]


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
    return done.returncode, json.loads(output.read_text())


class TestCompiled:
    pytestmark = needs_libtpu

    def test_one_chip(self, tmp_path):
        status, (short, long) = run(tmp_path, "--lengths", 256, 1024)
        assert status == 0
        assert (short["kernel"], long["kernel"]) == ("pallas", "pallas")
        assert (short["shape"], long["shape"]) == ("64 x 256 x 32", "16 x 1024 x 1")
        assert 0.5 < short["memory_gb"] < 16
        assert short["float32_matmuls"] == long["float32_matmuls"] == 0

    def test_mesh_of_both_axes_only_sums(self, tmp_path):
        status, (report,) = run(tmp_path, "--lengths", 512, "--data", 2, "--model", 2)
        assert (status, report["collectives"]) == (0, {"all-reduce": 2})
        assert report["shape"] == "64 x 512 x 64"
