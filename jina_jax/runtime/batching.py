"""From texts of any length to batches of few static shapes.

Rows of one text each are padded to a bucket; or several texts share a row, which is *packed*: they
are numbered 1, 2, …, positions start again at each, and attention stays within each. Both forms are
one type, ``Batch``: a padded row is a packed row with one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Group = tuple[list[list[int]], int]  # rows as positions of texts, and the length of a row

# Powers of two and the steps half-way between: at most a third of a row is padding.
_SMALLEST_BUCKET = 16
# A packed row of T tokens has T / 8 places for texts. Shorter texts than 8 tokens are rare; a row
# full of them ends early.
_TOKENS_PER_PLACE = 8


def packed_places(length: int) -> int:
    """Return S, the texts that a packed row of this length may hold."""
    return max(1, length // _TOKENS_PER_PLACE)


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


@dataclasses.dataclass(frozen=True)
class Batching:
    """How texts are put into batches.

    Attributes:
      token_budget: tokens of a step on one device, padding included. A longer text is a step.
      row_lengths: rows in which texts are packed, ascending; () pads each text instead. Of these
        the one is taken that makes the work least. Texts longer than the last are padded.
      attention_tokens: length at which attention takes as long as everything else: packing weighs
        the wasted attention of longer rows against padding with it.
      max_rows: most rows in a step of one device; None for what the budget allows.
    """

    token_budget: int
    row_lengths: tuple[int, ...] = ()
    attention_tokens: int = 4096
    max_rows: int | None = None

    def __post_init__(self) -> None:
        lengths = self.row_lengths
        rules = [
            ("token_budget", self.token_budget, "a positive integer", _positive(self.token_budget)),
            (
                "row_lengths",
                lengths,
                "an ascending tuple of lengths from 8 to token_budget",
                all(map(_positive, lengths))
                and list(lengths) == sorted(set(lengths))
                and (not lengths or (lengths[0] >= 8 and lengths[-1] <= self.token_budget)),
            ),
            (
                "attention_tokens",
                self.attention_tokens,
                "a positive integer",
                _positive(self.attention_tokens),
            ),
            (
                "max_rows",
                self.max_rows,
                "None or a positive integer",
                self.max_rows is None or _positive(self.max_rows),
            ),
        ]
        for name, value, expected, holds in rules:
            if not holds:
                raise ValueError(f"{name}={value!r}: expected {expected}")

    def rows(self, length: int) -> int:
        """Return the rows of a full step of one device."""
        return max(1, min(self.token_budget // length, self.max_rows or self.token_budget))


# Measured in benchmarks/RESULTS.md. CPU: matmuls are fastest at about 1,024 tokens, where a step
# stays in the cache. GPU: rows of one text, as cuDNN skips padding by their lengths. TPU: the
# kernels compute all of a row, so short rows.
DEFAULTS = {
    "cpu": Batching(token_budget=1024, row_lengths=(128, 256, 512), attention_tokens=3500),
    "gpu": Batching(token_budget=32768, attention_tokens=4096),
    "tpu": Batching(token_budget=16384, row_lengths=(256, 512), attention_tokens=2048),
}


class Batch(NamedTuple):
    """One step's texts.

    Attributes:
      indices: int (n,), positions of the texts in the input.
      rows, places: int (n,), where each text is.
      input_ids: int32 (B, T), padded with the pad id.
      segments: int32 (B, S, 2), first token of the text in each place and the one after its last;
        equal in empty places, which come last. S is 1 in padded batches.
    """

    indices: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    input_ids: np.ndarray
    segments: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, S."""
        return (*self.input_ids.shape, self.segments.shape[1])


