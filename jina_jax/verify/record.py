"""Record a model's current outputs as its reference values, in ``gold.json`` in its directory.

python -m jina_jax.verify.record DIRECTORY

``jina-jax verify`` then compares the model with them. Run it once, when the weights are final: if
the file is written again after each change, the comparison finds nothing. Rows of the vocabulary
that are in none of the texts are not covered.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.embedder import JinaEmbeddings
from jina_jax.files import write_json
from jina_jax.verify.compare import NO_TASK, REFERENCES_FILE

TEXTS = {
    "english": "The ferry to the island leaves at noon.",
    "german": "Die Fähre zur Insel fährt mittags ab.",
    "russian": "Паром на остров отходит в полдень.",
    "arabic": "تغادر العبّارة إلى الجزيرة ظهرا.",
    "hindi": "द्वीप के लिए नौका दोपहर को निकलती है।",
    "chinese": "去岛上的渡轮中午出发。",
}
_TOKENS, _DIMS = (1, 4), (0, 8)  # the slices: tokens after <s>, first values of each
_ABOUT = (
    "Values of this model in float32 on CPU, written by jina_jax.verify.record. values: slices of "
    "last_hidden_state, [tokens, dims], without prompt. embeddings: the first dims of the unit "
    "vectors that encode gives, with the task's prompt."
)


def write_references(directory: str | Path) -> Path:
    """Write ``gold.json``: slices of hidden states and vectors of six texts, for every task.

    The form is that of ``published.json``, with "embeddings" in addition. Each number is a float32
    with all its digits.

    Args:
      directory: a checkpoint of any layout, with its tokenizer. An existing file is overwritten.

    Returns:
      The path of the file.

    Raises:
      FileNotFoundError: if there is no such directory; names of the Hub are not resolved.
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory}: expected the directory of a checkpoint")
    model = JinaEmbeddings.from_pretrained(directory, dtype="float32")
    path = Path(directory) / REFERENCES_FILE
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
    """Return float32 numbers in nested lists, each with as many digits as it needs."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [float(f"{value:.9g}") for value in array.tolist()]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jina_jax.verify.record DIRECTORY")
    try:
        print(write_references(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
