"""Compile the programs of every bucket for TPUs, without one.

    pip install "jina-jax[tpu]"
    python benchmarks/tpu_programs.py                      # v5e and v6e, one chip, 24 layers
    python benchmarks/tpu_programs.py --data 4             # the batch over four chips
    python benchmarks/tpu_programs.py --data 1 --model 4   # tensor parallel

libtpu compiles ahead of time on any machine. A row is a program: batch B x T x S (rows, tokens,
slots per row), its attention kernel, memory per chip (arguments, results, temporaries), bytes that
its operations access, layout copies and transposes, the bytes that these write, float32 matmuls and
collectives. Operations of the scanned layer, or of another loop, count once. Each length is
compiled at full height, which needs the most memory; ``--all-heights`` compiles the others too.

A float32 matmul is one with a float32 operand in StableHLO: bfloat16 operands with a float32 result
are right. Those within attention kernels do not count.

The exit status is 1 if a program does not compile, does not fit, multiplies float32 or has other
collectives than the mesh requires: none along data; along model two sums per layer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

CHIPS = {"v5e": 16e9, "v6e": 32e9}  # bytes of memory per chip
TOPOLOGY = "2x2"
MAX_LENGTH = 8192
# Otherwise libtpu looks for a TPU's machine, and for the only process that may use it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_DOT = re.compile(r"stablehlo\.(?:dot_general|dot|convolution)\b.*: \(([^)]*)\) ->")
# Bits of the type, dimensions, and their order in a transpose. Prefetches, copy-start, keep the
# layout and are ignored.
_COPY = re.compile(
    r" = [a-z]+(\d*)\w*\[([\d,]*)\]\S* (?:copy\(|transpose\(.*dimensions=\{([\d,]*)\})"
)
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast|send|recv)(?:-start)?\("
)
# Tensor parallelism: after the second matmul of each pair.
_SUMS_PER_LAYER = 2


class Report(NamedTuple):
    """The report of one compiled program.

    Attributes:
      chip, shape, kernel: the program.
      seconds: time to compile.
      memory_gb, accessed_gb: gigabytes per chip.
      copies, copied_gb: layout copies and transposes, and the bytes that they write.
      float32_matmuls, collectives: numbers of operations; collectives by name.
      problem: the reason why the program is unusable, or "".
    """

    chip: str
    shape: str
    kernel: str
    seconds: float
    memory_gb: float
    accessed_gb: float
    copies: int
    copied_gb: float
    float32_matmuls: int
    collectives: dict[str, int]
    problem: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--lengths", type=int, nargs="+", help="default: all")
    parser.add_argument("--all-heights", action="store_true")
    parser.add_argument("--data", type=int, default=1, help="number of chips per batch")
    parser.add_argument("--model", type=int, default=1, help="number of chips per model")
    parser.add_argument("--no-tasks", dest="tasks", action="store_false")
    parser.add_argument("--json", type=Path, help="write results to this file")
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit('needs libtpu: pip install "jina-jax[tpu]"')
    os.environ.update(ENVIRONMENT)
    import common

    print(common.header("jax", "jaxlib", "libtpu"))
    print(f"{args.layers} layers, {args.dtype}, data {args.data} x model {args.model}, ", end="")
    print("with tasks\n" if args.tasks else "without tasks\n")
    reports = []
    for row in compile_all(args):
        reports.append(row)
        print(line(row, first=len(reports) == 1), flush=True)
    if args.json:
        args.json.write_text(json.dumps([row._asdict() for row in reports], indent=1) + "\n")
    failed = [row for row in reports if row.problem]
    print(f"\n{len(reports) - len(failed)} of {len(reports)} programs are without problems")
    sys.exit(bool(failed or not reports))


def compile_all(args) -> Iterator[Report]:
    """Compile every program for every chip."""
    from jina_jax.runtime.batching import DEFAULTS, shapes
    from jina_jax.runtime.engine import Program

    found = shapes(DEFAULTS["tpu"], MAX_LENGTH, args.data)
    highest = {length: rows for rows, length, _ in sorted(found)}
    for chip in args.chips:
        engine = make_engine(chip, args)
        for rows, length, places in found:
            if args.lengths and length not in args.lengths:
                continue
            if args.all_heights or rows == highest[length]:
                program = Program(rows, length, places, None, args.tasks, "mean")
                yield compile_one(chip, engine, program)


def make_engine(chip: str, args) -> Any:
    """Return an engine of abstract weights on a topology's chips."""
    from jax.experimental import topologies
    from published import FULL, published_config

    from jina_jax.config import Config
    from jina_jax.runtime.engine import Engine
    from jina_jax.runtime.sharding import abstract_state, make_mesh

    more = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config({**FULL, "layers": args.layers}), **more})
    topology = topologies.get_topology_desc(f"{chip}:{TOPOLOGY}", "tpu")
    mesh = make_mesh(args.model, topology.devices[: args.data * args.model])
    state = abstract_state(config, args.dtype, mesh, scan_layers=True)
    return Engine(config, state, mesh=mesh, scan_layers=True)


