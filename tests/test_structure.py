"""The shape of the house: arrows between wings point one way, and importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each wing with all that it imports from us, exactly; a wing stands behind those that it names.
ARROWS = {
    "checks": set(),
    "config": set(),
    "files": {"config"},
    "cache": set(),
    "tasks": set(),
    "nn": {"config"},
    "text": {"cache", "checks", "files"},
    "checkpoints": {"config", "files", "nn"},
    "convert": {"checkpoints", "checks", "config", "files", "nn"},
    "runtime": {"cache", "checks", "config", "nn", "tasks", "text"},
    "embedder": {"cache", "checkpoints", "checks", "convert", "runtime", "tasks", "text"},
    "verify": {"checkpoints", "config", "convert", "embedder", "files", "nn", "runtime", "text"},
    "data": {"checks"},
    "search": {"checks", "data", "embedder", "files", "nn", "runtime", "tasks"},
    "evaluation": {"checks", "data", "embedder", "nn", "search", "tasks"},
    "training": {
        *(
            "cache",
            "checkpoints",
            "checks",
            "config",
            "convert",
            "data",
            "embedder",
            "evaluation",
            "files",
        ),
        *("nn", "runtime", "tasks", "text"),
    },
    "serving": {"embedder", "nn", "runtime"},
    "bulk": {
        *(
            "checkpoints",
            "checks",
            "config",
            "convert",
            "data",
            "embedder",
            "files",
            "nn",
            "runtime",
        )
    },
    "ray": {"bulk", "embedder"},
    "integrations": {"checks", "embedder", "runtime", "tasks", "text"},
    "cli": {
        *("bulk", "cache", "checkpoints", "convert", "data", "embedder", "evaluation", "files"),
        *("nn", "runtime", "search", "serving", "tasks", "text", "training", "verify"),
    },
}
MOST_ROOMS = 22


def wings() -> dict[str, list[Path]]:
    """Map each wing, a file or folder of the package, to its files."""
    package = ROOT / "jina_jax"
    folders = [ROOT / "convert", *(path for path in package.iterdir() if path.is_dir())]
    found = {path.stem: [path] for path in package.glob("*.py")}
    return found | {path.name: own for path in folders if (own := sorted(path.rglob("*.py")))}


def imports(path: Path) -> set[str]:
    """Name the wings that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jina_jax":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "jina_jax" and len(name) > 1}
    return found - {"__version__"}


@pytest.mark.parametrize("name", sorted(set(wings()) - {"__init__"}))
def test_arrows(name):
    found = set().union(*(imports(path) for path in wings()[name])) - {name}
    assert found == ARROWS[name]


def test_arrows_have_no_cycle():
    order = list(ARROWS)
    for name, targets in ARROWS.items():
        assert all(order.index(target) < order.index(name) for target in targets), name


def test_the_top_level_is_a_table_of_contents():
    rooms = {path.name for path in (ROOT / "jina_jax").iterdir()} - {"__pycache__"}
    data = {"py.typed"}
    assert len(rooms - data) <= MOST_ROOMS


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
