"""Compile a step for an H100, without one, and report the memory that a layer touches.

    pip install "jina-jax[cuda]"
    python benchmarks/gpu_programs.py              # padded and packed, with and without tasks
    python benchmarks/gpu_programs.py --list 40    # the kernels of each program, too
    python benchmarks/gpu_programs.py --quantization fp8

XLA compiles ahead of time from a description of the GPU. Layouts, fusions and kernels are those of
a profile on a GPU; nothing is autotuned, so which library multiplies matrices is arbitrary. A
figure per layer is that of a program of three layers less that of one, halved. Bytes are those of
results and operands of every kernel, as if each were read and written once; "sliced" counts of
operands that a kernel slices the slices alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}

# NVIDIA H100 80GB HBM3, in the form of XLA's GpuTargetConfigProto. Without a runtime version XLA
# takes cuBLAS for one that does not multiply float8.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
  runtime_version: "12.9.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_CUDNN = 91900

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
_TYPE = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(.*)")
_NO_KERNEL = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


class Kernel(NamedTuple):
    """One kernel of a program.

    Attributes:
      name: of its instruction.
      bytes: of its result and operands.
      sliced: the same, but only the slices of operands of which it reads no more.
      source: the JAX operation.
    """

    name: str
    bytes: int
    sliced: int
    source: str


class Report(NamedTuple):
    """Figures of a layer in one program; keys of the JSON output."""

    rows: int
    tokens: int
    tasks: bool
    attention: str
    gb_per_layer: float
    gb_sliced_per_layer: float
    kernels_per_layer: float
    transposes_per_layer: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--attention", nargs="+", default=["cudnn", "cudnn_packed"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=("int8", "fp8"))
    parser.add_argument("--list", type=int, default=0, help="number of kernels to list")
    parser.add_argument("--json", type=Path, help="write results to this file")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    import common

    print(common.header("jax", "jaxlib"))
    print("\n| rows x tokens | attention | tasks | GB per layer | sliced | kernels | transposes |")
    print("|---|---|---|---:|---:|---:|---:|")
    reports = []
    for attention in args.attention:
        for tasks in map(bool, args.tasks):
            kind = (args.dtype, args.quantization)
            own, kernels = report(args.rows, args.tokens, tasks, attention, *kind)
            reports.append(own)
            print(
                f"| {own.rows} x {own.tokens} | {attention} | {tasks} | {own.gb_per_layer:.2f} "
                f"| {own.gb_sliced_per_layer:.2f} | {own.kernels_per_layer:g} "
                f"| {own.transposes_per_layer:g} |",
                flush=True,
            )
            for kernel in kernels[: args.list]:
                print(f"    {kernel.bytes / 1e6:6.0f} MB  {kernel.name:40} {kernel.source[-60:]}")
    if args.json:
        args.json.write_text(json.dumps([own._asdict() for own in reports], indent=1) + "\n")


def report(
    rows: int,
    tokens: int,
    tasks: bool,
    attention: str,
    dtype: str = "bfloat16",
    quantization: str | None = None,
) -> tuple[Report, list[Kernel]]:
    """Compile programs of one layer and of three, and compare their kernels.

    Returns:
      The report, and the kernels of the longer program in their order.
    """
    one, three = (
        kernels(compile_step(layers, rows, tokens, tasks, attention, dtype, quantization))
        for layers in (1, 3)
    )

    def per_layer(measure) -> float:
        return (measure(three) - measure(one)) / 2

    return Report(
        *(rows, tokens, tasks, attention),
        gb_per_layer=per_layer(lambda own: sum(kernel.bytes for kernel in own)) / 1e9,
        gb_sliced_per_layer=per_layer(lambda own: sum(kernel.sliced for kernel in own)) / 1e9,
        kernels_per_layer=per_layer(len),
        transposes_per_layer=per_layer(lambda own: sum(map(is_transpose, own))),
    ), three


def compile_step(
    layers: int,
    rows: int,
    tokens: int,
    tasks: bool,
    attention: str,
    dtype: str,
    quantization: str | None = None,
) -> str:
    """Return the optimised HLO of a step at full width."""
    from jax.experimental import topologies
    from published import FULL, published_config

    from jina_jax.config import Config
    from jina_jax.runtime.engine import Engine, Program
    from jina_jax.runtime.sharding import abstract_state, make_mesh

    _assume_cudnn()
    more = {"default_prompt": "", "add_pooling_layer": False, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config({**FULL, "layers": layers}), **more})
    topology = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1")
    mesh = make_mesh(1, topology.devices[:1])
    state = abstract_state(config, dtype, mesh, scan_layers=False, quantization=quantization)
    engine = Engine(config, state, mesh=mesh, attn_implementation=attention)
    places = 16 if attention == "cudnn_packed" else 1
    lowered = engine.lower(Program(rows, tokens, places, None, tasks, "mean"))
    return lowered.compile(compiler_options={"xla_gpu_autotune_level": 0}).as_text()


def _assume_cudnn() -> None:
    """Answer jax's questions about the GPU that is not here."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    fused.check_cudnn_version = lambda *args, **kwargs: _CUDNN
    fused.check_compute_capability = lambda *args, **kwargs: True
    fused.is_cuda_compute_capability_equal = lambda *args, **kwargs: False


