"""What people embed tables with today: Ray Data and sentence-transformers, and its pool.

Prints seconds by name, as JSON: python bulk_peers.py MODEL INPUT.parquet OUTPUT
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


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


def with_ray(model: str, source: str, few: str, output: str) -> float:
    """Two actors of one thread each; the time of two rows, mostly their start, is taken off."""
    import ray

    ray.init(num_cpus=4, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(path: str) -> float:
        shutil.rmtree(output, ignore_errors=True)
        begun = time.perf_counter()
        data = ray.data.read_parquet(path).map_batches(
            Embedder, fn_constructor_args=(model,), batch_size=64, concurrency=2, num_cpus=1
        )
        data.write_parquet(output)
        return time.perf_counter() - begun

    run(few)  # imports are read from the disk once
    seconds = run(source) - run(few)
    ray.shutdown()
    return seconds


def alone(own: Any, source: str, output: str, pool: Any = None) -> float:
    """sentence-transformers with all texts in memory, and a table of its vectors."""
    begun = time.perf_counter()
    table = pq.read_table(source)
    vectors = own.encode(table.column("text").to_pylist(), batch_size=32, pool=pool)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(table.drop(["text"]).append_column("embedding", column), f"{output}.parquet")
    return time.perf_counter() - begun


def in_pool(own: Any, source: str, output: str) -> float:
    """Its pool of two processes, with a thread each; their start is not in the time."""
    import os

    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: those of this one exist
    pool = own.start_multi_process_pool(["cpu", "cpu"])
    own.encode(["warm"] * 64, batch_size=32, pool=pool)
    seconds = alone(own, source, output, pool)
    own.stop_multi_process_pool(pool)
    return seconds


def main() -> None:
    model, source, output = sys.argv[1:]
    own = load(model)
    own.encode(["warm"] * 2)
    found = {"sentence-transformers, in memory": alone(own, source, output)}
    found["sentence-transformers, pool of two"] = in_pool(own, source, output)
    del own
    few = f"{output}-few.parquet"
    pq.write_table(pq.read_table(source).slice(0, 2), few)
    found["ray.data with sentence-transformers"] = with_ray(model, source, few, output)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
