"""Encode texts with the teacher.

    python recipes/tiny/encode.py TEACHER texts.jsonl vectors.npy

writes float16 (texts, 384), unit length, in the order of the lines. "query: " is the prompt of
multilingual-e5 for two texts of the same kind. If a row also has its text in lower case, that is
encoded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import read_rows

from jina_jax import JinaEmbeddings


def main() -> None:
    teacher, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    texts = [row.get("lower", row["text"]) for row in read_rows(source)]
    model = JinaEmbeddings.from_pretrained(teacher, dtype="bfloat16")
    options = {"prompt": "query: ", "max_length": 128, "show_progress_bar": True}
    np.save(target, model.encode(texts, **options).astype(np.float16))


if __name__ == "__main__":
    main()
