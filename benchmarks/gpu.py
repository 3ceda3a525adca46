"""Throughput on an NVIDIA GPU: dense rows, mixed lengths, XLA's flags, attention alone.

    python benchmarks/gpu.py --json gpu.json             # 24 layers, bfloat16, 32,768 tokens per
    step python benchmarks/gpu.py --sections dense --lengths 512 8192 python benchmarks/gpu.py
    --dry-run                   # every path once on a CPU, small

Each route is a process of its own, as two libraries in one would share a cuDNN; all remain loaded
(jina_jax with a fixed part of the memory) and alternate, one at a time. Weights are random, those
of the base model unless noted. jina_jax is timed from host to host through its engine; the others
with inputs and outputs on the device and no mask. Rates are medians of rounds. "Share" is relative
to the faster of two measured bf16 matmuls, 8192 x 8192 x 8192 in jax and in torch, counting 604.0
MFLOP per token and 98,304 · T for attention at 24 layers. A cell without a measurement has the
reason. Texts and vocabulary are those of ../shared (or $JINA_JAX_SHARED).
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import numpy as np
import peers
from common import Peer, Reply, alternate, per_call
from peers import Missing, needs

SECTIONS = ("dense", "mixed", "flags", "attention")
SIZES: dict[str, tuple[Any, Any]] = {  # real, dry run
    "layers": (common.FULL["layers"], 1),
    "tokens": (32768, 256),
    "lengths": ([32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], [32, 64]),
    "flag_lengths": ([512, 8192], [32]),
    "budgets": ([8192, 16384, 32768, 65536], [128, 256, 512]),  # for mixed lengths
    "texts": (8192, 12),
    "matmul": (8192, 256),
    "seconds": (1.0, 0.02),
    "rounds": (3, 1),
    "threads": (4, 2),  # for compiling, in jina_jax
}
TARGETS = {512: 850_000, 8192: 380_000}  # tokens per second on an H200
RATIO_TARGET, MIXED_TARGET = 1.3, 0.85
TORCH = ("torch", "torch compiled")
OTHERS = (*TORCH, "onnxruntime")
KERNELS = ("cudnn", "cudnn_packed", "blocked")
PACKED_ROW = 2048
TASK = "text-matching"
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
        found[section] = globals()[section](args, found)
        if args.json:  # after every section: a long run may be interrupted
            args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line; sizes default to the real ones, or to small ones for a dry run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--peers", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--flags", nargs="+", choices=VARIANTS, default=list(VARIANTS))
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
    return args


def probe(args: argparse.Namespace) -> dict[str, str]:
    """Return the device of jax, from a process of its own."""
    with open_peer("jina_jax", args) as peer:
        device = peer.ask("device")
    return {"platform": "none", "kind": device} if isinstance(device, str) else device


def open_peer(
    name: str, args: argparse.Namespace, env: dict[str, str] | None = None, **settings: Any
) -> Peer:
    """Start a worker; on a GPU jax allocates its part of the memory at once."""
    settings |= {
        key: getattr(args, key) for key in ("layers", "threads", "compile_mode", "dry_run")
    }
    place = {"XLA_PYTHON_CLIENT_MEM_FRACTION": args.memory_fraction}
    if args.dry_run:
        place = {"JAX_PLATFORMS": "cpu"}
    arguments = ["--worker", name, "--settings", json.dumps(settings)]
    return Peer([__file__, *arguments], {**place, **(env or {})})


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


def dense(args: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Compare routes on rows without padding, at every length."""
    routes = {name: open_peer(name, args) for name in ("jina_jax", *args.peers)}
    measured: list[dict[str, Any]] = []
    try:
        matmul = matmul_rates(routes, args)
        ahead = {"lengths": args.lengths, "tokens": args.tokens, "cases": [False, True]}
        routes["jina_jax"].ask("compile", **ahead)
        for length in args.lengths:
            rates = alternate(dense_calls(routes, length, args), args.rounds)
            measured.append({"T": length, **rates})
            print(measured[-1], file=sys.stderr, flush=True)
    finally:
        for route in routes.values():
            route.close()
    best = max([rate for rate in matmul.values() if not isinstance(rate, str)], default=math.nan)
    heads = ["T", "jina_jax tok/s", "share", "with adapters", *args.peers, "ratio to the best"]
    rows = [dense_row(row, best, args) for row in measured]
    told = ", ".join(f"{name} {common.cell(value)}" for name, value in matmul.items())
    print(f"\n## Dense\n\nbf16 matmul {args.matmul}³, TFLOP/s: {told}\n")
    print(common.table(heads, rows))
    print_dense_targets(measured, args)
    return {"matmul TFLOP/s": matmul, "tokens/s": measured}


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
    return {**calls, "with adapters": lambda: ours.ask("rate", adapted=True, **sizes)}


