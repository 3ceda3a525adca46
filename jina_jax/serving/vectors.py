"""Vectors as bytes of JSON, in pieces that never occupy the event loop for long."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import numpy as np
import orjson

_PIECE = 1 << 15  # values per piece: 1 ms for floats, 2 ms for all kinds


def encoded(vectors: np.ndarray, kind: str) -> list[bytes]:
    """Return each vector as JSON.

    Args:
      vectors: float32 (n, d).
      kind: "float": the shortest decimals that give a float32 back; "base64" of little-endian
        float32; "ubinary" and "binary": a bit per dimension that is above 0, the first one
        highest, as bytes, of which "binary" subtracts 128.
    """
    if kind == "float":
        return [orjson.dumps(own, option=orjson.OPT_SERIALIZE_NUMPY) for own in vectors]
    if kind == "base64":
        own_bytes = np.ascontiguousarray(vectors, "<f4")
        return [b'"' + base64.b64encode(own.tobytes()) + b'"' for own in own_bytes]
    bits = np.packbits(vectors > 0, axis=-1)
    if kind == "binary":
        bits = (bits.astype(np.int16) - 128).astype(np.int8)
    return [orjson.dumps(own.tolist()) for own in bits]


def embeddings(vectors: np.ndarray, kinds: Sequence[str], several: bool) -> list[bytes]:
    """Return each vector as JSON in the kinds asked for; several as an object by kind."""
    if not several:
        return encoded(vectors, kinds[0])
    columns = [encoded(vectors, kind) for kind in kinds]
    names = [orjson.dumps(kind) for kind in kinds]
    return [
        b"{" + b",".join(map(b":".join, zip(names, row, strict=True))) + b"}"
        for row in zip(*columns, strict=True)
    ]


def slices(vectors: np.ndarray) -> Iterator[slice]:
    """Yield the slices of (n, d) that are written one after the other."""
    count = max(1, _PIECE // max(1, vectors.shape[-1]))
    for start in range(0, len(vectors), count):
        yield slice(start, start + count)


def data(vectors: np.ndarray, kinds: Sequence[str], several: bool) -> Iterator[bytes]:
    """Yield the elements of ``data`` of Jina's and OpenAI's replies, in pieces."""
    for part in slices(vectors):
        found = embeddings(vectors[part], kinds, several)
        rows = (
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, own)
            for index, own in enumerate(found, part.start)
        )
        yield (b"," if part.start else b"") + b",".join(rows)


def rows(vectors: np.ndarray) -> Iterator[bytes]:
    """Yield the elements of a list of vectors, in pieces."""
    for part in slices(vectors):
        yield (b"," if part.start else b"") + b",".join(encoded(vectors[part], "float"))
