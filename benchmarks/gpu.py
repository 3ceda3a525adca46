r"""Throughput on an NVIDIA GPU: dense rows, 8 bits, mixed lengths, kernels, training, XLA's flags.

With 15 minutes on a GPU, in order of value:

    python benchmarks/gpu.py --sections dense profile --lengths 512 8192 32 --rounds 2 \
        --peers torch "torch compiled" --json dense.json                     # about 5 minutes
    python benchmarks/gpu.py --sections quantized --lengths 512 8192 32 --memory-fraction 0.3 \
        --rounds 2 --json quantized.json                                     # about 2 minutes
    python benchmarks/gpu.py --sections mixed --rounds 2 --json mixed.json   # 2 minutes
    python benchmarks/gpu.py --sections training attention --lengths 512 8192 32 --rounds 2 \
        --json rest.json                                                     # about 3 minutes

Without torch.compile the first takes about 3. Everything, on a CPU, small: ``--dry-run``. Rows are
printed, and written to ``--json``, as they are measured.

Each route is a process of its own, as two libraries in one would share a cuDNN; all remain loaded
(jina_jax with a fixed part of the memory), compile before they are timed, and alternate, one at a
time. Weights are random, those of the base model unless noted; 24 layers, bfloat16, 32,768 tokens
per step. jina_jax is timed from host to host through its engine; the others with inputs and outputs
on the device and no mask. Rates are medians of rounds. "Share" is relative to the faster of two
measured bf16 matmuls, 8192 x 8192 x 8192 in jax and in torch, counting 604.0 MFLOP per token and
98,304 · T for attention at 24 layers. A cell without a measurement has the reason. Texts and
vocabulary are those of ../shared (or $JINA_JAX_SHARED).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import gpu_profile
import training as training_script
from common import Peer, Reply, alternate
from gpu_jax import MIXED_COLUMNS, PACKED_ROW, TASK, TASKS, Jax
from gpu_peers import PEERS, TORCH

SECTIONS = ("dense", "quantized", "profile", "mixed", "training", "attention", "flags")
SIZES: dict[str, tuple[Any, Any]] = {  # real, dry run
    "layers": (common.FULL["layers"], 1),
    "tokens": (32768, 256),
    "lengths": ([512, 8192, 32, 128, 2048, 64, 256, 1024, 4096], [32, 64]),
    "flag_lengths": ([512, 8192], [32]),
    "profile_layers": (6, 1),
    "profile_lengths": ([512, 8192, 32], [32, 256]),
    "profile_steps": (5, 2),
    "mixed_lengths": ([32, 128, 512, 2048], [32, 64]),  # whose dense rates are interpolated
    "mixed_seconds": (100.0, 60.0),  # after which nothing more of "mixed" is started
    "budgets": ([32768], [256]),  # tokens per step, for mixed lengths
    "texts": (4096, 12),
    "longest": (2048, 64),  # tokens of a mixed text
    "training_layers": (6, 1),
    "matmul": (8192, 256),
    "seconds": (1.0, 0.02),
    "rounds": (3, 1),
    "threads": (8, 2),  # for compiling, in jina_jax
}
TARGETS = {512: 850_000, 8192: 380_000}  # tokens per second on an H200
RATIO_TARGET, MIXED_TARGET = 1.3, 0.85
OTHERS = tuple(PEERS)
WORKERS: dict[str, Callable[[SimpleNamespace], Any]] = {"jina_jax": Jax, **PEERS}
BFLOAT16, QUANTIZATIONS = "bfloat16", ("int8", "fp8")
KERNELS = ("cudnn", "cudnn_packed", "blocked")
XLA_FLAGS = (
    "xla_gpu_enable_cublaslt=true",
    "xla_gpu_enable_triton_gemm=false",
    *(f"xla_gpu_cudnn_gemm_fusion_level={level}" for level in (1, 2, 3)),
    *(f"xla_gpu_autotune_level={level}" for level in (0, 2)),
)
BASE, SCAN = "default", "scan over layers"
VARIANTS = (BASE, SCAN, *XLA_FLAGS, f"{BASE}, again")


def main() -> None:
    args = arguments()
    if args.worker:
        common.serve(lambda: WORKERS[args.worker](SimpleNamespace(**json.loads(args.settings))))
        return
    device = probe(args)
    if not (args.dry_run or device["platform"] == "gpu"):
        print("\n- ".join(["Nothing measured. This machine lacks", *lacking(device)]))
        return
    found = introduce(device, args)
    for section in args.sections:
        globals()[section](args, found)
        save(args, found)


def arguments() -> argparse.Namespace:
    """Read the command line; sizes default to the real ones, or to small ones for a dry run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--peers", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--flags", nargs="+", choices=VARIANTS, help="default: all")
    for name, (value, _) in SIZES.items():
        several = {"nargs": "+", "type": int} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", **several, help=f"default: {value}")
    parser.add_argument("--compile-mode", default="default", help="mode of torch.compile")
    parser.add_argument("--memory-fraction", default="0.45", help="memory share of jina_jax")
    parser.add_argument("--dry-run", action="store_true", help="run all paths that a CPU has")
    parser.add_argument("--json", type=Path, help="write results to this file")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, values in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.dry_run])
    args.flags = args.flags or list(VARIANTS[:2] if args.dry_run else VARIANTS)
    return args