def dense_row(row: dict[str, Any], matmul: float, args: argparse.Namespace) -> list[common.Cell]:
    ours, theirs = row["jina_jax"], [row[name] for name in args.peers]
    share: common.Cell = None
    if not isinstance(ours, str):
        share = f"{ours * common.flops(row['T'], args.layers) / matmul / 1e12:.1%}"
    ratio = ratio_to_best(row, args.peers)
    return [row["T"], ours, share, row["with adapters"], *theirs, ratio]


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
    print("\n" + "\n".join(f"- {line}" for line in lines), flush=True)


def mixed(args: argparse.Namespace, found: dict[str, Any]) -> Reply:
    """Encode real texts of log-normal lengths with several kinds of batches."""
    sizes = {"tokens": args.tokens, "seconds": args.seconds, "adapted": True}
    with open_peer("jina_jax", args) as peer:
        known = {
            row["T"]: row["with adapters"] for row in found.get("dense", {}).get("tokens/s", [])
        }
        missing = [length for length in args.lengths if length not in known]
        peer.ask("compile", lengths=missing, tokens=args.tokens, cases=[True])
        known |= {length: peer.ask("rate", length=length, **sizes) for length in missing}
        dense_rates = [pair for pair in known.items() if not isinstance(pair[1], str)]
        calls = {
            name: lambda b=batching: peer.ask(
                "mixed", count=args.texts, batching=b, dense_rates=dense_rates
            )
            for name, batching in batchings(args.budgets).items()
        }
        results = alternate(calls, args.rounds)
    print(f"\n## Mixed lengths\n\n{args.texts} texts, {TASK}, through encode; real tokens only.")
    print("Dense: the same lengths at the dense rates; target: ", end="")
    print(f"at least {MIXED_TARGET:.0%} of it.\n")
    print(common.table(["batches", *MIXED_COLUMNS], [mixed_row(*pair) for pair in results.items()]))
    print(end="", flush=True)
    return results


MIXED_COLUMNS = (
    *("tok/s", "of dense", "padding", "without tokenising, tok/s", "of dense, without tokenising"),
    *("tokenising alone, tok/s", "kernel"),
)


def mixed_row(name: str, result: Reply) -> list[common.Cell]:
    if isinstance(result, str):
        return [name, result, *[None] * (len(MIXED_COLUMNS) - 1)]
    values = [result[column] for column in MIXED_COLUMNS]
    shares = {column for column in MIXED_COLUMNS if column.startswith("of ")} | {"padding"}
    pairs = zip(MIXED_COLUMNS, values, strict=True)
    return [name, *[f"{value:.1%}" if column in shares else value for column, value in pairs]]


