"""The main job at full size: load the published layout, encode multilingual text with all tasks.

Writes a random checkpoint of the published size (572,310,396 parameters, bfloat16, 1.14 GB) with
the real vocabulary, then runs the same work in jina_jax and transformers (+ PEFT, bfloat16), in
alternating processes, and once in the command line. Prints a table of medians.

    python benchmarks/main_job.py                       # needs the parity extra for transformers
    python benchmarks/main_job.py --peers jina_jax      # without

Text and vocabulary are those of the public data in ../shared (or $JINA_JAX_SHARED).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("JINA_JAX_SHARED", ROOT.parent / "shared"))
sys.path.insert(0, str(ROOT / "tests"))

from published import FULL, PROMPTS, TASKS, write_published  # noqa: E402

PEERS = ("jina_jax", "transformers")
BATCH_SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--texts", type=int, default=440, help="number of texts to encode")
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs per peer")
    parser.add_argument("--layers", type=int, default=FULL["layers"])
    parser.add_argument("--directory", type=Path, help="where to keep checkpoints")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work = {"jina_jax": work_jina_jax, "transformers": work_transformers}[args.worker]
        print(json.dumps(work(args.directory)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch)
        prepare(directory, args.texts, args.layers, "transformers" in args.peers)
        runs = {peer: [] for peer in args.peers}
        for _ in range(args.rounds):
            for peer in args.peers:
                runs[peer].append(measure(peer, directory))
        report(runs, command_line(directory), args)


def prepare(directory: Path, count: int, layers: int, for_transformers: bool) -> None:
    """Write the checkpoint, a copy in the transformers layout, and the texts."""
    published = directory / "published"
    if not (published / "config.json").exists():
        write_published(published, {**FULL, "layers": layers}, "bfloat16")
        shutil.copyfile(SHARED / "xlm-roberta" / "tokenizer.json", published / "tokenizer.json")
    if for_transformers and not (directory / "transformers").exists():
        command = [sys.executable, "-m", "jina_jax.cli", "convert", published]
        command += [directory / "transformers", "--to", "transformers"]
        subprocess.run(command, check=True)
    rows = [
        {"text": text, "task": TASKS[i % len(TASKS)]} for i, text in enumerate(sentences(count))
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (directory / "texts.jsonl").write_text(lines, encoding="utf-8")


def sentences(count: int) -> list[str]:
    """Return the same number of sentences of the STS-b development set in every language."""
    files = sorted((SHARED / "eval").glob("stsb-*-dev.csv"))
    if not files:
        sys.exit(f"needs stsb-*-dev.csv in {SHARED / 'eval'} (or set JINA_JAX_SHARED)")
    columns = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as lines:
            columns.append([row[0] for row in csv.reader(lines)])
    mixed = [text for row in zip(*columns, strict=False) for text in row]
    return mixed[:count]


def read_texts(directory: Path) -> tuple[list[str], list[str]]:
    lines = (directory / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["task"] for row in rows]


def measure(peer: str, directory: Path) -> dict[str, float]:
    """Run a worker in a process of its own."""
    command = [sys.executable, __file__, "--worker", peer, "--directory", str(directory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{peer}: {result}", file=sys.stderr, flush=True)
    return result


def work_jina_jax(directory: Path) -> dict[str, float]:
    texts, tasks = read_texts(directory)
    start = time.perf_counter()
    from jina_jax import JinaEmbeddings

    imported = time.perf_counter()
    model = JinaEmbeddings.from_pretrained(directory / "published")
    loaded = time.perf_counter()
    model.encode(texts[0], task=tasks[0])
    first = time.perf_counter()
    model.encode(texts, task=tasks, batch_size=BATCH_SIZE)  # compiles
    middle = time.perf_counter()
    model.encode(texts, task=tasks, batch_size=BATCH_SIZE)
    return timings(start, imported, loaded, first, middle, time.perf_counter(), len(texts))


def work_transformers(directory: Path) -> dict[str, float]:
    texts, tasks = read_texts(directory)
    start = time.perf_counter()
    import torch
    from peft import PeftModel
    from transformers import AutoModel, PreTrainedTokenizerFast

    imported = time.perf_counter()
    folder = directory / "transformers"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>"
    )
    base = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    adapters = {task: task.replace(".", "_").replace("-", "_") for task in TASKS}
    first, *others = adapters.values()
    model = PeftModel.from_pretrained(base, folder / first, adapter_name=first)
    for name in others:
        model.load_adapter(folder / name, adapter_name=name)
    model.eval()
    loaded = time.perf_counter()

    @torch.inference_mode()
    def encode(texts: list[str], tasks: list[str]) -> None:
        for task in sorted(set(tasks)):
            model.set_adapter(adapters[task])
            mine = [PROMPTS[task] + t for t, name in zip(texts, tasks, strict=True) if name == task]
            mine.sort(key=len, reverse=True)
            for i in range(0, len(mine), BATCH_SIZE):
                batch = tokenizer(mine[i : i + BATCH_SIZE], padding=True, return_tensors="pt")
                hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
                mask = batch["attention_mask"][..., None]
                pooled = (hidden.float() * mask).sum(1) / mask.sum(1)
                torch.nn.functional.normalize(pooled).numpy()

    encode(texts[:1], tasks[:1])
    first = time.perf_counter()
    encode(texts, tasks)
    middle = time.perf_counter()
    encode(texts, tasks)
    return timings(start, imported, loaded, first, middle, time.perf_counter(), len(texts))


def timings(start, imported, loaded, first, middle, end, count) -> dict[str, float]:
    """Return the seconds between the marks by name, and this process's peak memory."""
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "first_vector_s": first - loaded,
        "first_pass_texts_per_s": count / (middle - first),
        "texts_per_s": count / (end - middle),
        "peak_gb": peak * 1024 / 1e9,
    }


def command_line(directory: Path) -> dict[str, float]:
    """Encode the texts once with ``jina-jax encode``, timed from outside."""
    output = directory / "vectors.npy"
    output.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "jina_jax.cli",
        "encode",
        "--model",
        directory / "published",
    ]
    command += ["--input", directory / "texts.jsonl", "--field", "text", "--task-field", "task"]
    command += ["--output", output]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the command line failed: {status}")
    return {"wall_s": time.perf_counter() - start, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def report(runs: dict[str, list[dict]], command: dict[str, float], args) -> None:
    packages = ("jina-jax", "jax", "flax", "torch", "transformers", "peft")
    versions = [f"{p} {v}" for p in packages if (v := version(p))]
    print(
        f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python ", end=""
    )
    print(f"{platform.python_version()}, {', '.join(versions)}")
    print(
        f"{args.layers} layers, bfloat16, {args.texts} sentences in 11 languages, all tasks, ",
        end="",
    )
    print(f"batches of {BATCH_SIZE}, medians of {args.rounds} alternating runs\n")
    names = list(next(iter(runs.values()))[0])
    medians = {p: {n: statistics.median(r[n] for r in rs) for n in names} for p, rs in runs.items()}
    ratio = len(medians) == 2
    print("| | " + " | ".join(medians) + (" | ratio |" if ratio else " |"))
    print("|---" * (len(medians) + 1 + ratio) + "|")
    for name in names:
        values = [m[name] for m in medians.values()]
        cells = [f"{value:.2f}" for value in values]
        if ratio:
            cells.append(f"{values[0] / values[1]:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    wall, peak = command["wall_s"], command["peak_gb"]
    print(f"\njina-jax encode, whole process: {wall:.1f} s, peak {peak:.2f} GB")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
