"""The shape of the house: arrows between files point one way, and importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each file with all that it may import from us; a file stands behind those that it names.
ARROWS = {
    "config": set(),
    "files": set(),
    "lines": set(),
    "tensors": set(),
    "rope": set(),
    "compiling": set(),
    "matmul": set(),
    "dropout": set(),
    "cache": set(),
    "attention_gpu": set(),
    "attention_tpu": set(),
    "attention": {"attention_gpu", "attention_tpu", "matmul"},
    "pooling": {"matmul"},
    "nearest": {"compiling", "matmul"},
    "chunking": set(),
    "distributed": set(),
    "batching": set(),
    "normalizer": set(),
    "unigram": {"normalizer"},
    "tokenizer_json": {"cache", "normalizer", "unigram"},
    "tokenizer": {"normalizer", "unigram", "tokenizer_json"},
    "lora": {"config", "matmul"},
    "encoder": {"config", "dropout", "rope", "attention", "lora", "matmul"},
    "checkpoint": {"config", "encoder", "files", "tensors"},
    "sharding": {"config", "encoder"},
    "engine": {
        *("attention", "batching", "compiling", "config", "dropout", "encoder", "pooling"),
        "sharding",
    },
    "pipeline": {"batching", "engine"},
    "export": {"encoder", "engine"},
    "hub": {"checkpoint"},
    "convert": {"config", "tensors", "checkpoint", "files", "lora"},
    "verify": {"compiling", "config", "checkpoint", "convert", "encoder", "tokenizer"},
    "cli_errors": set(),
    "cli_options": set(),
    "cli_rows": {"lines"},
    "cli_info": {"convert"},
    "cli_devices": {"attention", "batching", "cache", "cli_info", "compiling"},
    "embedder": {
        *("cache", "config", "checkpoint", "hub", "tokenizer", "convert", "sharding", "pooling"),
        *("batching", "chunking", "distributed", "engine", "pipeline"),
    },
    "gold": {"checkpoint", "embedder", "verify"},
    # What needs an extra. Training evaluates; both read data files.
    "data": {"lines"},
    "evaluation": {"config", "data", "embedder", "lines", "nearest", "pooling"},
    "training": {
        *("attention", "batching", "cache", "checkpoint", "compiling", "config", "convert"),
        *("data", "dropout"),
        *("embedder", "encoder", "engine", "evaluation", "files", "hub", "matmul", "nearest"),
        *("pipeline", "sharding", "tensors", "tokenizer"),
    },
    "cli_train": {"cli_info", "cli_options", "convert", "training"},
    "cli_eval": {"cli_options", "embedder", "evaluation"},
    "cli_mine": {"cli_options", "data", "embedder", "files", "training"},
    "cli_search": {"cli_options", "cli_rows", "embedder", "evaluation", "nearest"},
}


def modules() -> dict[str, list[Path]]:
    files = {path.stem: [path] for path in (ROOT / "jina_jax").glob("*.py")}
    folders = [ROOT / "convert", *(ROOT / "jina_jax").glob("*/")]
    return files | {path.name: found for path in folders if (found := sorted(path.glob("*.py")))}


def imports(path: Path) -> set[str]:
    """Name our own modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jina_jax":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "jina_jax" and len(name) > 1}
    return found


@pytest.mark.parametrize("name", sorted(set(modules()) - {"__init__", "cli"}))
def test_arrows(name):
    allowed = ARROWS[name] | {name}
    found = set().union(*(imports(path) for path in modules()[name]))
    assert found <= allowed


def test_arrows_have_no_cycle():
    order = list(ARROWS)
    for name, targets in ARROWS.items():
        assert all(order.index(target) < order.index(name) for target in targets), name


def test_import_is_quick_and_brings_no_other_framework():
    code = """
import sys, time
start = time.perf_counter()
import jina_jax
seconds = time.perf_counter() - start
from jina_jax import JinaEmbeddings
heavy = {"torch", "transformers", "tokenizers", "tensorflow", "onnxruntime"} & sys.modules.keys()
assert not heavy, heavy
print(seconds)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1.5
