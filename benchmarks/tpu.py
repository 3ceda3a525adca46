"""The first run on a TPU: are its kernels right, and how near to the chip's limits are they?

    pip install "jina-jax[tpu]"
    python benchmarks/tpu.py --json tpu.json      # at most 15 minutes on a v5e or v6e
    python benchmarks/tpu.py --small              # every path, on a CPU, in a minute

On one chip, in order of value; rows are printed, and written to ``--json``, as they are measured:

- kernels: each route of ``attn_implementation`` on packed rows and rows of one text, in bfloat16,
  beside the reference. Errors are the largest differences of token vectors to float32. A route is
  right if its error is at most twice that of the reference in bfloat16.
- verify: a checkpoint's hidden states and vectors beside stored reference values, in float32.
- rates: tokens/s of 24 layers of random weights, from ids on the host to vectors on the host,
  beside the roofline: the published bfloat16 peak over the operations that a token needs. Texts of
  one length, packed by the default below the longest packed row, and with tasks mixed.
- mixed: texts of log-normal lengths through ``encode``; words repeat, so tokenising is faster than
  on real texts.
- profile: where to look if a share is low, and with ``--profile DIRECTORY`` a trace.

"default" is what the library chooses without ``attn_implementation``. A route that cannot run has
its reason as its row. On a CPU, kernels for TPUs run in the interpreter of Pallas, which computes
in order and not as the chip does: agreement there says nothing about the chip.

The exit status is 1 if a kernel or the checkpoint differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import common  # noqa: E402
import tpu_chips  # noqa: E402
from common import Cell  # noqa: E402
from peers import Missing  # noqa: E402
from tpu_steps import (  # noqa: E402
    DEFAULT,
    Routes,
    interpret_kernels,
    largest_difference,
    mixed_texts,
)

SECTIONS = ("kernels", "verify", "rates", "mixed", "profile")
TASKS = {False: "without", True: "mixed"}
_TIMES = 2  # the error of a kernel that is right, relative to that of the reference
SIZES: dict[str, tuple[Any, Any]] = {  # real, small
    "layers": (24, 1),
    "kernel_lengths": ([128, 512, 2048, 8192], [128, 256]),
    "lengths": ([512, 128, 2048, 8192], [128]),
    "texts": (4096, 12),
    "longest": (2048, 100),  # words of a mixed text
    "seconds": (1.0, 0.01),
    "minutes": (15.0, 5.0),
}


def main() -> None:
    args = arguments()
    import jax

    start = time.monotonic()
    if args.small:
        interpret_kernels()
    kind = jax.devices()[0].device_kind
    if not (args.small or jax.default_backend() == "tpu"):
        sys.exit(f"needs a TPU, jax runs on {kind}; --small runs every path on a CPU")
    print(common.header("jax", "jaxlib", "libtpu", "flax"))
    print(f"{kind}, {args.layers} layers, bfloat16" + (" (small)" if args.small else ""))
    found: dict[str, Any] = {"device": kind, "versions": common.versions("jina-jax", "jax")}
    run = Run(args, found, tpu_chips.chip_of(kind), start + 60 * args.minutes)
    for section in args.sections:
        globals()[section](run)
    sys.exit(bool(run.wrong))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--routes", nargs="+", help="default: all of the library")
    parser.add_argument("--model", default="tiny", help="to verify: a directory or Hub id")
    for name, (value, _) in SIZES.items():
        several = {"nargs": "+", "type": int} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", **several, help=f"default: {value}")
    parser.add_argument("--small", action="store_true", help="run every path on a CPU")
    parser.add_argument("--profile", type=Path, help="write a trace to this directory")
    parser.add_argument("--json", type=Path, help="write results to this file")
    args = parser.parse_args()
    for name, values in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.small])
    return args


class Run:
    """What the sections share: settings, results, and the time that is left.

    Args:
      args: of the command line.
      found: results by section; written as JSON after each row.
      chip: a name in ``tpu_chips.CHIPS``, or None.
      end: by ``time.monotonic``; no row is started later.
    """

    def __init__(
        self, args: argparse.Namespace, found: dict[str, Any], chip: str | None, end: float
    ):
        self.args, self.chip, self.end = args, chip, end
        self.wrong = 0  # comparisons that differ
        self._found = found
        self._rows: list[dict[str, Cell]] = []

    def table(self, title: str, heads: Sequence[str]) -> None:
        """Begin a section with a table."""
        self._rows = self._found[title] = []
        print(f"\n## {title}\n\n{common.table(heads, [])}", flush=True)

    def add(self, row: dict[str, Cell]) -> None:
        """Print a row, and save all so far: a run may be cut off at any time."""
        print("| " + " | ".join(map(common.cell, row.values())) + " |", flush=True)
        self._rows.append(row)
        if self.args.json:
            self.args.json.write_text(json.dumps(self._found, indent=1), encoding="utf-8")

    def cases(self, *axes: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield every combination, in order, while there is time."""
        for case in itertools.product(*axes):
            if time.monotonic() > self.end:
                print(f"\nThe rest is left out: {self.args.minutes:g} minutes have passed.")
                return
            yield case

    def routes(self) -> list[str]:
        """Return the names of the routes to try, the library's choice first."""
        from jina_jax.nn.kernels import IMPLEMENTATIONS

        return self.args.routes or [DEFAULT, *IMPLEMENTATIONS]


