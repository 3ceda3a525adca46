"""A checkpoint as small as can be, with a tokenizer of single characters."""

import string
from pathlib import Path

from published import write_published
from tokenizer_fixtures import tokenizer_json, write

TINY = {"vocab": 120, "width": 64, "layers": 1, "heads": 2, "inner": 64, "positions": 130}


def write_tiny(directory: Path, size: dict[str, int] = TINY, **changes) -> Path:
    """Write a random checkpoint in the published layout, in which a character is a token."""
    write_published(directory, size, **changes)
    characters = ["▁", *(c for c in string.printable if c.isprintable() and c != " ")]
    fields = tokenizer_json([[c, -5.0] for c in characters], b"")
    write(directory / "tokenizer.json", {**fields, "normalizer": None})
    return directory
