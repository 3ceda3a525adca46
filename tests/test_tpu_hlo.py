"""What is read off the text of programs for TPUs, on snippets as the compiler writes them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tpu_hlo import (
    array_bytes,
    count_collectives,
    count_copies,
    estimated_cycles,
    float32_matmuls,
    pallas_calls,
    untrue_costs,
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
# Two calls of one kernel, which reads an array by two operands, also by other names, and one of a
# kernel of jax. Its metadata breaks the line.
PALLAS = """
%fused (q.0: bf16[8,4]) -> bf16[8,4] {
  ROOT %add.1 = bf16[8,4]{1,0} add(%q.0, %q.0), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main.9 (p.0: bf16[8,384], p.1: s32[8]) -> f32[2,8] {
  %p.0 = bf16[8,384]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[8]{0:T(128)} parameter(1)
  %fusion.1 = bf16[8,384]{1,0} fusion(%p.0), calls=%fused, backend_config={"window_config":{"estimated_cycles":"40","iteration_bounds":[]}}
  %rows.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%p.0, %p.0, /*index=2*/%p.1), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[8,384]{1,0}, bf16[8,384]{1,0}, s32[8]{0}}, frontend_attributes={kernel_metadata={}}, backend_config={"custom_call_config":{"body":"TUzvUg==","cost_estimate":{"flops":"7","transcendentals":"0","bytes_accessed":"DECLARED","remote_bytes_transferred":"0"},"needs_layout_passes":true}}
  %bitcast.1 = bf16[8,384]{1,0} bitcast(%fusion.1)
  %bitcast.2 = bf16[8,384]{1,0} bitcast(%bitcast.1)
  %rows.2 = bf16[8,128]{1,0} custom-call(%bitcast.1, %bitcast.2, %p.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"8224"}}}
  %splash_mha.1 = (f32[2,8]{1,0}, bf16[8,128]{1,0}) custom-call(%rows.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, backend_config={"custom_call_config":{"body":"TUzvUg=="}}
  %other.3 = bf16[8]{0} custom-call(%rows.1), custom_call_target="ConcatBitcast", backend_config={"estimated_cycles":"2"}
  ROOT %get-tuple-element.4 = f32[2,8]{1,0} get-tuple-element(%splash_mha.1), index=0
}
"""  # noqa: E501
ARRAYS = 8 * 384 * 2 + 8 * 4 + 8 * 128 * 2


def test_only_float32_operands_count():
    assert float32_matmuls(STABLEHLO) == 2


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


def test_sizes_of_arrays():
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[5]{0}, f32[], s8[4])") == 25


def test_calls_of_pallas_kernels():
    first, second, foreign = pallas_calls(PALLAS.replace("DECLARED", str(ARRAYS)))
    assert (first.name, first.kernel, foreign.kernel) == ("rows.1", "rows", "splash_mha")
    assert first.signature == "rows(bf16[8,384], bf16[8,384], s32[8]) -> bf16[8,128]"
    assert second.signature == first.signature
    assert (first.declared, first.touched) == (ARRAYS, ARRAYS)
    assert (foreign.declared, foreign.touched) == (None, 2 * 8 * 4 + 2 * 8 * 128 * 2)


@pytest.mark.parametrize("declared", [ARRAYS, ARRAYS - 8 * 4])
def test_costs_that_are_true(declared):
    assert untrue_costs(PALLAS.replace("DECLARED", str(declared))) == []


def test_costs_that_are_not():
    thrice = ARRAYS + 8 * 384 * 2
    assert untrue_costs(PALLAS.replace("DECLARED", str(thrice))) == [
        f"rows.1 declares {thrice} bytes, touches {ARRAYS}"
    ]
    none = PALLAS.replace('"cost_estimate":{"flops"', '"no_estimate":{"flops"')
    assert untrue_costs(none) == [f"rows.1 declares no cost, it touches {ARRAYS} bytes"]


def test_estimates_are_those_of_the_entry():
    assert estimated_cycles(PALLAS) == 40 + 2