def compile_one(chip: str, engine: Any, program: Any) -> Report:
    """Compile one program and report on it."""
    start = time.perf_counter()
    try:
        lowered = engine.lower(program)
        compiled = lowered.compile()
    except Exception as error:  # the compiler's refusal is the result
        reason = f"does not compile: {str(error).splitlines()[0][:200]}"
        seconds, kernel = time.perf_counter() - start, engine.choose_kernels(program).name
        return Report(chip, shape(program), kernel, seconds, 0, 0, 0, 0, 0, {}, reason)
    found = report(chip, engine, program, lowered, compiled)
    return found._replace(seconds=time.perf_counter() - start)


def report(chip: str, engine: Any, program: Any, lowered: Any, compiled: Any) -> Report:
    """Return the report of a program, lowered and compiled."""
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    accessed = compiled.cost_analysis().get("bytes accessed", 0.0)
    text = compiled.as_text()
    copies, copied = count_copies(text)
    matmuls, collectives = float32_matmuls(lowered.as_text()), count_collectives(text)
    problems = [f"{matmuls} float32 matmuls"] if matmuls else []
    problems += [f"needs {size / 1e9:.1f} GB"] if size > CHIPS[chip] else []
    problems += unwanted(collectives, engine.mesh.shape["model"])
    kernel = engine.choose_kernels(program).name
    return Report(
        *(chip, shape(program), kernel, 0.0, size / 1e9, accessed / 1e9),
        *(copies, copied / 1e9, matmuls, collectives, "; ".join(problems)),
    )


def shape(program: Any) -> str:
    """Format B x T x S."""
    return f"{program.rows} x {program.tokens} x {program.places}"


def float32_matmuls(stablehlo: str) -> int:
    """Count matmuls and convolutions with a float32 operand."""
    operands = (match[1] for match in map(_DOT.search, stablehlo.splitlines()) if match)
    return sum("xf32>" in types for types in operands)


def count_copies(hlo: str) -> tuple[int, int]:
    """Count copies and transposes in optimised HLO, and the bytes that they write."""
    found = [(bits, _numbers(dims), _numbers(order)) for bits, dims, order in _COPY.findall(hlo)]
    # A transpose may keep the order of its axes; a type without bits is pred, of one byte.
    sizes = [
        int(bits or 8) * math.prod(dims) // 8
        for bits, dims, order in found
        if not order or order != sorted(order)
    ]
    return len(sizes), sum(sizes)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def count_collectives(hlo: str) -> dict[str, int]:
    """Count collective operations in optimised HLO, by name."""
    names = _COLLECTIVE.findall(hlo)
    return {name: names.count(name) for name in sorted(set(names))}


def unwanted(collectives: dict[str, int], model: int) -> list[str]:
    """Describe differences from the collectives that ``model`` chips with shared weights need."""
    wanted = {"all-reduce": _SUMS_PER_LAYER} if model > 1 else {}
    return [
        f"{collectives.get(name, 0)} {name}, expected {wanted.get(name, 0)}"
        for name in sorted(collectives.keys() | wanted.keys())
        if collectives.get(name, 0) != wanted.get(name, 0)
    ]


def line(row: Report, *, first: bool) -> str:
    """Return a row of the table, after the header if it is the first."""
    heads = ["chip", "B x T x S", "attention", "compile s", "memory GB", "accessed GB"]
    heads += ["copies", "copied GB", "float32 matmuls", "collectives", "problem"]
    collectives = ", ".join(f"{n} {name}" for name, n in row.collectives.items()) or "none"
    cells = [row.chip, row.shape, row.kernel, f"{row.seconds:.0f}"]
    cells += [f"{row.memory_gb:.2f}", f"{row.accessed_gb:.1f}"]
    cells += [str(row.copies), f"{row.copied_gb:.2f}", str(row.float32_matmuls)]
    cells += [collectives, row.problem or "none"]
    rows = ([heads, ["---"] * len(heads)] if first else []) + [cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
