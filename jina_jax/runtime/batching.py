"""Settings of batches, the platforms' defaults, and the shapes that follow from them.

``jina_jax.runtime.packing`` puts texts into batches of these shapes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import check_integer

# Powers of two and the steps half-way between: at most a third of a row is padding.
_SMALLEST_BUCKET = 16
# A packed row of T tokens has T / 8 slots for texts. Shorter texts than 8 tokens are rare; a row
# full of them ends early. Rows beyond 512 tokens are for long texts, which short ones fill up.
_TOKENS_PER_SLOT = 8
_TOKENS_PER_SLOT_OF_LONG_ROWS = 32
_LONG_ROW = 512
_PACKED_ROWS = (512, 2048, 8192)  # where packing is asked for on a platform that pads
_SMALLEST_OF_FEW = 128  # a matmul of fewer tokens takes an accelerator as long


def packed_slots(length: int) -> int:
    """Return S, the texts that a packed row of this length may hold."""
    most = min(length, _LONG_ROW) // _TOKENS_PER_SLOT
    return max(1, most, length // _TOKENS_PER_SLOT_OF_LONG_ROWS)


@dataclasses.dataclass(frozen=True)
class Batching:
    """How texts are put into batches; what is None is the platform's default (``DEFAULTS``).

    Attributes:
      token_budget: tokens per step of one device, padding included. A longer text is a step.
      packing: whether texts share rows; False pads each text in a row of its own.
      row_lengths: lengths of packed rows, ascending, at most ``token_budget``. A text has a row of
        the shortest of them that it fits, or of a longer one where that makes the work less; texts
        longer than the last are padded.
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
        if self.packing is not None:
            if not isinstance(self.packing, bool | np.bool_):
                raise ValueError(f"packing={self.packing!r}: expected None, True or False")
            object.__setattr__(self, "packing", bool(self.packing))
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
            usual = default.row_lengths or (_PACKED_ROWS if self.packing else ())
            # Under a small budget the only row is one of that length.
            fitting = tuple(length for length in usual if length <= budget)
            lengths = fitting or ((budget,) if usual and budget >= _TOKENS_PER_SLOT else ())
        return CompleteBatching(
            token_budget=budget,
            row_lengths=lengths or (),
            attention_tokens=self.attention_tokens or default.attention_tokens,
            max_texts=self.max_texts,
            few_programs=default.few_programs,
        )


class CompleteBatching(NamedTuple):
    """``Batching`` with a value for everything; ``row_lengths`` is () where texts are padded.

    ``few_programs``: have fewer shapes, at the cost of padding in steps that are not full.
    """

    token_budget: int
    row_lengths: tuple[int, ...] = ()
    attention_tokens: int = 4096
    max_texts: int | None = None
    few_programs: bool = False

    def on(self, platform: str) -> CompleteBatching:
        """Return itself: there is nothing to complete, as in ``Batching.on``."""
        return self

    def rows(self, length: int) -> int:
        """Return the rows of a full step of one device."""
        return max(1, min(self.token_budget // length, self.max_texts or self.token_budget))

    def heights(self, length: int) -> list[int]:
        """Return the numbers of rows that a step of one device may have, ascending."""
        full, growth = self.rows(length), 4 if self.few_programs else 2
        found = [1]
        while found[-1] * growth < full:
            found.append(found[-1] * growth)
        return sorted({*found, full})

    def single_rows(self, longest: int) -> list[int]:
        """Return the lengths of which there is one row per device, where no text is longer."""
        packed = self.packed_rows(longest)
        if not packed:
            return []
        if self.few_programs:
            lengths = {_SMALLEST_OF_FEW << i for i in range(packed[-1].bit_length())}
            return sorted(length for length in lengths - {*packed} if length < packed[-1])
        return [length for length in _buckets(packed[0]) if length < packed[0]]

    def slots(self, length: int) -> int:
        """Return S, the texts that a row of this length may hold."""
        packed = self.row_lengths and length <= self.row_lengths[-1]
        return packed_slots(length) if packed else 1

    def packed_rows(self, longest: int) -> list[int]:
        """Return the lengths of packed rows that are of use where no text is longer."""
        needed = next((length for length in self.row_lengths if length >= longest), math.inf)
        return [length for length in self.row_lengths if length <= max(needed, _LONG_ROW)]


# Measured in benchmarks/RESULTS.md. CPU: matmuls are fastest at about 1,024 tokens, where a step
# stays in the cache. GPU: rows of one text, as cuDNN skips padding by their lengths. TPU: the
# attention kernel skips blocks of other texts, so one program serves short texts and long ones.
DEFAULTS = {
    "cpu": CompleteBatching(1024, row_lengths=(128, 256, 512), attention_tokens=3500),
    "gpu": CompleteBatching(32768, attention_tokens=4096, few_programs=True),
    "tpu": CompleteBatching(
        16384, row_lengths=(256, 512, 2048, 8192), attention_tokens=2048, few_programs=True
    ),
}


def bucket(size: int, smallest: int = _SMALLEST_BUCKET) -> int:
    """Round up to a power of two or one and a half times one, at least ``smallest``."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size and power % 2 == 0:
            return power * 3 // 2
        power *= 2
    return power


def _buckets(longest: int) -> list[int]:
    """List the buckets of texts of up to ``longest`` tokens, ascending."""
    found = [bucket(1)]
    while found[-1] < longest:
        found.append(bucket(found[-1] + 1))
    return found


def shapes(
    batching: CompleteBatching, max_length: int, row_multiple: int = 1
) -> list[tuple[int, int, int]]:
    """List every (B, T, S) that ``make_batches`` can give for texts up to ``max_length`` tokens.

    Each is a program to compile; two, where texts come with and without tasks.
    """
    most = math.inf  # tokens of a device's texts
    if batching.max_texts is not None:
        most = batching.max_texts * max(max_length, _TOKENS_PER_SLOT)
    single, packed = batching.single_rows(max_length), batching.packed_rows(max_length)
    # Where a row per device holds all of its texts, no longer row is less work.
    shorter = [0, *sorted(single + packed)]
    lengths = [own for before, own in itertools.pairwise(shorter) if before < most]
    longest = max(batching.row_lengths, default=0)
    lengths += [length for length in _buckets(max_length) if length > longest]
    return [
        (height * row_multiple, length, batching.slots(length))
        for length in lengths
        for height in ([1] if length in single else batching.heights(length))
    ]
