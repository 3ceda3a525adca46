"""Write what a model gives now as what it should give: ``gold.json`` in its directory.

python -m jina_jax.gold DIRECTORY

``jina-jax verify`` then holds the model against it. To be run once, when the weights are final: a
file that is written again after each change finds nothing. Rows of the vocabulary that none of the
texts has are not covered.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.embedder import JinaEmbeddings
from jina_jax.files import write_json
from jina_jax.verify import GOLD_FILE, NO_TASK

TEXTS = {
    "english": "The ferry to the island leaves at noon.",
    "german": "Die Fähre zur Insel fährt mittags ab.",
    "russian": "Паром на остров отходит в полдень.",
    "arabic": "تغادر العبّارة إلى الجزيرة ظهرا.",
    "hindi": "द्वीप के लिए नौका दोपहर को निकलती है।",
    "chinese": "去岛上的渡轮中午出发。",
}
_TOKENS, _DIMS = (1, 4), (0, 8)  # of the slices: tokens behind <s>, first values of each
_ABOUT = (
    "Values of this model in float32 on CPU, written by jina_jax.gold. values: slices of "
    "last_hidden_state, [tokens, dims], without prompt. embeddings: the first dims of the unit "
    "vectors that encode gives, with the task's prompt."
)


def write_gold(directory: str | Path) -> Path:
    """Write ``gold.json``: of six texts under every task, slices of hidden states and of vectors.

    The form is that of ``published.json``, with "embeddings" in addition. Each number is a float32
    to its last digit.

    Args:
      directory: of a checkpoint of any layout, with its tokenizer. A file of before is replaced.

    Returns:
      The path of the file.
    """
    model = JinaEmbeddings.from_pretrained(directory, dtype="float32")
    path = Path(directory) / GOLD_FILE
    write_json(path, {"about": _ABOUT, **_entries(model)})
    return path


def _entries(model: JinaEmbeddings) -> dict[str, dict[str, Any]]:
    tasks = [None, *model.config.lora_adaptations]
    texts = [text for text in TEXTS.values() for _ in tasks]
    options: Any = {"task": tasks * len(TEXTS)}
    vectors = model.encode(texts, **options)
    hidden = model.encode(texts, prompt=None, output_value="token_embeddings", **options)
    entries = {}
    for i, (name, text) in enumerate(TEXTS.items()):
        own = {task or NO_TASK: i * len(tasks) + k for k, task in enumerate(tasks)}
        entries[name] = {
            "text": text,
            "tokens": len(hidden[own[NO_TASK]]),
            "slice": [_TOKENS, _DIMS],
            "values": {
                task: _numbers(hidden[row][slice(*_TOKENS), slice(*_DIMS)])
                for task, row in own.items()
            },
            "embeddings": {
                task: _numbers(vectors[row, slice(*_DIMS)]) for task, row in own.items()
            },
        }
    return entries


def _numbers(array: np.ndarray) -> Any:
    """Give float32 numbers in nested lists, each in as many digits as it needs."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [float(f"{value:.9g}") for value in array.tolist()]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jina_jax.gold DIRECTORY")
    print(write_gold(sys.argv[1]))
