"""Several processes, one mesh: what they must agree on.

Every process calls ``encode`` with the same texts, tokenises its share of them, feeds the rows of
its own devices and gets all vectors. (A process with a mesh of its ``jax.local_devices()`` needs
none of this: it works on its own texts.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh


def spans_processes(mesh: Mesh | None) -> bool:
    """Tell whether a mesh has devices of other processes."""
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


def share_tokenization(
    texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[list[int]]]
) -> list[list[int]]:
    """Tokenise every process's share of the texts there, and return the ids of all.

    Raises:
      ValueError: as ``check_same``.
    """
    check_same(texts)
    count, here = jax.process_count(), jax.process_index()
    own = tokenize(texts[here::count])
    # Equal shapes everywhere: the most texts and the most tokens that any process has.
    size = np.array([len(own), max(map(len, own), default=0)], np.int32)
    height, width = multihost_utils.process_allgather(size).max(axis=0)
    table = np.full((height, width + 1), -1, np.int32)
    for row, ids in enumerate(own):
        table[row, 0] = len(ids)
        table[row, 1 : len(ids) + 1] = ids
    tables = multihost_utils.process_allgather(table)
    rows = (tables[i % count, i // count] for i in range(len(texts)))
    return [row[1 : row[0] + 1].tolist() for row in rows]
