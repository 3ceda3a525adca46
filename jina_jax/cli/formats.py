"""Output formats of ``jina-jax encode``: JSONL, a NumPy file, a table of similarities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

    from jina_jax.cli.rows import Rows

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", ".txt": "table"}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
MOST_TABLE_TEXTS = 20

_LABEL_LENGTH = 60


def pick_format(output: Path | None, kind: str | None) -> str:
    """Choose one of ``FORMATS``: as named, else by the file's suffix, else "jsonl".

    Args:
      output: the file to write; None for stdout.
      kind: the format asked for, if any.

    Raises:
      ValueError: for an unknown suffix or one of another format, or an array for stdout.
    """
    if output is None:
        if kind == "npy":
            raise ValueError("format npy: expected a file to write, --output FILE.npy")
        return kind or "jsonl"
    usual = SUFFIXES.get(output.suffix)
    if kind and usual and kind != usual:
        raise ValueError(f"{output}: expected format {usual} for this suffix, got {kind}")
    kind = kind or usual
    if kind is None:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{output}: expected one of the suffixes {known}, or --format")
    return kind


def check_table(count: int) -> None:
    """Refuse more texts than a table for reading can show."""
    if count > MOST_TABLE_TEXTS:
        raise ValueError(
            f"format table: expected at most {MOST_TABLE_TEXTS} texts, got {count}; "
            "use jsonl or npy"
        )


def write_rows(file: BinaryIO, kind: str, rows: Rows, vectors: np.ndarray) -> None:
    """Write vectors.

    Args:
      file: the file to write to.
      kind: one of ``FORMATS``.
      rows: the n texts.
      vectors: float32 (n, d), finite, C-contiguous.
    """
    import numpy as np

    if kind == "npy":
        # Not np.save, whose error on a full disk is "576000 requested and 992 written".
        header = np.lib.format.header_data_from_array_1_0(vectors)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(vectors.data)
    elif kind == "table":
        file.write(similarity_table(rows.texts, vectors).encode())
    else:
        for text, vector in zip(rows.objects, vectors, strict=True):
            # Nine digits give a float32 back exactly.
            numbers = ", ".join(f"{value:.9g}" for value in vector.tolist())
            file.write(f'{text[:-1].rstrip()}, "embedding": [{numbers}]}}\n'.encode())


def similarity_table(texts: Sequence[str], vectors: np.ndarray) -> str:
    """Lay out the cosine similarities of n texts with vectors (n, d) for reading.

    Returns:
      A heading, and n lines: number of the text, n similarities (0 for a zero vector), the text.
    """
    from jina_jax.nn.pooling import unit

    units = unit(vectors)
    lines = ["  " + "".join(f"{number:>8}" for number in range(1, len(texts) + 1))]
    for number, (text, row) in enumerate(zip(texts, units @ units.T, strict=True), start=1):
        lines.append(f"{number:>2}" + "".join(f"{v:>8.3f}" for v in row) + f"  {_label(text)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def one_line(text: str) -> str:
    """Show a text in one line, without control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _label(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
