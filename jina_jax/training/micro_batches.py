"""Token ids of a training batch, packed into micro-batches of one static shape.

All texts of a batch, queries and documents alike, share rows (``jina_jax.runtime.packing``), and
the rows are cut into micro-batches, which the encoder sees one at a time. A batch of any size is
one array (C, R, T).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.runtime.batching import bucket, packed_slots
from jina_jax.runtime.packing import best_fit


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a batch is cut into micro-batches.

    Attributes:
      micro_batch_tokens: tokens that the encoder sees at once on one device, padding included;
        one row may be longer, for a long text.
      row_lengths: lengths of packed rows, ascending; a longer text gets a row of the next power of
        two, or one and a half times one.
      row_multiple: devices that share the rows of a micro-batch.
    """

    micro_batch_tokens: int = 8192
    row_lengths: tuple[int, ...] = (128, 256, 512)
    row_multiple: int = 1


class MicroBatches(NamedTuple):
    """A batch of n texts in C micro-batches of R rows of T tokens; S texts fit in a row.

    Attributes:
      input_ids: int32 (C, R, T).
      text_spans: int32 (C, R, S, 2), first token of each text and the one after its last.
      task_ids: int32 (C, R, S), -1 for none.
      used: bool (C,), False for micro-batches without any text, which cost nothing.
      slots: int32 (n,), the slot of each text among the C · R · S.
    """

    input_ids: np.ndarray
    text_spans: np.ndarray
    task_ids: np.ndarray
    used: np.ndarray
    slots: np.ndarray

    @property
    def padding(self) -> float:
        """Share of the computed positions without a token."""
        tokens = (self.text_spans[..., 1] - self.text_spans[..., 0]).sum()
        return float(1 - tokens / (self.used.sum() * self.input_ids[0].size))


def pack(
    ids: Sequence[Sequence[int]], task_ids: Sequence[int], packing: Packing, pad_id: int
) -> MicroBatches:
    """Pack the texts of a batch.

    Args:
      ids: token ids of n texts.
      task_ids: the task of each text, -1 for none.
      packing: the settings.
      pad_id: fills rows up.

    Raises:
      ValueError: without any text.
    """
    if not ids:
        raise ValueError("ids: expected at least one text, got none")
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    lengths = [len(ids[i]) for i in order]
    length, rows = _rows(lengths, packing)
    count, height = _shape(len(rows), length, packing)
    slots = packed_slots(length)
    input_ids = np.full((count * height, length), pad_id, np.int32)
    text_spans = np.zeros((count * height, slots, 2), np.int32)
    tasks = np.full((count * height, slots), -1, np.int32)
    where = np.zeros(len(ids), np.int32)
    for row, members in enumerate(rows):
        start = 0
        for slot, member in enumerate(members):
            text = order[member]
            stop = start + len(ids[text])
            input_ids[row, start:stop] = ids[text]
            text_spans[row, slot] = start, stop
            tasks[row, slot] = task_ids[text]
            where[text] = row * slots + slot
            start = stop
    used = np.arange(count) * height < len(rows)
    return MicroBatches(
        input_ids.reshape(count, height, length),
        text_spans.reshape(count, height, slots, 2),
        tasks.reshape(count, height, slots),
        used,
        where,
    )


def _rows(lengths: list[int], packing: Packing) -> tuple[int, list[list[int]]]:
    """Pack descending lengths into rows of the length that leaves the least empty."""
    longest = lengths[0]
    fitting = [size for size in packing.row_lengths if size >= longest] or [bucket(longest)]
    # Only a text that needs it may have a row longer than a micro-batch; less padding is no reason.
    sizes = [size for size in fitting if size <= packing.micro_batch_tokens] or fitting[:1]
    candidates = [(size, best_fit(lengths, [size])[size]) for size in sizes]

    def work(candidate: tuple[int, list[list[int]]]) -> int:
        size, rows = candidate
        count, height = _shape(len(rows), size, packing)
        # Of equal work the shorter rows: less attention between tokens of different texts.
        return min(count, -(-len(rows) // height)) * height * size

    return min(candidates, key=work)


def _shape(rows: int, length: int, packing: Packing) -> tuple[int, int]:
    """Return C and R: as few micro-batches as fit in memory, of even height.

    Each shape is a program, so there are few: C is a power of two, the last micro-batches may be
    unused, and R is rounded up to an eighth of a power of two.
    """
    per_device = -(-rows // packing.row_multiple)
    full = max(1, packing.micro_batch_tokens // length)
    micro_batches = -(-per_device // full)
    height = -(-per_device // micro_batches)
    step = 1 << max(0, height.bit_length() - 4)
    height = min(-(-height // step) * step, full)
    return 1 << (micro_batches - 1).bit_length(), height * packing.row_multiple