def bucket(size: int, smallest: int = _SMALLEST_BUCKET) -> int:
    """Round up to a power of two or one and a half times one, at least ``smallest``."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size and power % 2 == 0:
            return power * 3 // 2
        power *= 2
    return power


def places(length: int, batching: Batching) -> int:
    """Return S, the texts that a row of this length may hold."""
    packed = batching.row_lengths and length <= batching.row_lengths[-1]
    return packed_places(length) if packed else 1


def shapes(
    batching: Batching, max_length: int, row_multiple: int = 1
) -> list[tuple[int, int, int]]:
    """List every (B, T, S) that ``make_batches`` can give for texts up to ``max_length`` tokens.

    Each is a program to compile; two, where texts come with and without tasks.
    """
    buckets = sorted({bucket(size) for size in range(1, max_length + 1)})
    packed = batching.row_lengths
    # Of rows below the first packed length there is one a device. Short texts fill them together.
    small = sorted({bucket(size) for size in range(1, packed[0])}) if packed else []
    lengths = [(length, 1) for length in small if length < packed[0]]
    lengths += [(length, batching.rows(length)) for length in packed]
    lengths += [
        (length, batching.rows(length)) for length in buckets if length > max(packed, default=0)
    ]
    return [
        (height * row_multiple, length, places(length, batching))
        for length, full in lengths
        for height in sorted({_round_rows(count, full) for count in range(1, full + 1)})
    ]


def make_batches(
    ids: Sequence[Sequence[int]], batching: Batching, pad_id: int, row_multiple: int = 1
) -> list[Batch]:
    """Put texts into batches, longest first.

    Args:
      ids: token ids of each text.
      batching: the settings.
      pad_id: fills rows up.
      row_multiple: devices that share the rows of a batch: B is a multiple of it.

    Returns:
      Batches in which every text has one place. Their shapes are among ``shapes(…)``.
    """
    order = np.argsort([-len(row) for row in ids], kind="stable").tolist()
    longest = max(batching.row_lengths, default=0)
    long = [i for i in order if len(ids[i]) > longest]
    groups = list(_pad(ids, long, batching, row_multiple))
    if len(long) < len(ids):
        groups += _pack(ids, order[len(long) :], batching, row_multiple)
    return [
        _fill(ids, rows, length, places(length, batching), count, pad_id)
        for group, length in groups
        for rows, count in _cut(group, batching.rows(length), row_multiple)
    ]


def _pad(ids, order, batching: Batching, row_multiple: int) -> Iterator[Group]:
    """Cut sorted texts into steps, each with the bucket of its longest text."""
    start = 0
    while start < len(order):
        length = bucket(len(ids[order[start]]))
        stop = start + batching.rows(length) * row_multiple
        yield [[i] for i in order[start:stop]], length
        start = stop


def _pack(ids, order, batching: Batching, row_multiple: int) -> list[Group]:
    """Pack sorted texts into rows of the one length that makes the work least."""
    lengths = [len(ids[i]) for i in order]
    # What fits a short row on each device is a step of its own kind: one query, a few sentences.
    small = bucket(max(lengths[0], -(-sum(lengths) // row_multiple)))
    while small < batching.row_lengths[0]:
        rows = best_fit(lengths, small, places(small, batching))
        if len(rows) <= row_multiple:
            return [([[order[k] for k in row] for row in rows], small)]
        small = bucket(small + 1)

    def work(rows: list[list[int]], length: int) -> float:
        steps = _cut(rows, batching.rows(length), row_multiple)
        tokens = sum(count for _, count in steps) * length
        return tokens * (1 + length / batching.attention_tokens)

    candidates = [
        (best_fit(lengths, length, places(length, batching)), length)
        for length in batching.row_lengths
        if length >= lengths[0]
    ]
    rows, length = min(candidates, key=lambda candidate: work(*candidate))
    return [([[order[k] for k in row] for row in rows], length)]


def best_fit(lengths: Sequence[int], capacity: int, most: int) -> list[list[int]]:
    """Pack texts, longest first, each into the fullest row that has room for it.

    Args:
      lengths: tokens of each text, descending, at most ``capacity``.
      capacity: tokens of a row.
      most: texts of a row.

    Returns:
      For each row the positions of its texts in ``lengths``.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room left → rows
    for k, length in enumerate(lengths):
        room = next((r for r in range(length, capacity + 1) if with_room[r]), None)
        if room is None:
            row, room = len(rows), capacity
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(k)
        if len(rows[row]) < most:
            with_room[room - length].append(row)
    return rows


def _cut(rows: list, full: int, row_multiple: int) -> list[tuple[list, int]]:
    """Cut rows into steps of few heights: (rows of the step, B)."""
    steps, most = [], full * row_multiple
    while rows:
        step, rows = rows[:most], rows[most:]
        height = _round_rows(-(-len(step) // row_multiple), full)
        lower = height // 2
        # Rather one step more than one that is mostly empty: five rows are four and one.
        if len(step) < most and lower and 4 * len(step) < 3 * height * row_multiple:
            step, rows = step[: lower * row_multiple], step[lower * row_multiple :] + rows
            height = lower
        steps.append((step, height * row_multiple))
    return steps


def _round_rows(count: int, full: int) -> int:
    """Round up to a power of two, or to a full step."""
    return min(1 << (count - 1).bit_length(), full)


def _fill(ids, rows: list[list[int]], length: int, most: int, count: int, pad_id: int) -> Batch:
    """Write texts into the rows of a batch."""
    input_ids = np.full((count, length), pad_id, np.int32)
    segments = np.zeros((count, most, 2), np.int32)
    found = []
    for row, texts in enumerate(rows):
        start = 0
        for place, index in enumerate(texts):
            stop = start + len(ids[index])
            input_ids[row, start:stop] = ids[index]
            segments[row, place] = start, stop
            found.append((index, row, place))
            start = stop
        segments[row, len(texts) :] = start
    indices, at_rows, at_places = np.array(found, np.int64).reshape(-1, 3).T
    return Batch(indices, at_rows, at_places, input_ids, segments)
