"""The hash of a checkpoint, by which jobs know that theirs did not change."""

from __future__ import annotations

import hashlib
from pathlib import Path

_HASHED = (".json", ".safetensors", ".bin", ".model")


def hash_of(directory: Path) -> str:
    """Return the SHA-256 of a model's config, weights, adapters and tokenizer."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in _HASHED and p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()} {digest}\n".encode())
    return total.hexdigest()
