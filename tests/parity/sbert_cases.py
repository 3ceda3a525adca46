"""Models of sentence-transformers with each option that its files can name, and how far ours are.

``python tests/parity/table.py`` prints the table; ``test_parity_sbert.py`` tests its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sbert import TEXTS, encoder_files, theirs, unit, write_sbert

from jina_jax import JinaEmbeddings
from jina_jax.convert import open_checkpoint, write_checkpoint

QUERY = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
LONG = ["The train to the sea is late again today because of snow. " * 4]
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# What sentence-transformers writes, and the arguments of encode on both sides.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"pooling_mode {mode}": ({"pooling": {"pooling_mode": mode}}, {}) for mode in POOLINGS},
    **{
        f"include_prompt false, {mode}": (
            {"pooling": {"pooling_mode": mode, "include_prompt": False}, **QUERY},
            {},
        )
        for mode in POOLINGS
        if mode != "weightedmean"
    },
    "include_prompt false, other prompt": (
        {"pooling": {"include_prompt": False}, **QUERY},
        {"prompt_name": "passage"},
    ),
    "default_prompt_name": (QUERY, {}),
    "prompt_name": (QUERY, {"prompt_name": "passage"}),
    "prompt": (QUERY, {"prompt": "about: "}),
    "no Normalize": ({"normalize": False}, {}),
    "max_seq_length": ({"max_seq_length": 16}, {}),
    "truncate_dim": ({"truncate_dim": 6}, {}),
    "Dense Tanh": ({"dense": [(8, "Tanh", True)]}, {}),
    "Dense Identity, wider": ({"dense": [(24, "Identity", True)]}, {}),
    "Dense without bias": ({"dense": [(8, "Tanh", False)]}, {}),
    "Dense twice, no Normalize": (
        {"dense": [(12, "Tanh", True), (5, "Identity", False)], "normalize": False},
        {},
    ),
    "Dense, truncate_dim": ({"dense": [(8, "Tanh", True)], "truncate_dim": 4}, {"truncate_dim": 3}),
    "Dense on cls, prompt left out": (
        {
            "dense": [(8, "Tanh", True)],
            "pooling": {"pooling_mode": "cls", "include_prompt": False},
            **QUERY,
        },
        {},
    ),
}


class Row(NamedTuple):
    """One comparison: what was done, both results in words, and their largest difference."""

    what: str
    ours: str
    theirs: str
    difference: float


def compare(name: str, root: Path) -> Iterator[Row]:
    """Compare the model of a case, converted to native, and converted back."""
    written, call = CASES[name]
    texts = TEXTS + (LONG if "max_seq_length" in written else [])
    source = write_sbert(root / "theirs", encoder_files(root.parent / "encoder"), **written)
    expected = theirs(source, texts, **call)
    write_checkpoint(open_checkpoint(source), root / "native", "native")
    write_checkpoint(open_checkpoint(root / "native"), root / "back", "xlm-roberta")
    for layout in ("theirs", "native"):
        found = ours(root / layout, texts, call)
        yield Row(name, f"encode, {layout}", "encode", _largest(found, unit(expected)))
    again = theirs(root / "back", texts, **call)
    yield Row(name, "convert to xlm-roberta", "encode, ours and theirs", _largest(again, expected))


def ours(directory: Path, texts: list[str], call: dict[str, Any]) -> np.ndarray:
    """Encode with our library, which warns of texts that are cut."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tokens were cut off")
        return JinaEmbeddings.from_pretrained(directory).encode(texts, **call)


def _largest(left: np.ndarray, right: np.ndarray) -> float:
    return float("inf") if left.shape != right.shape else float(np.abs(left - right).max())
