"""Write the finished model into the package: native layout, with reference values.

    python recipes/tiny/package.py MODEL jina_jax/tiny

MODEL is the last converted run; the directory keeps its README.md, which is written by hand. The
table of pieces and its adapters, nine tenths of the model, are stored in float8, all else in
bfloat16.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from flax import nnx

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.native import state_tensors, write_native
from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.verify.record import write_references

MOST_BYTES = 32_000_000
LARGEST = 256  # largest value of an adapter; float8 reaches 448, and is coarse below 2**-6


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    model = JinaEmbeddings.from_pretrained(source, dtype="bfloat16")
    partial = target.with_name(target.name + ".new")
    partial.mkdir()
    write_native(partial, model.config, small_tensors(model.state))
    shutil.copyfile(source / "tokenizer.json", partial / "tokenizer.json")
    target.mkdir(exist_ok=True)
    for path in partial.iterdir():
        path.replace(target / path.name)
    partial.rmdir()
    write_references(target)
    size = sum(path.stat().st_size for path in target.iterdir())
    if size > MOST_BYTES:
        sys.exit(f"{target}: expected at most {MOST_BYTES:,} bytes, got {size:,}")
    print(f"{target}: {size:,} bytes")


def small_tensors(state: nnx.State) -> dict[str, LazyTensor]:
    tensors = state_tensors(state)
    names = [f"word_embeddings.{name}" for name in ("embedding", "lora_a", "lora_b")]
    table, lora_a, lora_b = (tensors[name].read().astype(np.float32) for name in names)
    # One power of two per task scales A up and B down: exact, and above float8's coarse end.
    largest = np.abs(lora_a).max(axis=(1, 2), keepdims=True).clip(1e-6)
    power = np.exp2(np.floor(np.log2(LARGEST / largest)))
    stored = (
        table.astype(ml_dtypes.float8_e4m3fn),
        (lora_a * power).astype(ml_dtypes.float8_e4m3fn),
        (lora_b / power).astype(ml_dtypes.bfloat16),
    )
    return tensors | {n: LazyTensor.of(array) for n, array in zip(names, stored, strict=True)}


if __name__ == "__main__":
    main()