def save(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found so far: a run may be cut off at any time."""
    if args.json:
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


class Rows:
    """A table that is printed, and saved, row by row.

    Args:
      args, found: as of ``save``.
      results: where results are appended; a part of ``found``.
      heads: of the table.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        found: dict[str, Any],
        results: list[Any],
        heads: Sequence[str],
    ):
        self._args, self._found, self._results = args, found, results
        print(common.table(heads, []), flush=True)

    def add(self, result: Any, cells: Sequence[common.Cell]) -> None:
        print("| " + " | ".join(map(common.cell, cells)) + " |", flush=True)
        self._results.append(result)
        save(self._args, self._found)


def probe(args: argparse.Namespace) -> dict[str, str]:
    """Return the device of jax, from a process of its own."""
    with open_peer("jina_jax", args) as peer:
        device = peer.ask("device")
    return {"platform": "none", "kind": device} if isinstance(device, str) else device


def open_peer(
    name: str, args: argparse.Namespace, env: dict[str, str] | None = None, **settings: Any
) -> Peer:
    """Start a worker; on a GPU jax allocates its part of the memory at once."""
    shared = ("layers", "threads", "compile_mode", "dry_run")
    settings = {**{key: getattr(args, key) for key in shared}, **settings}
    arguments = ["--worker", name, "--settings", json.dumps(settings)]
    return Peer([__file__, *arguments], {**environment(args), **(env or {})})


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the variables that every process with jax has."""
    if args.dry_run:
        return {"JAX_PLATFORMS": "cpu"}
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": args.memory_fraction}


def lacking(device: dict[str, str]) -> list[str]:
    """Return what this machine lacks for a measurement."""
    gpus = common.nvidia_gpus()
    seen = "" if gpus else "an NVIDIA GPU with its driver: nvidia-smi lists none"
    version = importlib.metadata.version("jax")
    kind = f"jax {version} runs on {device['platform']!r} ({device['kind']})"
    return [*filter(None, [seen]), f"jax with CUDA, the extra 'cuda': {kind}"]


def introduce(device: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Print versions and devices; return them as the header of the results."""
    packages = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax")
    packages += ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas")
    packages += ("torch", "triton", "transformers", "onnxruntime", "onnxruntime-gpu")
    print(common.header(*packages))
    sizes = {name: getattr(args, name) for name in SIZES}
    told = f"{args.layers} layers, bfloat16, {args.tokens} tokens per step, "
    told += f"medians of {args.rounds} alternating rounds of {args.seconds} s"
    print(f"{device['kind']}: {told}" + (" (dry run)" if args.dry_run else ""), flush=True)
    date = time.strftime("%Y-%m-%d")
    head = {"date": date, "device": device, "machine": common.machine(), "sizes": sizes}
    return {**head, "versions": common.versions("jina-jax", *packages)}


