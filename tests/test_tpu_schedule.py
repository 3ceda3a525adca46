"""Cycles of kernels, from schedules as libtpu writes them."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tpu_schedule import Schedule, dump_to, read_schedules, schedule

# A grid of 6 - 2 rounds; in each a loop of 8 and one that ends by data. One bundle within the
# first lacks its marks, and a branch forward is no loop.
BUNDLES = """
LB: loop body
= control target key end

     0   :  { %s1_s0 = inlined_call_operand.hbm [shape: s32[1], index: 0] }
   0x1   :  { %s2_s1 = smov 0 }
   0x2 LB: > { %s3_s2 = sadd.s32 1, %s9_s2 /* iteration index, stage = 1 */ } /* Start region 9 */
   0x3   : > { %10 = sbr.rel (%p7_p1) target = $region4 }
   0x4   : > { %v1 = vld [vmem:[%s1] sm:$0xff]  ;;  %v3 = vmul /* iteration index, stage = 2 */ }
   0x5 LB: >> { %v2_v1 = vmatmul %v1 } /* Start region 5 :: Start region 6 */
   0x6   :  { %v2_v2 = vmatmul %v1 }
   0x7   : >> { %p24_p0 = scmp.ge.s32.totalorder %s27_s19, 8 /* loop exit test */ }
   0x8   : >> { %11 = sbr.rel (!%p24_p0) target = $region5 }
   0x9 LB: >> { %v3_v1 = vadd %v1 } /* Start region 7 */
   0xa   : >> { %p25_p3 = scmp.ge.s32.totalorder %s27_s19, %s28_s2 }
   0xb   : >> { %12 = sbr.rel (!%p25_p3) target = $region7 }
   0xc   : > { %p26_p1 = scmp.ge.s32.totalorder %s3_s2, 6 /* loop exit test */ }
   0xd   : > { %13 = sbr.rel (!%p26_p1) target = $region9 }
   0xe   :  { %14 = vsyncpa 1 }
"""


@pytest.mark.parametrize("rounds", [1, 16])
def test_bundles_count_as_often_as_their_loops_run(rounds):
    assert schedule(BUNDLES, rounds) == Schedule(3 + 4 * (5 + 8 * 4 + rounds * 3), 1)


def test_a_schedule_without_loops():
    assert schedule(BUNDLES.split("   0x2 LB")[0]) == Schedule(2, 0)


def test_schedules_of_wanted_kernels_are_read_and_all_files_deleted(tmp_path):
    (tmp_path / "17-rows.1-02-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-rows.1-01-schedule-analysis_final_bundles.txt").write_text("x")
    (tmp_path / "17-fusion.2-02-final_bundles.txt").write_text("x")
    assert read_schedules(tmp_path, ["rows.1", "missing.3"]) == {"rows.1": schedule(BUNDLES)}
    assert list(tmp_path.iterdir()) == []


def test_options_of_libtpu_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--one=1")
    dump_to(tmp_path)
    assert os.environ["LIBTPU_INIT_ARGS"].startswith(f"--one=1 --xla_jf_dump_to={tmp_path} ")