def kernels(hlo: str) -> list[Kernel]:
    """List the kernels of optimised HLO, in the order of execution."""
    sizes: dict[str, int] = {}
    found = []
    for line in hlo[hlo.index("ENTRY") :].splitlines():
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, operation, operands, rest = match.groups()
        sizes[name] = size(result)
        if operation in _NO_KERNEL:
            continue
        read = [sizes.get(operand.strip().lstrip("%"), 0) for operand in operands.split(",")]
        fused = re.search(r"calls=%([\w.\-]+)", rest)
        slices = _slices(hlo, fused[1]) if fused else {}
        sliced = sum(min(slices.get(number, own), own) for number, own in enumerate(read))
        source = re.search(r'op_name="([^"]*)"', rest)
        found.append(
            Kernel(name, sizes[name] + sum(read), sizes[name] + sliced, source[1] if source else "")
        )
    return found


def _slices(hlo: str, computation: str) -> dict[int, int]:
    """Return the bytes of each operand of a fusion that is only sliced, by its number."""
    start = hlo.index(f"\n%{computation} ")
    body = [_INSTRUCTION.match(line) for line in hlo[start : hlo.index("\n}", start)].splitlines()]
    instructions = [match.groups() for match in body if match]

    def values_read(name: str) -> int | None:
        """Count the values in slices of an array; None if it is used as a whole."""
        total = 0
        for user, result, operation, operands, _ in instructions:
            if name not in re.findall(r"[\w.\-]+", operands):
                continue
            own = None
            if operation == "slice":
                own = count(result)
            elif operation in ("bitcast", "convert"):
                own = values_read(user)
            if own is None:
                return None
            total += own
        return total

    found = {}
    for name, result, operation, number, _ in instructions:
        values = values_read(name) if operation == "parameter" else None
        if values is not None:
            found[int(number)] = values * size(result) // max(count(result), 1)
    return found


def count(types: str) -> int:
    """Return the number of values in the arrays of an HLO type."""
    return sum(
        math.prod(int(own) for own in dimensions.split(",") if own)
        for _, dimensions in _TYPE.findall(types)
    )


def size(types: str) -> int:
    """Return the bytes of the arrays in an HLO type."""
    return sum(_BYTES.get(name, 1) * count(f"{name}[{own}]") for name, own in _TYPE.findall(types))


def is_transpose(kernel: Kernel) -> bool:
    """Return whether a kernel only moves values to another layout."""
    return "transpose" in kernel.name or kernel.name.startswith("copy")


if __name__ == "__main__":
    main()