def batchings(budgets: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return kinds of batches, as arguments of ``Batching``."""
    row = min(PACKED_ROW, max(budgets))
    padded = {f"padded, {b}": {"token_budget": b} for b in budgets}
    packed = {
        f"packed in {row}, {b}": {"token_budget": b, "row_lengths": [row]}
        for b in budgets
        if b >= row
    }
    return {**padded, **packed}


def flags(args: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Measure jina_jax under each of XLA's flags, each in a process of its own."""
    results = {}
    sizes = {"tokens": args.tokens, "seconds": args.seconds}
    for name in args.flags:
        chosen = f"--{name}" if name in XLA_FLAGS else ""
        env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {chosen}".strip()}
        with open_peer("jina_jax", args, env, scan=name == SCAN) as peer:
            calls = {
                length: lambda n=length, p=peer: p.ask("rate", length=n, **sizes)
                for length in args.flag_lengths
            }
            results[name] = alternate(calls, args.rounds)
        print(name, results[name], file=sys.stderr, flush=True)
    base = results.get(BASE, {})
    rows = [[name, *flag_cells(result, base)] for name, result in results.items()]
    heads = [h for length in args.flag_lengths for h in (f"T = {length}, tok/s", "ratio")]
    print(f"\n## XLA flags\n\n{common.table(['', *heads], rows)}", flush=True)
    return results


def flag_cells(result: dict[int, Reply], base: dict[int, Reply]) -> Iterator[common.Cell]:
    for length, rate in result.items():
        known = not isinstance(rate, str) and isinstance(base.get(length), float)
        yield from (rate, rate / base[length] if known else None)


def attention(args: argparse.Namespace, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Time each attention kernel alone on the same texts, one layer."""
    results = []
    with open_peer("jina_jax", args) as peer:
        for length in args.lengths:
            sizes = {"length": length, "tokens": args.tokens, "seconds": args.seconds}
            calls = {
                name: lambda n=name, s=sizes: peer.ask("attention", name=n, **s) for name in KERNELS
            }
            results.append({"T": length, **alternate(calls, args.rounds)})
    rows = [
        [result["T"], *[cell for name in KERNELS for cell in attention_cells(result[name])]]
        for result in results
    ]
    heads = [head for name in KERNELS for head in (f"{name}, TFLOP/s", "difference")]
    print(f"\n## Attention alone\n\nDifference: largest, to blocked; packed in {PACKED_ROW}.\n")
    print(common.table(["T", *heads], rows), flush=True)
    return results


def attention_cells(result: Reply) -> list[common.Cell]:
    if isinstance(result, str):
        return [result, None]
    return [result["TFLOP/s"], f"{result['difference']:.1e}"]


class Jax:
    """jina_jax with random weights, and the measurements in jax."""

    def __init__(self, settings: SimpleNamespace):
        import jax

        self._scan = getattr(settings, "scan", False)
        self._layers = settings.layers
        self._threads = settings.threads
        self._platform = jax.default_backend()

    def device(self) -> dict[str, str]:
        import jax

        return {"platform": self._platform, "kind": jax.devices()[0].device_kind}

    @functools.cached_property
    def config(self):
        from published import published_config

        from jina_jax.config import Config

        rest = {"add_pooling_layer": True, "emb_pooler": "mean", "default_prompt": ""}
        size = {**common.FULL, "layers": self._layers}
        return Config.from_dict({**published_config(size), **rest})

    @functools.cached_property
    def engine(self):
        import jax.numpy as jnp
        from flax import nnx

        from jina_jax.nn.encoder import Encoder
        from jina_jax.runtime.engine import Engine

        options = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0), "scan_layers": self._scan}
        state = nnx.split(Encoder(self.config, **options))[1]
        return Engine(self.config, state, scan_layers=self._scan)

    def matmul(self, size: int, seconds: float) -> float:
        """Return TFLOP/s."""
        import jax
        import jax.numpy as jnp

        left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
        multiply = jax.jit(jnp.matmul)

        def run(count: int) -> None:
            jax.block_until_ready([multiply(left, right) for _ in range(count)][-1])

        return 2 * size**3 / per_call(run, seconds) / 1e12

    def compile(self, lengths: list[int], tokens: int, cases: list[bool]) -> int:
        """Compile the programs for ``rate``, several at once."""
        from jina_jax.runtime.engine import Program

        shapes = [(max(1, tokens // length), length, 1, None) for length in lengths]
        programs = [Program(*shape, case, "mean") for shape in shapes for case in cases]
        self.engine.compile(programs, self._threads)
        return self.engine.compiled

    def rate(self, length: int, tokens: int, seconds: float, adapted: bool = False) -> float:
        """Return tokens per second of full rows, from ids on the host to vectors on the host."""
        from jina_jax.runtime.batching import Batch
        from jina_jax.runtime.engine import Step

        rows = max(1, tokens // length)
        shape = (rows, length)
        ids = np.random.default_rng(0).integers(4, self.config.vocab_size, shape, np.int32)
        segments = np.tile(np.array([0, length], np.int32), (rows, 1, 1))
        batch = Batch(np.arange(rows), np.arange(rows), np.zeros(rows, int), ids, segments)
        tasks = np.arange(rows, dtype=np.int32)[:, None] % self.config.num_tasks
        step = Step(batch, tasks if adapted else None)

        def run(count: int) -> None:
            for _ in self.engine.run(itertools.repeat(step, count), "mean"):
                pass

        return rows * length / per_call(run, seconds)

    def mixed(
        self, count: int, batching: dict[str, Any], dense_rates: list[tuple[int, float]]
    ) -> dict[str, Any]:
        """Encode texts of mixed lengths, and time each part of that alone."""
        from jina_jax.runtime.batching import Batching

        lengths = tuple(batching.get("row_lengths", ()))
        made = Batching(**{**batching, "row_lengths": lengths}).on(self.engine.platform)
        texts, ids = self._texts(count)
        computing = self._compute(made, texts, ids)
        model = self._model(made)
        start = time.perf_counter()
        _, info = model.encode(texts, task=TASK, return_info=True)
        seconds = time.perf_counter() - start
        del model
        alone = fresh_tokenizer()
        start = time.perf_counter()
        alone.encode(texts)
        tokenising = time.perf_counter() - start
        lengths, rates = zip(*dense_rates, strict=True)
        expected = info.tokens / np.interp(np.log(info.tokens), np.log(lengths), rates)
        tokens = int(info.tokens.sum())
        values = [tokens / seconds, expected.sum() / seconds, info.padding, tokens / computing]
        values += [expected.sum() / computing, tokens / tokenising, self._kernel(made)]
        return dict(zip(MIXED_COLUMNS, values, strict=True))

    @functools.cache  # noqa: B019 (one worker per process)
    def _texts(self, count: int) -> tuple[list[str], list[list[int]]]:
        """Return texts and their ids."""
        texts = common.log_normal_texts(count, median=128)
        return texts, fresh_tokenizer().encode(texts)

    def _model(self, batching):
        """Return a model with these batches, whose tokenizer has no cached words."""
        from jina_jax import JinaEmbeddings

        options = {"batching": batching, "scan_layers": self._scan}
        model = JinaEmbeddings(self.config, self.engine.state, fresh_tokenizer(), **options)
        model.engine = self.engine  # with the programs already compiled
        return model

    def _compute(self, batching, texts: list[str], ids: list[list[int]]) -> float:
        """Compile the programs of the batches, several at once; time ids to vectors."""
        from jina_jax.runtime.batching import make_batches
        from jina_jax.runtime.engine import Program
        from jina_jax.runtime.pipeline import Pipeline
        from jina_jax.runtime.requests import Item, Prepared, Request

        order = list(range(len(texts)))
        if not batching.row_lengths:  # as ``encode`` does: padded alike, encoded together
            order.sort(key=lambda i: -len(texts[i]))
        task = self.config.task_id(TASK)
        rows = [ids[i][: self.config.max_length] for i in order]
        prepared = [Prepared(task, [Item(row)], 1, len(row), 0, []) for row in rows]

        def run(visit) -> None:
            coming = iter(prepared)

            def prepare(requests):
                pool = [next(coming) for _ in requests]
                visit([own.items[0].ids for own in pool])
                return pool

            requests = (Request(texts[i], "", task) for i in order)
            for _ in Pipeline(self.engine, batching, prepare, "mean").run(requests):
                pass

        def compile_all(pool) -> None:
            batches = make_batches(pool, batching, 1)
            programs = {Program(*batch.shape, None, True, "mean") for batch in batches}
            self.engine.compile(sorted(programs), self._threads)

        run(compile_all)
        start = time.perf_counter()
        run(lambda pool: None)
        return time.perf_counter() - start

    def _kernel(self, batching) -> str:
        """Return the name of the attention kernel of the most frequent rows."""
        from jina_jax.runtime.batching import slots
        from jina_jax.runtime.engine import Program

        length = max(batching.row_lengths, default=128)
        program = Program(1, length, slots(length, batching), None, True, "mean")
        return self.engine.choose_kernel(program).name

    def attention(self, name: str, length: int, tokens: int, seconds: float) -> dict[str, float]:
        """Time a kernel on full rows, and compare it with ``blocked``."""
        import jax
        import jax.numpy as jnp

        from jina_jax.nn.attention import blocked_attention

        packed = max(1, min(PACKED_ROW, tokens) // length) if name == "cudnn_packed" else 1
        rows = max(1, tokens // length // packed)
        heads = self.config.num_attention_heads, self.config.head_dim
        shape = (3, rows * packed, length, *heads)
        inputs = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
        mask = jnp.ones((rows * packed, length), bool)
        expected = jax.jit(blocked_attention)(*inputs, mask)
        ids = None
        if name == "cudnn_packed":
            numbers = jnp.repeat(jnp.arange(1, packed + 1, dtype=jnp.int32), length)
            ids, mask = jnp.tile(numbers, (rows, 1)), mask.reshape(rows, -1)
            inputs = inputs.reshape(3, rows, packed * length, *heads)
        kernel = jax.jit(self._attention_kernel(name, packed * length, packed))

        def run(count: int) -> None:
            jax.block_until_ready([kernel(*inputs, mask, ids) for _ in range(count)][-1])

        got = kernel(*inputs, mask, ids).reshape(expected.shape)
        difference = jnp.abs(got.astype(jnp.float32) - expected.astype(jnp.float32)).max()
        operations = 4 * length * math.prod(shape[1:])
        rate = operations / per_call(run, seconds) / 1e12
        return {"TFLOP/s": rate, "difference": float(difference)}

    def _attention_kernel(self, name: str, tokens: int, packed: int):
        """Return a kernel as the library would call it for such rows."""
        from jina_jax.nn.kernels import choose
        from jina_jax.runtime.batching import CompleteBatching, slots

        batching = CompleteBatching(max(8, tokens), row_lengths=(max(8, tokens),))
        segments = slots(tokens, batching) if packed > 1 else 1
        platform = "gpu" if self._platform == "gpu" else "cpu"
        head_dim = self.config.head_dim
        try:
            choice = choose(platform, "bfloat16", tokens, segments, head_dim, None, name)
        except ValueError as refusal:
            raise Missing(str(refusal).split(": ", 1)[-1]) from None
        if choice.name != name:
            raise Missing(choice.refusals[name])
        return choice.kernel


def fresh_tokenizer():
    """Load the tokenizer, whose cache of words is empty unless another one is in use."""
    from jina_jax.text.tokenizer import Tokenizer

    gc.collect()
    return Tokenizer.from_file(common.SHARED / "xlm-roberta" / "tokenizer.json")


class Torch:
    """JinaEmbeddingsV3Model of transformers, with sdpa."""

    def __init__(self, settings: SimpleNamespace):
        self._torch = torch = needs("torch")
        self._settings = settings
        self._device = "cpu" if settings.dry_run else "cuda"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise Missing(f"torch {torch.__version__} finds no CUDA device")

    @functools.cached_property
    def model(self):
        """The network with random weights on the device."""
        library, torch = peers.needs_jina(), self._torch
        config = library.JinaEmbeddingsV3Config(num_hidden_layers=self._settings.layers)
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        with torch.device(self._device):
            return library.AutoModel.from_config(config, **options).eval()

    def matmul(self, size: int, seconds: float) -> float:
        """Return TFLOP/s."""
        torch = self._torch
        left, right = torch.randn(2, size, size, device=self._device).to(torch.bfloat16)

        def run(count: int) -> None:
            for _ in range(count):
                torch.matmul(left, right)
            self._wait()

        return 2 * size**3 / per_call(run, seconds) / 1e12

    def rate(self, length: int, tokens: int, seconds: float) -> float:
        """Return tokens per second of full rows."""
        torch = self._torch
        rows = max(1, tokens // length)
        ids = torch.randint(4, self.model.config.vocab_size, (rows, length), device=self._device)
        step = self._step(length)

        @torch.inference_mode()
        def run(count: int) -> None:
            for _ in range(count):
                step(ids)
            self._wait()

        return rows * length / per_call(run, seconds)

    def _step(self, length: int) -> Callable[[Any], Any]:
        """Return the function from ids to pooled vectors."""
        return lambda ids: self.model(ids).last_hidden_state.float().mean(1)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class CompiledTorch(Torch):
    """The same under torch.compile, for one shape at a time."""

    _compiled: tuple[int, Callable[[Any], Any]] = (0, lambda ids: ids)

    def _step(self, length: int) -> Callable[[Any], Any]:
        if self._compiled[0] != length:
            self._torch._dynamo.reset()
            step = super()._step(length)
            mode = self._settings.compile_mode
            self._compiled = length, self._torch.compile(step, dynamic=False, mode=mode)
        return self._compiled[1]


class Onnx(Torch):
    """The graph exported by torch, in float16 (float32 on a CPU), in ONNX Runtime."""

    @functools.cached_property
    def session(self):
        runtime = needs("onnxruntime")
        provider = "CPUExecutionProvider" if self._device == "cpu" else "CUDAExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise Missing(f"onnxruntime {runtime.__version__} has no {provider}")
        with tempfile.TemporaryDirectory() as scratch:
            self.model.float().cpu().save_pretrained(scratch)
            export = peers.exported_onnx if self._device == "cpu" else exported_half
            path = export(Path(scratch))
            session = runtime.InferenceSession(path, providers=[provider])
        if session.get_providers()[0] != provider:
            raise Missing(f"onnxruntime {runtime.__version__} could not start {provider}")
        return session

    def rate(self, length: int, tokens: int, seconds: float) -> float:
        """Return tokens per second of full rows; the hidden states remain on the device."""
        rows = max(1, tokens // length)
        ids = np.random.default_rng(0).integers(4, 250002, (rows, length))
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones_like(ids))
        binding.bind_output("hidden", self._device)

        def run(count: int) -> None:
            for _ in range(count):
                self.session.run_with_iobinding(binding)

        return rows * length / per_call(run, seconds)


def exported_half(directory: Path) -> Path:
    """Export as ``peers.exported_onnx`` does, in float16, which CUDA kernels have."""
    torch = needs("torch")
    whole = peers.traced
    peers.traced = lambda folder: whole(folder).to(torch.float16)
    try:
        return peers.exported_onnx(directory)
    finally:
        peers.traced = whole


WORKERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "jina_jax": Jax,
    "torch": Torch,
    "torch compiled": CompiledTorch,
    "onnxruntime": Onnx,
}


if __name__ == "__main__":
    main()
