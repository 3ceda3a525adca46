"""From texts of any length to batches of few static shapes.

Rows of one text each are padded to a bucket; or several texts share a row, which is *packed*: they
are numbered 1, 2, …, positions start again at each, and attention stays within each. Both forms are
one type, ``Batch``: a padded row is a packed row with one slot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import check_integer

Group = tuple[list[list[int]], int]  # rows as positions of texts, and the length of a row

# Powers of two and the steps half-way between: at most a third of a row is padding.
_SMALLEST_BUCKET = 16
# A packed row of T tokens has T / 8 slots for texts. Shorter texts than 8 tokens are rare; a row
# full of them ends early.
_TOKENS_PER_SLOT = 8
_PACKED_ROW = 512  # where packing is asked for on a platform that pads


def packed_slots(length: int) -> int:
    """Return S, the texts that a packed row of this length may hold."""
    return max(1, length // _TOKENS_PER_SLOT)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How texts are put into batches; what is None is the platform's default (``DEFAULTS``).

    Attributes:
      token_budget: tokens per step of one device, padding included. A longer text is a step.
      packing: whether texts share rows; False pads each text in a row of its own.
      row_lengths: lengths of packed rows, ascending, at most ``token_budget``; of these the one is
        used that makes the work least. Texts longer than the last are padded.
      attention_tokens: length at which attention takes as long as everything else: packing weighs
        the wasted attention of longer rows against padding with it.
      max_texts: most texts per step of one device; None for no limit.
    """

    token_budget: int | None = None
    packing: bool | None = None
    row_lengths: tuple[int, ...] | None = None
    attention_tokens: int | None = None
    max_texts: int | None = None

    def __post_init__(self) -> None:
        for name in ("token_budget", "attention_tokens", "max_texts"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_integer(name, value, 1))
        if self.packing is not None and not isinstance(self.packing, bool):
            raise ValueError(f"packing={self.packing!r}: expected None, True or False")
        if self.row_lengths is not None:
            object.__setattr__(self, "row_lengths", self._check_lengths(self.row_lengths))

    def _check_lengths(self, given: Any) -> tuple[int, ...]:
        wanted = "an ascending tuple of lengths from 8 to token_budget"
        if not isinstance(given, Iterable):
            raise ValueError(f"row_lengths={given!r}: expected {wanted}, or None")
        lengths = tuple(check_integer("row_lengths", length, 8) for length in given)
        if self.packing is False and lengths:
            raise ValueError(f"row_lengths={given!r}: expected None with packing=False")
        most = max(lengths, default=0) if self.token_budget is None else self.token_budget
        if list(lengths) != sorted(set(lengths)) or max(lengths, default=0) > most:
            raise ValueError(f"row_lengths={given!r}: expected {wanted}")
        return lengths

    def on(self, platform: str) -> CompleteBatching:
        """Return these settings, completed with the defaults of "cpu", "gpu" or "tpu"."""
        default = DEFAULTS[platform]
        budget = self.token_budget or max(default.token_budget, *(self.row_lengths or (0,)))
        lengths = self.row_lengths
        if lengths is None and self.packing is not False:
            usual = default.row_lengths or ((_PACKED_ROW,) if self.packing else ())
            # Under a small budget the only row is one of that length.
            fitting = tuple(length for length in usual if length <= budget)
            lengths = fitting or ((budget,) if usual and budget >= _TOKENS_PER_SLOT else ())
        return CompleteBatching(
            token_budget=budget,
            row_lengths=lengths or (),
            attention_tokens=self.attention_tokens or default.attention_tokens,
            max_texts=self.max_texts,
        )


class CompleteBatching(NamedTuple):
    """``Batching`` with a value for everything; ``row_lengths`` is () where texts are padded."""

    token_budget: int
    row_lengths: tuple[int, ...] = ()
    attention_tokens: int = 4096
    max_texts: int | None = None

    def on(self, platform: str) -> CompleteBatching:
        """Return itself: there is nothing to complete, as in ``Batching.on``."""
        return self

    def rows(self, length: int) -> int:
        """Return the rows of a full step of one device."""
        return max(1, min(self.token_budget // length, self.max_texts or self.token_budget))


# Measured in benchmarks/RESULTS.md. CPU: matmuls are fastest at about 1,024 tokens, where a step
# stays in the cache. GPU: rows of one text, as cuDNN skips padding by their lengths. TPU: the
# kernels compute all of a row, so short rows.
DEFAULTS = {
    "cpu": CompleteBatching(1024, row_lengths=(128, 256, 512), attention_tokens=3500),
    "gpu": CompleteBatching(32768, attention_tokens=4096),
    "tpu": CompleteBatching(16384, row_lengths=(256, 512), attention_tokens=2048),
}


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


def bucket(size: int, smallest: int = _SMALLEST_BUCKET) -> int:
    """Round up to a power of two or one and a half times one, at least ``smallest``."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size and power % 2 == 0:
            return power * 3 // 2
        power *= 2
    return power


def slots(length: int, batching: CompleteBatching) -> int:
    """Return S, the texts that a row of this length may hold."""
    packed = batching.row_lengths and length <= batching.row_lengths[-1]
    return packed_slots(length) if packed else 1


def shapes(
    batching: CompleteBatching, max_length: int, row_multiple: int = 1
) -> list[tuple[int, int, int]]:
    """List every (B, T, S) that ``make_batches`` can give for texts up to ``max_length`` tokens.

    Each is a program to compile; two, where texts come with and without tasks.
    """
    buckets = sorted({bucket(size) for size in range(1, max_length + 1)})
    packed = batching.row_lengths
    # Of rows below the first packed length there is one per device, which several short texts fill.
    longest = math.inf
    if batching.max_texts is not None:
        longest = bucket(batching.max_texts * max(max_length, _TOKENS_PER_SLOT))
    small = sorted({bucket(size) for size in range(1, packed[0])}) if packed else []
    small = [length for length in small if length < packed[0]]
    lengths = [(length, 1) for length in small if length <= longest]
    # Where a row per device holds any ``max_texts`` of them, no longer row is less work.
    lengths += [
        (length, batching.rows(length))
        for length, shorter in zip(packed, (max(small, default=0), *packed), strict=False)
        if longest > shorter
    ]
    lengths += [
        (length, batching.rows(length)) for length in buckets if length > max(packed, default=0)
    ]
    return [
        (height * row_multiple, length, slots(length, batching))
        for length, full in lengths
        for height in sorted({_round_rows(count, full) for count in range(1, full + 1)})
    ]


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
        _fill(ids, rows, length, slots(length, batching), count, pad_id)
        for group, length in groups
        for rows, count in _cut(group, batching.rows(length), row_multiple)
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
    """Pack sorted texts into rows of the one length that makes the work least."""
    lengths = [len(ids[i]) for i in order]
    # What fits a short row on each device is a step of its own kind: one query, a few sentences.
    small = bucket(max(lengths[0], -(-sum(lengths) // row_multiple)))
    while small < batching.row_lengths[0]:
        rows = best_fit(lengths, small, slots(small, batching))
        if len(rows) <= row_multiple:
            return [([[order[k] for k in row] for row in rows], small)]
        small = bucket(small + 1)

    def work(rows: list[list[int]], length: int) -> float:
        steps = _cut(rows, batching.rows(length), row_multiple)
        tokens = sum(count for _, count in steps) * length
        return tokens * (1 + length / batching.attention_tokens)

    candidates = [
        (best_fit(lengths, length, slots(length, batching)), length)
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
