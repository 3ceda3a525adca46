"""Conversions of the published size: streamed, and to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from published import FULL, published_config, published_shapes, write_tensors

from jina_jax.checkpoints.tensors import open_safetensors
from jina_jax.convert import merge_checkpoint, open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status"),
]

# Run in a process of its own, whose peak is then nobody else's: argv are source, target and layout
# ("" to load the weights instead), and a task to merge or "".
CONVERSION = """
import sys
from pathlib import Path
from jina_jax.checkpoints.load import to_state
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint
source, target, layout, task = sys.argv[1:]
checkpoint = open_checkpoint(source)
if task:
    checkpoint = merge_checkpoint(checkpoint, task)
if layout:
    write_checkpoint(checkpoint, target, layout)
else:
    state = to_state(checkpoint.config, checkpoint.tensors, target or None)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_bytes(source: Path, target: Path | str, layout: str, task: str = "") -> int:
    """Convert in a process of its own; return the most memory that it held."""
    command = [sys.executable, "-c", CONVERSION, str(source), str(target), layout, task]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """The published file at full size, in its dtype, with random numbers: 1.14 GB."""
    directory = tmp_path_factory.mktemp("full") / "source"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(published_config(FULL)))
    shapes, dtype = published_shapes(FULL), np.dtype(ml_dtypes.bfloat16)
    write_tensors(directory / "model.safetensors", shapes, dtype, seed=0)
    return directory


def test_full_size_streams(full):
    """Peaks of at most 1.3 times the file, and every bit kept."""
    size = (full / "model.safetensors").stat().st_size
    assert 1.14e9 < size < 1.15e9
    out = full.parent
    steps = (
        ("published to native", full, out / "native", "native", ""),
        ("native to published", out / "native", out / "published", "published", ""),
        ("published to transformers", full, out / "transformers", "transformers", ""),
        ("merge", full, out / "merged", "transformers", "text-matching"),
    )
    ratios = {name: peak_bytes(*rest) / size for name, *rest in steps}
    print({name: round(ratio, 2) for name, ratio in ratios.items()})
    source = open_checkpoint(full)
    for name in ("native", "published", "transformers"):
        written = open_checkpoint(out / name)
        assert written.config == source.config
        assert_streams_equal(written.tensors, source.tensors)
    first, again = (open_safetensors(d / "model.safetensors") for d in (full, out / "published"))
    assert_streams_equal(again, first)
    merged, plain = open_checkpoint(out / "merged"), merge_checkpoint(source, "text-matching")
    assert merged.config == plain.config
    assert_streams_equal(merged.tensors, plain.tensors)
    assert max(ratios.values()) <= 1.3


@pytest.mark.parametrize(("dtype", "most"), [("", 1.5e9), ("float32", 2.6e9)])
def test_full_size_loads_without_a_second_copy(full, dtype, most):
    peak = peak_bytes(full, dtype, "")
    print(dtype or "bfloat16", peak)
    assert peak <= most


def assert_streams_equal(tensors, expected) -> None:
    """Compare two checkpoints' bits, a tensor at a time."""
    assert tensors.keys() == expected.keys()
    for path, tensor in tensors.items():
        wanted = np.array(expected[path].read()).view(np.uint16)
        np.testing.assert_array_equal(np.array(tensor.read()).view(np.uint16), wanted, path)