def dense(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Compare routes on rows without padding, at every length."""
    routes = {name: open_peer(name, args) for name in ("jina_jax", *args.peers)}
    print(f"\n## Dense\n\nbf16 matmul {args.matmul}³, TFLOP/s: ", end="", flush=True)
    measured: list[dict[str, Any]] = []
    try:
        matmul = matmul_rates(routes, args)
        print(", ".join(f"{name} {common.cell(value)}" for name, value in matmul.items()) + "\n")
        found["dense"] = {"matmul TFLOP/s": matmul, "tokens/s": measured}
        best = max(
            [rate for rate in matmul.values() if not isinstance(rate, str)], default=math.nan
        )
        cases = [(length, tasks, False) for length in args.lengths for tasks in TASKS[:2]]
        routes["jina_jax"].ask("compile", cases=cases, tokens=args.tokens)
        rows = Rows(args, found, measured, dense_heads(args.peers))
        for length in args.lengths:
            ready = warm_up(routes, length, args)
            rates = alternate(dense_calls(routes, length, args), args.rounds)
            result = {"T": length, **rates, "warm-up, s": ready}
            rows.add(result, dense_cells(result, best, args))
    finally:
        for route in routes.values():
            route.close()
    print_dense_targets(measured, args)


def quantized(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Compare linear layers in 8 bits with bfloat16, at every length."""
    names = [BFLOAT16, *(["int8"] if args.dry_run else QUANTIZATIONS)]
    print("\n## 8 bits\n\nTokens per second of jina_jax, without tasks.\n", flush=True)
    routes = {
        name: open_peer("jina_jax", args, quantization=None if name == BFLOAT16 else name)
        for name in names
    }
    heads = ["T", *(f"{name}, tok/s" for name in names), *(f"{own}, ratio" for own in names[1:])]
    rows = Rows(args, found, found.setdefault("quantized", []), heads)
    try:
        for length in args.lengths:
            for route in routes.values():
                route.ask("warmup", length=length, tokens=args.tokens)
            sizes = {"length": length, "tokens": args.tokens, "seconds": args.seconds}
            calls = {
                name: lambda r=route, s=sizes: r.ask("rate", **s) for name, route in routes.items()
            }
            rates = alternate(calls, args.rounds)
            base = rates[BFLOAT16]
            ratios = [percent(rates[own], base) for own in names[1:]]
            rows.add({"T": length, **rates}, [length, *rates.values(), *ratios])
    finally:
        for route in routes.values():
            route.close()


def warm_up(routes: dict[str, Peer], length: int, args: argparse.Namespace) -> dict[str, Reply]:
    """Let every route compile for a length, one after the other; return the seconds of each."""
    sizes = {"length": length, "tokens": args.tokens}
    return {
        name: route.ask("warmup", **sizes, **({"tasks": TASKS} if name == "jina_jax" else {}))
        for name, route in routes.items()
    }


def matmul_rates(routes: dict[str, Peer], args: argparse.Namespace) -> dict[str, Reply]:
    """Return the TFLOP/s of a large matmul in jax and in torch."""
    size = {"size": args.matmul, "seconds": args.seconds}
    names = ["jina_jax", *[name for name in TORCH if name in routes][:1]]
    calls = {name: lambda r=routes[name]: r.ask("matmul", **size) for name in names}
    rates = alternate(calls, args.rounds)
    return {"jax" if name == "jina_jax" else name: rate for name, rate in rates.items()}


def dense_calls(
    routes: dict[str, Peer], length: int, args: argparse.Namespace
) -> dict[str, Callable[[], Reply]]:
    """Return functions that measure each route once at a length."""
    sizes = {"length": length, "tokens": args.tokens, "seconds": args.seconds}
    calls = {name: lambda r=route: r.ask("rate", **sizes) for name, route in routes.items()}
    ours = routes["jina_jax"]
    with_tasks = {tasks: lambda t=tasks: ours.ask("rate", tasks=t, **sizes) for tasks in TASKS[1:]}
    return {"jina_jax": calls.pop("jina_jax"), **with_tasks, **calls}


def dense_heads(names: Sequence[str]) -> list[str]:
    adapters = [head for tasks in TASKS[1:] for head in (f"{tasks}, tok/s", "of without")]
    return ["T", "jina_jax tok/s", "share", *adapters, *names, "ratio to the best"]


def dense_cells(row: dict[str, Any], matmul: float, args: argparse.Namespace) -> list[common.Cell]:
    ours, theirs = row["jina_jax"], [row[name] for name in args.peers]
    share: common.Cell = None
    if not isinstance(ours, str):
        share = f"{ours * common.flops(row['T'], args.layers) / matmul / 1e12:.1%}"
    adapters = [c for tasks in TASKS[1:] for c in (row[tasks], percent(row[tasks], ours))]
    return [row["T"], ours, share, *adapters, *theirs, ratio_to_best(row, args.peers)]


def percent(rate: Reply, base: Reply) -> str | None:
    """Return a rate relative to another, if both were measured."""
    known = not (isinstance(rate, str) or isinstance(base, str))
    return f"{rate / base:.1%}" if known else None


def ratio_to_best(row: dict[str, Any], names: Sequence[str]) -> float | None:
    """Return our rate over the best other one, if both were measured."""
    theirs = [row[name] for name in names if not isinstance(row[name], str)]
    return (
        row["jina_jax"] / max(theirs) if theirs and not isinstance(row["jina_jax"], str) else None
    )


def print_dense_targets(measured: list[dict[str, Any]], args: argparse.Namespace) -> None:
    lines = [
        f"T = {row['T']}: {common.cell(row['jina_jax'])} tok/s, "
        f"target on an H200 at least {TARGETS[row['T']]:,}"
        for row in measured
        if row["T"] in TARGETS
    ]
    names = [name for name in TORCH if name in args.peers]
    ratios = {row["T"]: ratio for row in measured if (ratio := ratio_to_best(row, names))}
    if ratios:
        least = min(ratios, key=ratios.__getitem__)
        told = f"{ratios[least]:.2f} at the least (T = {least}), target {RATIO_TARGET}"
        lines.append(f"Over the best torch route: {told}")
    print("".join(f"\n- {line}" for line in lines), flush=True)


def profile(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Show the kernels of a step by time: lengths, tasks, padded and packed rows."""
    forms = [(length, packed) for length in args.profile_lengths for packed in (False, True)]
    cases = [
        {"length": length, "tasks": tasks, "packed": packed}
        for length, packed in forms
        if not packed or length < min(PACKED_ROW, args.tokens)  # others are not packed
        for tasks in TASKS
    ]
    print(f"\n## Kernels by time\n\n{args.profile_layers} layers, {args.tokens} tokens per step.")
    results = found["profile"] = []
    with open_peer("jina_jax", args, layers=args.profile_layers) as peer:
        shapes = [tuple(case.values()) for case in cases]
        peer.ask("compile", cases=shapes, tokens=args.tokens)
        for case in cases:
            result = peer.ask("profile", tokens=args.tokens, steps=args.profile_steps, **case)
            form = "packed" if case["packed"] else "padded"
            gpu_profile.print_summary(f"T = {case['length']}, {case['tasks']}, {form}", result)
            results.append({**case, "result": result})
            save(args, found)
    heads = ["T", "tasks", "rows", "ms per step", *gpu_profile.GROUPS, "others"]
    print("\n" + common.table(heads, [profile_cells(**row) for row in results]), flush=True)


def profile_cells(length: int, tasks: str, packed: bool, result: Reply) -> list[common.Cell]:
    form = "packed" if packed else "padded"
    if isinstance(result, str):
        return [length, tasks, form, result, *[None] * (len(gpu_profile.GROUPS) + 1)]
    total = result["kernels, ms"]
    known = [result["groups"].get(name, [0.0])[0] for name in gpu_profile.GROUPS]
    return [length, tasks, form, total, *known, total - sum(known)]


def mixed(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Encode real texts of log-normal lengths with several kinds of batches."""
    until = time.monotonic() + args.mixed_seconds
    print(f"\n## Mixed lengths\n\n{args.texts} texts, {TASK}, through encode; real tokens only.")
    print("Dense: the same lengths at the dense rates of one task; target: ", end="")
    print(f"at least {MIXED_TARGET:.0%} of it.")
    print("Waited: share of the time without a step in flight.\n")
    rows = Rows(args, found, found.setdefault("mixed", []), ["batches", *MIXED_COLUMNS])
    with open_peer("jina_jax", args) as peer:
        sizes = {
            "count": args.texts,
            "longest": args.longest,
            "dense_rates": one_task(peer, args, found),
        }
        for name, batching in batchings(args.budgets).items():
            replies: list[Reply] = []  # the first round compiles, before its clocks start
            while len(replies) < args.rounds and time.monotonic() < until:
                replies.append(peer.ask("mixed", batching=batching, **sizes))
            result = common.median(replies) if replies else "left out, see --mixed-seconds"
            row = {"batches": name, "rounds": len(replies), "result": result}
            rows.add(row, mixed_cells(name, result))


def one_task(
    peer: Peer, args: argparse.Namespace, found: dict[str, Any]
) -> list[tuple[int, float]]:
    """Return lengths with their dense rates, which are measured unless ``dense`` did."""
    known = {row["T"]: row["one task"] for row in found.get("dense", {}).get("tokens/s", [])}
    missing = [length for length in args.mixed_lengths if length not in known]
    cases = [(length, "one task", False) for length in missing]
    peer.ask("compile", cases=cases, tokens=args.tokens)
    sizes = {"tokens": args.tokens, "seconds": args.seconds, "tasks": "one task"}
    known |= {length: peer.ask("rate", length=length, **sizes) for length in missing}
    return sorted(pair for pair in known.items() if not isinstance(pair[1], str))


def mixed_cells(name: str, result: Reply) -> list[common.Cell]:
    if isinstance(result, str):
        return [name, result, *[None] * (len(MIXED_COLUMNS) - 1)]
    rates = {column for column in MIXED_COLUMNS if "tok/s" in column} | {"kernel"}
    pairs = [(column, result[column]) for column in MIXED_COLUMNS]
    return [name, *[value if column in rates else f"{value:.1%}" for column, value in pairs]]


def batchings(budgets: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return kinds of batches, as arguments of ``Batching``."""
    padded = {f"padded, {b}": {"token_budget": b, "packing": False} for b in budgets}
    packed = {f"packed, {b}": {"token_budget": b, "packing": True} for b in budgets}
    return {**padded, **packed}


def training(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Time a training step beside transformers + PEFT (``training.py``)."""
    print(f"\n## Training step\n\n{args.training_layers} layers of full width.\n", flush=True)
    workload = "retrieval" if args.dry_run else "retrieval, large"
    with tempfile.TemporaryDirectory() as scratch:
        training_script.write_base(Path(scratch), args.training_layers)
        rest = (workload, args.rounds, environment(args))
        compared = training_script.compare(Path(scratch), "bfloat16", *rest)
    cells, heads = [workload, "bfloat16", *compared], training_script.HEADS
    found["training"] = dict(zip(heads, cells, strict=True))
    print(common.table(heads, [cells]), flush=True)


def flags(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure jina_jax under each of XLA's flags, each in a process of its own."""
    sizes = {"tokens": args.tokens, "seconds": args.seconds}
    heads = [h for length in args.flag_lengths for h in (f"T = {length}, tok/s", "ratio")]
    print("\n## XLA flags\n")
    rows = Rows(args, found, found.setdefault("flags", []), ["", *heads])
    base: dict[int, Reply] = {}
    for name in args.flags:
        chosen = f"--{name}" if name in XLA_FLAGS else ""
        env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {chosen}".strip()}
        with open_peer("jina_jax", args, env, scan=name == SCAN) as peer:
            calls = {
                length: lambda n=length, p=peer: p.ask("rate", length=n, **sizes)
                for length in args.flag_lengths
            }
            result = alternate(calls, args.rounds)
        base = result if name == BASE else base
        rows.add({"flag": name, "tokens/s": result}, [name, *flag_cells(result, base)])


def flag_cells(result: dict[int, Reply], base: dict[int, Reply]) -> Iterator[common.Cell]:
    for length, rate in result.items():
        known = not isinstance(rate, str) and isinstance(base.get(length), float)
        yield from (rate, rate / base[length] if known else None)


def attention(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Time each attention kernel alone on the same texts, one layer."""
    print(f"\n## Attention alone\n\nDifference: largest, to blocked; packed in {PACKED_ROW}.\n")
    heads = [head for name in KERNELS for head in (f"{name}, TFLOP/s", "difference")]
    rows = Rows(args, found, found.setdefault("attention", []), ["T", *heads])
    with open_peer("jina_jax", args) as peer:
        for length in args.lengths:
            sizes = {"length": length, "tokens": args.tokens, "seconds": args.seconds}
            calls = {
                name: lambda n=name, s=sizes: peer.ask("attention", name=n, **s) for name in KERNELS
            }
            result = alternate(calls, args.rounds)
            cells = [cell for name in KERNELS for cell in attention_cells(result[name])]
            rows.add({"T": length, **result}, [length, *cells])


def attention_cells(result: Reply) -> list[common.Cell]:
    if isinstance(result, str):
        return [result, None]
    return [result["TFLOP/s"], f"{result['difference']:.1e}"]


if __name__ == "__main__":
    main()
