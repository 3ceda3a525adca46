"""From texts of any length to batches of few static shapes.

Rows of one text each are padded to a bucket; or several texts share a row, which is *packed*: they
are numbered 1, 2, …, positions start again at each, and attention stays within each. Both forms are
one type, ``Batch``: a padded row is a packed row with one slot.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.runtime.batching import CompleteBatching, bucket, packed_slots

Row = list[int]  # positions of texts
Group = tuple[list[Row], int]  # rows of one length, and that length


class Batch(NamedTuple):
    """One step's texts.

    Attributes:
      indices: int (n,), positions of the texts in the input.
      rows, slots: int (n,), where each text is.
      input_ids: int32 (B, T), padded with the pad id.
      text_spans: int32 (B, S, 2), first token of the text in each slot and the one after its last;
        equal in empty slots, which are the last ones. S is 1 in padded batches.
    """

    indices: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    input_ids: np.ndarray
    text_spans: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, S."""
        return (*self.input_ids.shape, self.text_spans.shape[1])


def make_batches(
    ids: Sequence[Sequence[int]], batching: CompleteBatching, pad_id: int, row_multiple: int = 1
) -> list[Batch]:
    """Put texts into batches, longest first.

    Args:
      ids: token ids of each text.
      batching: the settings.
      pad_id: fills rows up.
      row_multiple: devices that share the rows of a batch: B is a multiple of it.

    Returns:
      Batches in which every text has one slot. Their shapes are among ``shapes(…)``.
    """
    order = np.argsort([-len(row) for row in ids], kind="stable").tolist()
    size = max(1, len(order))
    if batching.max_texts is not None:
        size = batching.max_texts * row_multiple
    groups: list[Group] = []
    for start in range(0, len(order), size):
        groups += _groups(ids, order[start : start + size], batching, row_multiple)
    return [
        _fill(ids, rows, length, batching.slots(length), count, pad_id)
        for group, length in groups
        for rows, count in _cut(group, batching.heights(length), row_multiple)
    ]


def _groups(ids, order, batching: CompleteBatching, row_multiple: int) -> list[Group]:
    """Pad the sorted texts that are too long for packed rows, and pack the others."""
    longest = max(batching.row_lengths, default=0)
    long = [i for i in order if len(ids[i]) > longest]
    groups = list(_pad(ids, long, batching, row_multiple))
    if len(long) < len(order):
        groups += _pack(ids, order[len(long) :], batching, row_multiple)
    return groups


def _pad(ids, order, batching: CompleteBatching, row_multiple: int) -> Iterator[Group]:
    """Cut sorted texts into steps, each with the bucket of its longest text."""
    start = 0
    while start < len(order):
        length = bucket(len(ids[order[start]]))
        stop = start + batching.rows(length) * row_multiple
        yield [[i] for i in order[start:stop]], length
        start = stop


def _pack(ids, order, batching: CompleteBatching, row_multiple: int) -> list[Group]:
    """Pack sorted texts into rows of the lengths that make the work least."""
    lengths = [len(ids[i]) for i in order]
    groups = _single_step(lengths, batching, row_multiple) or _least_work(
        lengths, batching, row_multiple
    )
    return [([[order[k] for k in row] for row in rows], length) for rows, length in groups]


def _single_step(lengths: list[int], batching: CompleteBatching, row_multiple: int) -> list[Group]:
    """Pack what fits one row per device: a query, a few sentences, a document; [] if it does not.

    Rows of which there may be more are left to ``_least_work``.
    """
    least = max(lengths[0], -(-sum(lengths) // row_multiple))
    packed = batching.packed_rows(lengths[0])
    for length in sorted(batching.single_rows(lengths[0]) + packed):
        if length >= least:
            rows = best_fit(lengths, [length])[length]
            if len(rows) <= row_multiple:
                return [] if length in packed else [(rows, length)]
    return []


def _least_work(lengths: list[int], batching: CompleteBatching, row_multiple: int) -> list[Group]:
    """Pack into rows of some lengths and longer ones, whichever is the least work."""

    def per_token(length: int) -> float:
        return 1 + length / batching.attention_tokens

    best: list[Group] = []
    least = math.inf
    packed = batching.packed_rows(lengths[0])
    for start, shortest in enumerate(packed):
        if sum(lengths) * per_token(shortest) >= least:
            break  # even without padding
        groups = [(r, size) for size, r in best_fit(lengths, packed[start:]).items() if r]
        work = sum(
            count * length * per_token(length)
            for rows, length in groups
            for _, count in _cut(rows, batching.heights(length), row_multiple)
        )
        if work < least:
            best, least = groups, work
    return best


def best_fit(
    lengths: Sequence[int],
    capacities: Sequence[int],
    slots: Callable[[int], int] = packed_slots,
) -> dict[int, list[Row]]:
    """Pack texts, longest first, each into the fullest row that has room for it.

    Args:
      lengths: tokens of each text, descending, at most the last capacity.
      capacities: tokens of rows, ascending. A text without room elsewhere begins a row of the
        first of them that it fits.
      slots: from a row's capacity to the texts that it may hold.

    Returns:
      Rows of each capacity; a row is the positions of its texts in ``lengths``.
    """
    rows: dict[int, list[Row]] = {capacity: [] for capacity in capacities}
    with_room: dict[int, list[tuple[Row, int]]] = defaultdict(list)  # room → rows, free slots
    rooms = 0  # a bit for each room that a row has
    for k, length in enumerate(lengths):
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row, free = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room = next(capacity for capacity in capacities if capacity >= length)
            row, free = [], slots(room)
            rows[room].append(row)
        row.append(k)
        if free > 1:
            with_room[room - length].append((row, free - 1))
            rooms |= 1 << (room - length)
    return rows


def _cut(rows: list[Row], heights: list[int], row_multiple: int) -> list[tuple[list[Row], int]]:
    """Cut rows into steps of few heights: (rows of the step, B)."""
    steps, most = [], heights[-1] * row_multiple
    while rows:
        step, rows = rows[:most], rows[most:]
        at = next(i for i, height in enumerate(heights) if len(step) <= height * row_multiple)
        # Rather one step more than one that is mostly empty: five rows are four and one.
        if at and len(step) < most and 4 * len(step) < 3 * heights[at] * row_multiple:
            at -= 1
            size = heights[at] * row_multiple
            step, rows = step[:size], step[size:] + rows
        steps.append((step, heights[at] * row_multiple))
    return steps


def _fill(ids, rows: list[Row], length: int, most: int, count: int, pad_id: int) -> Batch:
    """Write texts into the rows of a batch."""
    input_ids = np.full((count, length), pad_id, np.int32)
    text_spans = np.zeros((count, most, 2), np.int32)
    found = []
    for row, texts in enumerate(rows):
        start = 0
        for slot, index in enumerate(texts):
            stop = start + len(ids[index])
            input_ids[row, start:stop] = ids[index]
            text_spans[row, slot] = start, stop
            found.append((index, row, slot))
            start = stop
        text_spans[row, len(texts) :] = start
    indices, at_rows, at_slots = np.array(found, np.int64).reshape(-1, 3).T
    return Batch(indices, at_rows, at_slots, input_ids, text_spans)