def kernels(run: Run) -> None:
    """Compare every route with float32, on packed rows and rows of one text."""
    run.table("kernels", ["route", "B x T x S", "tasks", "runs", "error", "reference's", "right"])
    routes = Routes(run.args.small, layers=min(2, run.args.layers))
    for tokens, packed, tasks in run.cases(run.args.kernel_lengths, (True, False), TASKS):
        step = routes.uneven_step(tokens, packed, tasks)
        plain = routes.exact(tokens)
        exact, usual = (routes.token_vectors(plain, own, step) for own in ("float32", "bfloat16"))
        limit = largest_difference(usual, exact, step)
        for name in run.routes():
            row: dict[str, Cell] = {"route": name, "shape": "x".join(map(str, step.batch.shape))}
            row |= {"tasks": TASKS[tasks], "runs": None, "error": None, "reference": limit}
            try:
                row["runs"] = routes.taken(name, step)
                vectors = routes.token_vectors(name, "bfloat16", step)
            except Missing as reason:
                run.add(row | {"right": f"left out: {reason}"})
            except Exception as error:  # a refusal of the compiler is a result
                run.wrong += not run.args.small  # one of the interpreter is not
                run.add(row | {"right": f"{type(error).__name__}: {str(error)[:150]}"})
            else:
                row["error"] = error = largest_difference(vectors, exact, step)
                run.wrong += not error <= _TIMES * limit  # NaN is wrong
                run.add(row | {"right": "yes" if error <= _TIMES * limit else "NO"})


def verify(run: Run) -> None:
    """Compare a checkpoint with its reference values."""
    from jina_jax.checkpoints.hub import fetch
    from jina_jax.convert import open_checkpoint
    from jina_jax.text.tokenizer import Tokenizer
    from jina_jax.verify import compare

    run.table("verify", ["input", "subject", "difference", "agrees"])
    checkpoint = open_checkpoint(fetch(run.args.model))
    tokenizer = Tokenizer.from_file(checkpoint.directory / "tokenizer.json")
    for check in compare.verify(checkpoint, tokenizer, compare.references_of(checkpoint)):
        run.wrong += not check.agrees
        run.add(check._asdict() | {"agrees": "yes" if check.agrees else "NO"})


def rates(run: Run) -> None:
    """Time steps without padding, beside the chip's roofline."""
    heads = ["route", "T", "B x T x S", "tasks", "runs", "tok/s", "roofline tok/s", "share"]
    run.table("rates", heads)
    routes = Routes(run.args.small, layers=run.args.layers)
    for length, tasks, name in run.cases(run.args.lengths, TASKS, run.routes()):
        step = routes.full_step(length, tasks)
        row: dict[str, Cell] = {"route": name, "T": length}
        row |= {"shape": "x".join(map(str, step.batch.shape)), "tasks": TASKS[tasks]}
        try:
            row["runs"] = routes.taken(name, step)
            rate = routes.rate(name, step, run.args.seconds)
        except Exception as reason:  # the reason is the result
            run.add(row | {"runs": str(reason).split("\n")[0][:150]})
            continue
        run.add(row | {"tok/s": rate} | shares(run, rate, [length], tasks))


def shares(run: Run, rate: float, lengths: Sequence[int], tasks: bool) -> dict[str, Cell]:
    """Return the roofline of texts of these lengths, and the share of it that was reached."""
    if run.chip is None:
        return {"roofline": None, "share": None}
    layers = run.args.layers
    work = sum(own * tpu_chips.flops_per_token(own, layers, tasks) for own in lengths)
    roofline = sum(lengths) * tpu_chips.CHIPS[run.chip].flops / work
    return {"roofline": roofline, "share": f"{rate / roofline:.1%}"}


def mixed(run: Run) -> None:
    """Time ``encode`` on texts of mixed lengths."""
    heads = ["route", "tasks", "tok/s", "padding", "programs", "warm-up s", "roofline tok/s"]
    run.table("mixed", [*heads, "share"])
    routes = Routes(run.args.small, layers=run.args.layers)
    written = mixed_texts(run.args.texts, run.args.longest)
    for tasks, name in run.cases(TASKS, run.routes()):
        row: dict[str, Cell] = {"route": name, "tasks": TASKS[tasks]}
        try:
            result = routes.encode(name, written, tasks)
        except Exception as reason:  # the reason is the result
            run.add(row | {"tok/s": str(reason).split("\n")[0][:150]})
            continue
        lengths = result.pop("lengths")
        run.add(row | result | shares(run, result["tok/s"], lengths, tasks))


def profile(run: Run) -> None:
    """Write a trace of a few steps, or say how."""
    if run.args.profile is None:
        print(
            "\nWhere time goes: --sections profile --profile DIRECTORY, then "
            "`pip install xprof && xprof --logdir DIRECTORY`. Compare its operations with the "
            "columns of benchmarks/tpu_programs.py --cycles."
        )
        return
    import jax

    routes = Routes(run.args.small, layers=run.args.layers)
    step = routes.full_step(run.args.lengths[0], tasks=False)
    routes.rate(DEFAULT, step, 0.0)
    with jax.profiler.trace(str(run.args.profile)):
        routes.rate(DEFAULT, step, 0.0)
    print(f"\nA trace is in {run.args.profile}: `xprof --logdir {run.args.profile}`.")


if __name__ == "__main__":
    main()
