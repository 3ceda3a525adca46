"""From texts of any length to batches of few static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Powers of two and the steps half-way between: at most a third of a row is padding, and a text of
# 8192 tokens has 18 shapes below it.
_SMALLEST_BUCKET = 16


class Batch(NamedTuple):
    """Rows of one padded length.

    Attributes:
      indices: positions of the rows' texts in the input, (n,) with n ≤ B.
      input_ids: int32 (B, T), padded with the pad id.
      attention_mask: bool (B, T); rows behind the n-th have no token at all.
    """

    indices: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray


def bucket(size: int, smallest: int, largest: int) -> int:
    """Round up to a power of two or one and a half times one, within ``smallest`` … ``largest``."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size and power % 2 == 0:
            return min(power * 3 // 2, largest)
        power *= 2
    return min(power, largest)


def make_batches(
    ids: Sequence[Sequence[int]], batch_size: int, max_length: int, pad_id: int
) -> list[Batch]:
    """Sort texts by length and cut them into padded batches.

    The number of shapes, and so of compilations, is bounded: lengths are rounded up by ``bucket``,
    and a batch has ``batch_size`` rows or, for the rest, a power of two.

    Args:
      ids: token ids of each text, at most ``max_length`` of them.
      batch_size: most rows in a batch.
      max_length: longest row.
      pad_id: fills rows up.
    """
    order = np.argsort([-len(row) for row in ids], kind="stable")
    return [
        _pad([ids[i] for i in chosen], chosen, batch_size, max_length, pad_id)
        for chosen in (order[i : i + batch_size] for i in range(0, len(order), batch_size))
    ]


def _pad(
    rows: list[Sequence[int]], indices: np.ndarray, batch_size: int, max_length: int, pad_id: int
) -> Batch:
    length = bucket(max(map(len, rows)), _SMALLEST_BUCKET, max_length)
    count = min(1 << (len(rows) - 1).bit_length(), batch_size)
    input_ids = np.full((count, length), pad_id, np.int32)
    attention_mask = np.zeros((count, length), bool)
    for row, text in enumerate(rows):
        input_ids[row, : len(text)] = text
        attention_mask[row, : len(text)] = True
    return Batch(indices, input_ids, attention_mask)
