"""Put the finished model into the package: bfloat16, native layout, with what it should give.

    python recipes/tiny/package.py MODEL jina_jax/tiny

MODEL is the last export; the directory keeps its README.md, which is written by hand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from jina_jax import JinaEmbeddings
from jina_jax.checkpoint import save_native
from jina_jax.gold import write_gold

MOST_BYTES = 32_000_000


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    model = JinaEmbeddings.from_pretrained(source, dtype="bfloat16")
    partial = target.with_name(target.name + ".new")
    save_native(partial, model.config, model.state)
    shutil.copyfile(source / "tokenizer.json", partial / "tokenizer.json")
    target.mkdir(exist_ok=True)
    for path in partial.iterdir():
        path.replace(target / path.name)
    partial.rmdir()
    write_gold(target)
    size = sum(path.stat().st_size for path in target.iterdir())
    if size > MOST_BYTES:
        sys.exit(f"{target}: expected at most {MOST_BYTES:,} bytes, got {size:,}")
    print(f"{target}: {size:,} bytes")


if __name__ == "__main__":
    main()
