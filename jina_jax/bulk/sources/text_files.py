"""Text files, compressed or not, as streams of bytes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from jina_jax.bulk.sources.base import open_file, readable

_BUFFER = 1 << 20  # bytes
_CODECS = {".gz": "gzip", ".zst": "zstd"}
EXPANSION = 4  # of compressed texts, about


def codec_of(url: str) -> str | None:
    """Return how a file is compressed, by its name."""
    return next((codec for end, codec in _CODECS.items() if url.lower().endswith(end)), None)


@contextlib.contextmanager
def open_text(url: str) -> Iterator[BinaryIO]:
    """Open a file as the bytes of its texts; seekable if it is not compressed."""
    codec = codec_of(url)
    with readable(url), open_file(url) as raw:
        file = raw if codec is None else pa.CompressedInputStream(raw, codec)
        with io.BufferedReader(cast(io.RawIOBase, file), _BUFFER) as opened:
            yield cast(BinaryIO, opened)
