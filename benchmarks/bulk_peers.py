"""What people embed tables with today: Ray Data and sentence-transformers, and its pool.

Prints seconds by name, as JSON: python bulk_peers.py MODEL INPUT.parquet OUTPUT
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Embedder:
    """The actor of Ray's own examples."""

    def __init__(self, model: str):
        self.model = load(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self.model.encode(list(batch.pop("text")), batch_size=32)
        return batch


def load(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model, device="cpu")


def with_ray(model: str, source: str, output: str) -> float:
    import ray

    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run() -> float:
        shutil.rmtree(output, ignore_errors=True)
        begun = time.perf_counter()
        data = ray.data.read_parquet(source).map_batches(
            Embedder, fn_constructor_args=(model,), batch_size=256, concurrency=1, num_cpus=1
        )
        data.write_parquet(output)
        return time.perf_counter() - begun

    seconds = run()
    ray.shutdown()
    return seconds


def alone(model: str, source: str, output: str) -> float:
    """sentence-transformers with all texts in memory, and a table of what it returns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = load(model)
    own.encode(["warm"] * 2)
    begun = time.perf_counter()
    table = pq.read_table(source)
    vectors = own.encode(table.column("text").to_pylist(), batch_size=32)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(table.drop(["text"]).append_column("embedding", column), f"{output}.parquet")
    return time.perf_counter() - begun


def main() -> None:
    model, source, output = sys.argv[1:]
    found = {"sentence-transformers, in memory": alone(model, source, output)}
    found["ray.data with sentence-transformers"] = with_ray(model, source, str(Path(output)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
