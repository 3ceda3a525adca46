"""Time from the start of a process to the first vector, without and with caches.

    python benchmarks/startup.py                           # full size: 24 layers, bfloat16
    python benchmarks/startup.py --layers 2 --vocab 2000   # the small model

jina_jax loads the published layout, transformers its own (``+peft`` with the five adapters). Cold
means that $JINA_JAX_CACHE has no compiled programs and no tokenizer; warm is the next process. The
checkpoints are in the page cache for all. Every run is a process of its own; peers alternate.
"total" is from before the process to the vector, by the clock outside; the part that is not in the
other rows is the interpreter. Memory is the peak at the first vector.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

TEXT = "Der Himmel über dem Hafen hatte die Farbe eines Fernsehers."
TASK = "text-matching"
SMALL_LIMIT, SMALL_LAYERS = 3.0, 2  # seconds to the first vector, by number of layers
STATES = {"jina_jax": ("cold", "warm")}  # the others have no cache
Mark = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs per peer")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=250002)
    parser.add_argument("--directory", type=Path, help="where to keep checkpoints")
    parser.add_argument("--json", type=Path, help="write results to this file")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.directory)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        medians = compare(args, args.directory or Path(scratch))
    report(medians, args)


def work(peer: str, directory: Path) -> dict[str, float]:
    """Run one peer; return the times of its start and its vector, and seconds between the marks."""
    begun = time.time()
    steps: dict[str, float] = {}
    last = time.perf_counter()

    def mark(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[step], last = now - last, now

    WORKERS[peer](directory, mark)
    ended = time.time()
    from common import peak_gb  # after the marks: it imports NumPy

    return {"begun": begun, "ended": ended, **steps, "peak GB": peak_gb()}


def work_jina_jax(directory: Path, mark: Mark) -> None:
    from jina_jax import JinaEmbeddings

    mark("import s")
    model = JinaEmbeddings.from_pretrained(directory / "published")
    mark("load s")
    model.encode(TEXT, task=TASK)
    mark("first vector s")


def work_transformers(adapters: bool, directory: Path, mark: Mark) -> None:
    import torch
    from transformers import AutoModel, PreTrainedTokenizerFast

    if adapters:
        from peft import PeftModel
    mark("import s")
    folder = directory / "transformers"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if adapters:
        names = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
        model = PeftModel.from_pretrained(model, folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, adapter_name=name)
        model.set_adapter(TASK.replace("-", "_"))
        model.eval()
    mark("load s")
    with torch.inference_mode():
        batch = tokenizer(TEXT, return_tensors="pt")
        hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        torch.nn.functional.normalize(hidden.float().mean(1)).numpy()
    mark("first vector s")


WORKERS: dict[str, Callable[[Path, Mark], None]] = {
    "jina_jax": work_jina_jax,
    "transformers": partial(work_transformers, False),
    "transformers+peft": partial(work_transformers, True),
}


def compare(args: argparse.Namespace, directory: Path) -> dict[str, dict[str, float]]:
    """Return the medians of every peer in every state, {"jina_jax, cold": {"total s": …}}."""
    import common

    others = any(peer != "jina_jax" for peer in args.peers)
    common.write_checkpoints(directory, args.layers, vocab=args.vocab, for_transformers=others)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            # Peers between the cold and the warm run: files in memory are used by the next.
            for turn in range(2):
                for peer in args.peers:
                    state = STATES.get(peer, ("", ""))[turn]
                    name = ", ".join(filter(None, [peer, state]))
                    runs.setdefault(name, []).append(measure(peer, directory, cache))
                    print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {step: statistics.median(run[step] for run in found) for step in found[0]}
        for name, found in runs.items()
    }


def measure(peer: str, directory: Path, cache: str) -> dict[str, float]:
    """Run a worker with the given cache, and add the seconds measured outside."""
    import common

    kept = {"JINA_JAX_CACHE": cache, "JAX_COMPILATION_CACHE_DIR": ""}
    start = time.time()
    run = common.run_worker(__file__, "--worker", peer, "--directory", directory, env=kept)
    begun, ended = run.pop("begun"), run.pop("ended")
    return {"total s": ended - start, "interpreter s": begun - start, **run}


def report(medians: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    """Print the table and the ratio of the totals, and write them."""
    import common

    packages = ("jax", "jaxlib", "flax", "torch", "transformers", "peft")
    print(common.header(*packages))
    print(f"{args.layers} layers, {args.vocab} pieces, bfloat16, medians of {args.rounds} rounds\n")
    steps = next(iter(medians.values()))
    rows = [[step, *(median[step] for median in medians.values())] for step in steps]
    ours = medians.get("jina_jax, warm")
    if ours:
        ratios = [median["total s"] / ours["total s"] for median in medians.values()]
        rows.append(["total / jina_jax, warm", *ratios])
    print(common.table(["", *medians], rows))
    if ours and args.layers <= SMALL_LAYERS:
        kept = "kept" if ours["total s"] < SMALL_LIMIT else "missed"
        print(f"\nSmall model: {ours['total s']:.2f} s warm, limit {SMALL_LIMIT} s, {kept}")
    if args.json:
        found = {"machine": common.machine(), "versions": common.versions(*packages)}
        found |= {"layers": args.layers, "vocab": args.vocab, "medians": medians}
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
