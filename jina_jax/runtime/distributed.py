"""Several processes on one mesh.

Every process calls ``encode`` with the same texts, tokenises its share of them, feeds the rows of
its own devices and returns all vectors. (A process with a mesh of its ``jax.local_devices()`` needs
none of this: it works on its own texts.)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jina_jax.runtime.requests import Preparation, Prepared, Request
from jina_jax.runtime.tokenizing import Tokens


def spans_processes(mesh: Mesh | None) -> bool:
    """Return whether a mesh has devices of other processes."""
    if mesh is None:
        return False
    here = jax.process_index()
    return any(device.process_index != here for device in mesh.devices.flat)


def check_same(texts: Sequence[str]) -> None:
    """Check that every process was given the same texts.

    Raises:
      ValueError: if not, on each of them.
    """
    checksum = zlib.crc32("\0".join(texts).encode()) & 0x7FFFFFFF  # JAX gathers 32 bits
    seen = multihost_utils.process_allgather(np.array([len(texts), checksum], np.int32))
    if (seen != seen[0]).any():
        raise ValueError(
            f"texts: expected the same texts on every process of the mesh, got (count, checksum) "
            f"{seen.tolist()}; for texts of its own give each process "
            f"mesh=make_mesh(devices=jax.local_devices())"
        )


def share_preparation(requests: Sequence[Request], preparation: Preparation) -> list[Prepared]:
    """Tokenise every process's share of the requests there, and prepare all of them.

    Raises:
      ValueError: as ``check_same``, and for spans of chunks that do not fit their text.
    """
    check_same([request.prompt + request.text for request in requests])
    count, here = jax.process_count(), jax.process_index()
    own = preparation.tokenize(requests[here::count])
    rows = gather_rows([_flatten(tokens) for tokens in own])
    tokens = (rows[i % count][i // count] for i in range(len(requests)))
    return [
        preparation.prepare(request, _unflatten(row, request.chunks is not None))
        for request, row in zip(requests, tokens, strict=True)
    ]


def gather_rows(rows: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Return the rows of numbers, each of any length, that every process has, by process."""
    # Equal shapes everywhere: the most rows and the longest that any process has.
    size = np.array([len(rows), max(map(len, rows), default=0)], np.int32)
    height, width = multihost_utils.process_allgather(size).max(axis=0)
    table = np.full((height, width + 1), -1, np.int32)
    for row, numbers in zip(table, rows, strict=False):
        row[0] = len(numbers)
        row[1 : len(numbers) + 1] = numbers
    tables = multihost_utils.process_allgather(table)
    return [[row[1 : row[0] + 1].tolist() for row in own if row[0] >= 0] for own in tables]


def _flatten(tokens: Tokens) -> list[int]:
    """Return ids and, behind them, the two ends of each offset."""
    return [*tokens.ids, *(end for offset in tokens.offsets or () for end in offset)]


def _unflatten(row: list[int], has_offsets: bool) -> Tokens:
    if not has_offsets:
        return Tokens(row)
    count = len(row) // 3
    ends = iter(row[count:])
    return Tokens(row[:count], list(zip(ends, ends, strict=True)))
