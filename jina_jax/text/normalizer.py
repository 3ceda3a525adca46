"""Text normalisation, edit for edit as in the ``tokenizers`` library.

A normalizer rewrites a text (``apply``) and, if offsets are needed, keeps for every character of
the result the span of the original text that it represents (``align``).
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import regex

Span = tuple[int, int]
Edit = tuple[str, int]  # a character and its kind: see ``_realign``

# Unicode White_Space. Python's str.split and \s also treat U+001C..U+001F as spaces.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
# Longer grapheme clusters are normalised character by character, so that longer keys, which are
# nine in ten, never match.
_MAX_CLUSTER_BYTES = 5


class Normalizer(Protocol):
    """A rewriting of texts."""

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        ...

    def align(self, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Return the normalised text, and a span of the original for each of its characters."""
        ...


class Charsmap:
    """SentencePiece's precompiled rewriting rules, applied grapheme cluster by grapheme cluster.

    A cluster of at most five UTF-8 bytes that begins with a key is replaced by the value of the
    *shortest* such key, and the rest of it is dropped; others are rewritten character by character.

    Clusters are those of UAX #29 with the character properties of the ``regex`` package. Its
    Unicode version can be newer than that of ``tokenizers``: the two can disagree about code points
    that the older one leaves unassigned.

    Args:
      rules: replacements by key; keys have one or more characters.
    """

    def __init__(self, rules: Mapping[str, str]):
        self._rules = dict(rules)
        mapped = {key for key in self._rules if len(key) == 1 and key <= "\uffff"}
        # ``re`` has a table of BMP characters but tries ranges above them one by one: beyond the
        # BMP every character is a candidate.
        self._candidate = re.compile(f"[{_char_class(mapped)}\U00010000-\U0010ffff]")
        suspects = mapped | _cluster_makers()
        self._suspect = re.compile(f"[{_char_class(suspects)}\U00010000-\U0010ffff]")

    @classmethod
    def from_base64(cls, blob: str) -> Charsmap:
        """Decode ``precompiled_charsmap``.

        Raises:
          ValueError: if the blob is not base64, is truncated or has text that is not UTF-8.
        """
        try:
            return cls(_decode_charsmap(base64.b64decode(blob, validate=True)))
        except (binascii.Error, UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"not a SentencePiece charsmap in base64: {error}") from error

    def apply(self, text: str) -> str:
        """Return the normalised text; one that no rule can change costs a single scan."""
        if not self._suspect.search(text):
            return text
        if not _short_cluster().search(text):
            rules = self._rules
            return self._candidate.sub(lambda match: rules.get(match[0], match[0]), text)
        return "".join(new for _, new in self._rewrites(text))

    def align(self, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Return the normalised text, and a span of the original for each of its characters."""
        edits: list[Edit] = []
        for old, new in self._rewrites(text):
            added = len(new) - len(old)
            edits += [(char, int(i >= len(old))) for i, char in enumerate(new)]
            if added < 0 and edits:  # removed characters belong to the last one kept, if any
                edits[-1] = (edits[-1][0], edits[-1][1] + added)
        return "".join(char for char, _ in edits), _realign(spans, edits)

    def _rewrites(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield pairs (old, new) in order; joined, the old parts are the text."""
        clusters: list[str] = _cluster().findall(text)
        for cluster in clusters:
            if len(cluster) > 1 and len(cluster.encode()) <= _MAX_CLUSTER_BYTES:
                new = self._shortest_match(cluster)
                if new is not None:
                    yield cluster, new
                    continue
            for char in cluster:
                yield char, self._rules.get(char, char)

    def _shortest_match(self, cluster: str) -> str | None:
        prefixes = (cluster[:end] for end in range(1, len(cluster) + 1))
        return next((self._rules[key] for key in prefixes if key in self._rules), None)


class Replace:
    """Replace every match of a pattern by a fixed text."""

    def __init__(self, pattern: re.Pattern[str], content: str):
        self._pattern = pattern
        self._content = content

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        return self._pattern.sub(lambda _: self._content, text)

    def align(self, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Return the normalised text; a replacement has the span of the match's last character."""
        aligned: list[Span] = []
        done = 0
        for match in self._pattern.finditer(text):
            aligned += spans[done : match.start()]
            aligned += [spans[match.end() - 1]] * len(self._content)
            done = match.end()
        return self.apply(text), [*aligned, *spans[done:]]


class Strip:
    """Remove white space from the ends of the text."""

    def __init__(self, left: bool, right: bool):
        self._left = left
        self._right = right

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        text = text.lstrip(WHITE_SPACE) if self._left else text
        return text.rstrip(WHITE_SPACE) if self._right else text

    def align(self, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Return the normalised text and the spans of its characters."""
        start = len(text) - len(text.lstrip(WHITE_SPACE)) if self._left else 0
        kept = self.apply(text)
        return kept, list(spans[start : start + len(kept)])


def _realign(spans: Sequence[Span], edits: Iterable[Edit]) -> list[Span]:
    """Return the span of each edited character, as ``NormalizedString::transform`` assigns them.

    An edit's number is 1 for a character added after the previous one (it shares that one's span),
    0 for one that replaces the next old character, -n for one that replaces n more as well.
    """
    aligned: list[Span] = []
    at = 0
    for _, change in edits:
        aligned.append(spans[at - 1] if change > 0 else spans[at])
        at += 1 - change if change <= 0 else 0
    return aligned


def _decode_charsmap(blob: bytes) -> dict[str, str]:
    """Decode the rules: trie size, double-array trie (Darts-clone), NUL-ended texts."""
    size = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 or size % 4 or not 4 <= size <= len(blob) - 4:
        raise ValueError(f"not a SentencePiece charsmap: {len(blob)} bytes, trie of {size}")
    units = np.frombuffer(blob, "<u4", size // 4, offset=4).astype(np.int64)
    texts = blob[4 + size :]
    return {
        key.decode(): texts[start : texts.index(b"\0", start)].decode()
        for key, start in _trie_items(units)
    }


def _trie_items(units: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """Yield (key, value) of a double-array trie, breadth first, up to the longest usable key."""
    labels = np.arange(1, 256)
    offsets = (units >> 10) << ((units & 512) >> 6)
    nodes, keys = offsets[:1], [b""]
    for _ in range(_MAX_CLUSTER_BYTES):
        children = nodes[:, None] ^ labels
        known = children < len(units)
        found = known & ((units[np.where(known, children, 0)] & 0x800000FF) == labels)
        parents, columns = np.nonzero(found)
        children = children[parents, columns]
        found_bytes = labels[columns].astype(np.uint8).tobytes()
        keys = [keys[p] + found_bytes[i : i + 1] for i, p in enumerate(parents.tolist())]
        nodes = children ^ offsets[children]
        ends = np.nonzero(units[children] & 256)[0]
        values = units[nodes[ends]] & 0x7FFFFFFF
        yield from zip([keys[i] for i in ends.tolist()], values.tolist(), strict=True)


def _char_class(chars: Iterable[str]) -> str:
    """Return characters as the inside of a regex class, in as few ranges as possible."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)


_CONTROL = r"[\p{GCB=Control}\r\n]"
_PREPEND = r"\p{GCB=Prepend}"
_JOINERS = r"\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}"


@functools.cache
def _cluster() -> regex.Pattern[str]:
    """Return the pattern of an extended grapheme cluster: UAX #29, table 1c.

    Not \\X, which in the ``regex`` package (2026.11.15) joins an Indic linker and consonant to any
    character in front of them.
    """
    linked = r"[\p{InCB=Extend}\p{InCB=Linker}]*"
    cores = (
        rf"[^\p{{GCB=Control}}\r\n{_JOINERS}{_PREPEND}]",
        r"\p{Extended_Pictographic}(?:\p{GCB=Extend}*\p{GCB=ZWJ}\p{Extended_Pictographic})+",
        r"\p{GCB=Regional_Indicator}{2}",
        r"\p{GCB=L}*(?:\p{GCB=V}+|\p{GCB=LV}\p{GCB=V}*|\p{GCB=LVT})\p{GCB=T}*",
        r"\p{GCB=L}+|\p{GCB=T}+",
        rf"\p{{InCB=Consonant}}(?:{linked}\p{{InCB=Linker}}{linked}\p{{InCB=Consonant}})+",
    )
    core = "|".join(reversed(cores))  # the longest first: in a pattern the first match wins
    return regex.compile(
        rf"\r\n|{_CONTROL}|{_PREPEND}*(?:{core})[{_JOINERS}]*|{_PREPEND}*[{_JOINERS}]+|{_PREPEND}+"
    )


@functools.cache
def _cluster_makers() -> frozenset[str]:
    """Return BMP characters of which every cluster of several BMP characters has one.

    Hangul is excepted: syllables of conjoining jamo have six bytes or more, too long to be
    rewritten as a whole.
    """
    bmp = "".join(map(chr, range(0x10000)))
    return frozenset(regex.findall(rf"[\r{_JOINERS}{_PREPEND}]", bmp))


@functools.cache
def _short_cluster() -> regex.Pattern[str]:
    """Return a pattern that is in every text with a cluster of several characters in ≤ 5 bytes."""
    return regex.compile(
        rf"\r\n|{_PREPEND}|[\0-\u07ff](?=[{_JOINERS}])"
        rf"|[\u0800-\uffff](?=[{_JOINERS}])[\0-\u07ff]"
    )
