"""Let the teacher read texts.

    python recipes/tiny/encode.py TEACHER texts.jsonl vectors.npy

writes float16 (texts, 384), unit length, in the order of the lines. "query: " is the prompt that
multilingual-e5 asks for where two texts are alike in kind.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from jina_jax import JinaEmbeddings

POOL = 20_000


def main() -> None:
    teacher, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with source.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    model = JinaEmbeddings.from_pretrained(teacher, dtype="bfloat16")
    parts, start = [], time.monotonic()
    for first in range(0, len(texts), POOL):
        pool = texts[first : first + POOL]
        parts.append(model.encode(pool, prompt="query: ", max_length=128).astype(np.float16))
        rate = (first + len(pool)) / (time.monotonic() - start)
        print(f"{first + len(pool):,} of {len(texts):,} texts, {rate:.0f} a second", flush=True)
    np.save(target, np.concatenate(parts))


if __name__ == "__main__":
    main()
