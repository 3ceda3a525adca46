"""Compile programs for TPUs, without one, and report what the compiler says of them.

    pip install "jina-jax[tpu]"
    python benchmarks/tpu_programs.py                       # every bucket, v5e and v6e, one chip
    python benchmarks/tpu_programs.py --programs 32x512 4x2048 2x8192 --cycles
    python benchmarks/tpu_programs.py --data 4              # the batch over four chips
    python benchmarks/tpu_programs.py --data 1 --model 4    # tensor parallel

libtpu compiles ahead of time on any machine. A row is a program: batch B x T x S (rows, tokens,
slots per row), with tasks or without, its attention route, and

- temporaries and all memory per chip, of 24 scanned layers;
- KB per token that a layer's operations access, and all operations outside the layers: "bytes
  accessed" of a program of three layers, one after the other, less that of one layer, halved.
  Copies into the chip's own memory count, so it is an upper bound; of a Pallas kernel it is what
  the kernel declares (``untrue_costs``);
- layout copies and transposes per layer, and the megabytes that they write;
- the time of these bytes, and of the layer's arithmetic, at the chip's published peaks, in ms per
  layer; and tokens/s at best, if each layer takes the longer of the two. This is the compiler's
  estimate of a bound: nothing ran;
- with ``--cycles``, thousand cycles per layer: the compiler's own estimates of its operations, and
  of each Pallas kernel its static schedule (``tpu_schedule``); and tokens/s at that rate.

Each length is compiled at full height, which needs the most memory; ``--all-heights`` compiles the
others too. A float32 matmul is one with a float32 operand in StableHLO: bfloat16 operands with a
float32 result are right. Those within attention kernels do not count.

The exit status is 1 if a program does not compile, does not fit, multiplies float32 or has other
collectives than the mesh requires: none along data; along model two sums per layer.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import tpu_schedule  # noqa: E402
from tpu_chips import CHIPS, ENVIRONMENT, USUAL  # noqa: E402
from tpu_report import Options, Report, compile_one, line  # noqa: E402

MAX_LENGTH = 8192


def main() -> None:
    args = arguments()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit('needs libtpu: pip install "jina-jax[tpu]"')
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as scratch:
        schedules = None
        if args.cycles:
            schedules = Path(scratch)
            tpu_schedule.dump_to(schedules)
        reports = compile_all(args, schedules)
    failed = [row for row in reports if row.problem]
    print(f"\n{len(reports) - len(failed)} of {len(reports)} programs are without problems")
    sys.exit(bool(failed or not reports))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(USUAL))
    parser.add_argument(
        "--programs", nargs="+", type=program_shape, help="B x T or B x T x S, as 32x512"
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument("--route", help="attn_implementation; default: the library's choice")
    parser.add_argument("--layers", type=int, default=24, help="of the program in memory")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--lengths", type=int, nargs="+", help="default: all")
    parser.add_argument("--all-heights", action="store_true")
    parser.add_argument("--data", type=int, default=1, help="number of chips per batch")
    parser.add_argument("--model", type=int, default=1, help="number of chips per model")
    parser.add_argument("--whole-only", action="store_true", help="no figures per layer")
    parser.add_argument("--cycles", action="store_true", help="add static schedules")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of a kernel's loops that end by data, for --cycles"
    )
    parser.add_argument("--json", type=Path, help="write results to this file")
    return parser.parse_args()


def program_shape(text: str) -> tuple[int, int, int]:
    """Read B x T, packed, or B x T x S."""
    from jina_jax.runtime.batching import packed_slots

    try:
        rows, tokens, *rest = map(int, text.split("x"))
        slots = rest.pop() if rest else packed_slots(tokens)
        if rest or min(rows, tokens, slots) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected B x T or B x T x S, got {text!r}") from None
    return rows, tokens, slots


def compile_all(args: argparse.Namespace, schedules: Path | None) -> list[Report]:
    """Compile and print every program for every chip."""
    import common

    print(common.header("jax", "jaxlib", "libtpu"))
    print(f"{args.layers} layers, {args.dtype}, data {args.data} x model {args.model}\n")
    reports: list[Report] = []
    for chip, (rows, tokens, slots), tasks in itertools.product(
        args.chips, chosen_shapes(args), map(bool, args.tasks)
    ):
        options = Options(
            *(chip, args.layers, args.dtype, args.route, args.data, args.model),
            schedules=schedules,
            rounds=args.rounds,
            whole_only=args.whole_only,
        )
        reports.append(compile_one(options, rows, tokens, slots, tasks))
        print(line(reports[-1], first=len(reports) == 1), flush=True)
        if args.json:
            found = [row.flat() for row in reports]
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return reports


def chosen_shapes(args: argparse.Namespace) -> Iterator[tuple[int, int, int]]:
    """Yield B, T and S of the programs to compile."""
    from jina_jax.runtime.batching import DEFAULTS, shapes

    found = args.programs or shapes(DEFAULTS["tpu"], MAX_LENGTH, args.data)
    highest = {length: rows for rows, length, _ in sorted(found)}
    for rows, length, slots in found:
        asked = not args.lengths or length in args.lengths
        if asked and (args.programs or args.all_heights or rows == highest[length]):
            yield rows, length, slots


if __name__ == "__main__":
    main()
