"""Segmentation with a Unigram vocabulary: ``sentencepiece``, corrected to float64.

``tokenizers`` adds scores in float64, ``sentencepiece`` in float32, so ties and near-ties differ.
Here ``sentencepiece`` proposes its two best segmentations; unless the first one leads by more than
any rounding error, a float64 Viterbi search in plain Python decides.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeVar

import numpy as np
import sentencepiece

Piece = tuple[int, int, int]  # id, start, end
_Value = TypeVar("_Value")

_UNKNOWN_PENALTY = 10.0  # below the lowest score: kUnkPenalty of sentencepiece and tokenizers
_MAX_UNIT = 64  # nbest prunes its agenda on texts of a thousand characters; this is far below
_MAX_SOLE = 12  # 2**12 paths are too few to prune: a single result of nbest is the only path
_MAX_CACHED_WORD = 64
_MAX_CACHED_WORDS = 1 << 16


class Vocabulary(NamedTuple):
    """A vocabulary in a form that loads quickly."""

    model: bytes  # sentencepiece ModelProto: the pieces by id, then one of type UNKNOWN
    scores: np.ndarray  # (V,) float64
    pairs: str  # every two neighbouring characters of any piece, one pair after another
    longest: int  # number of characters in the longest piece


class Memo(dict[str, _Value]):
    """A bounded cache ``memo[text]`` of a function of a text; it is emptied when full.

    Threads may share one: each operation on the dict is atomic, and a race costs a recomputation.
    """

    def __init__(self, compute: Callable[[str], _Value]):
        super().__init__()
        self._compute = compute

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Leave out the values, which another thread may be adding to."""
        return super().__reduce_ex__(protocol)[:3]

    def __missing__(self, text: str) -> _Value:
        value = self._compute(text)
        if len(text) <= _MAX_CACHED_WORD:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[text] = value
        return value


class Unigram:
    """Segment words with a Unigram vocabulary.

    Args:
      vocabulary: pieces and scores, from ``compile_vocabulary``.
      unk_id: id of the unknown token; a run of unknown characters is one token.
      byte_fallback: whether a run of unknown characters is spelt with the pieces <0x00>..<0xFF>.
    """

    def __init__(self, vocabulary: Vocabulary, unk_id: int, byte_fallback: bool):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(vocabulary.model)
        self._scores: list[float] = vocabulary.scores.tolist()
        self._unknown_score = float(vocabulary.scores.min()) - _UNKNOWN_PENALTY
        self._pairs = frozenset(
            vocabulary.pairs[i : i + 2] for i in range(0, len(vocabulary.pairs), 2)
        )
        self._longest = vocabulary.longest
        self._unk_id = unk_id
        self._byte_fallback = byte_fallback
        # Ids whose score depends on the number of fused unknown characters: the one of type
        # UNKNOWN; and a literal <unk>, which is fused with its neighbours of that id.
        self._undecided = frozenset([len(self._scores), unk_id])
        self._piece_id = Memo(self._find_piece)
        self._unit_ids = Memo(self._certain_ids)
        self.ids = Memo(self._word_ids)

    def piece(self, piece_id: int) -> str:
        """Return a piece by its id."""
        return self._processor.id_to_piece(int(piece_id))

    def segment(self, word: str, banned: Collection[int] = ()) -> list[Piece]:
        """Return the pieces of a word by a float64 search over the whole word.

        Args:
          word: a pre-tokenised word, not empty.
          banned: ids of pieces to avoid.
        """
        pieces: list[Piece] = []
        for is_unknown, group in itertools.groupby(
            self._best_path(word, banned), lambda piece: piece[0] == self._unk_id
        ):
            run = list(group)
            pieces += self._fused(word, run[0][1], run[-1][2]) if is_unknown else run
        return pieces

    def _word_ids(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word; ``ids`` caches this function."""
        known = self._certain_ids(word)
        if known is not None:
            return known
        ids: list[int] = []
        for part in map(self._unit_ids.__getitem__, self._cut(word)):
            if part is None:
                return tuple(piece_id for piece_id, _, _ in self.segment(word))
            ids += part
        return tuple(self._fuse(ids)) if self._unk_id in ids else tuple(ids)

    def _fuse(self, ids: list[int]) -> list[int]:
        """Fuse consecutive unknown tokens into one."""
        pairs = itertools.pairwise(ids)
        return [ids[0], *(b for a, b in pairs if not a == b == self._unk_id)]

    def _cut(self, word: str) -> list[str]:
        """Cut a word between neighbours that no piece contains."""
        units: list[str] = []
        done = 0
        for at, pair in enumerate(map(operator.add, word, word[1:]), 1):
            if pair not in self._pairs:
                units.append(word[done:at])
                done = at
        return [*units, word[done:]]

    def _certain_ids(self, unit: str) -> tuple[int, ...] | None:
        """Return the ids of a word or a part of one; None if only ``segment`` can decide."""
        if len(unit) == 1 and not self._byte_fallback:
            piece_id = self._processor.piece_to_id(unit)
            return (self._unk_id if piece_id in self._undecided else piece_id,)
        if len(unit) > _MAX_UNIT:
            return None
        best, *others = self._processor.nbest_encode(unit, nbest_size=2)
        if not self._undecided.isdisjoint(itertools.chain(best, *others)):
            return None
        if not others:
            return tuple(best) if len(unit) <= _MAX_SOLE else None
        score_of = self._scores.__getitem__
        runner_up = sum(map(score_of, others[0]))
        lead = sum(map(score_of, best)) - runner_up
        return tuple(best) if lead > _slack(len(unit), runner_up) else None

    def _best_path(self, word: str, banned: Collection[int]) -> list[Piece]:
        """Return the best segmentation, unknown characters one by one.

        Additions and comparisons are in the order of ``tokenizers``: among equal scores the piece
        that starts first wins.
        """
        piece_ids, scores = self._piece_id, self._scores
        size = len(word)
        best = [0.0] + [-math.inf] * size
        last: list[Piece] = [(self._unk_id, 0, 0)] * (size + 1)
        for start in range(size):
            has_single, base = False, best[start]
            for end in range(start + 1, min(size, start + self._longest) + 1):
                if end > start + 1 and word[end - 2 : end] not in self._pairs:
                    break
                piece_id = piece_ids[word[start:end]]
                if piece_id is None or piece_id in banned:
                    continue
                has_single = has_single or end == start + 1
                score = base + scores[piece_id]
                if score > best[end]:
                    best[end], last[end] = score, (piece_id, start, end)
            if not has_single:
                score = base + self._unknown_score
                if score > best[start + 1]:
                    best[start + 1], last[start + 1] = score, (self._unk_id, start, start + 1)
        return _trace_back(last)

    def _fused(self, word: str, start: int, end: int) -> list[Piece]:
        """Return the token, or the tokens with byte fallback, of a run of unknown characters."""
        run = word[start:end]
        if self._byte_fallback and self._piece_id[run] != self._unk_id:
            spelt = [self._piece_id[f"<0x{byte:02X}>"] for byte in run.encode()]
            ids = [piece_id for piece_id in spelt if piece_id is not None]
            if len(ids) == len(spelt):
                return [(piece_id, start, end) for piece_id in ids]
        return [(self._unk_id, start, end)]

    def _find_piece(self, text: str) -> int | None:
        """Return the id of a piece; None for another text."""
        piece_id: int = self._processor.piece_to_id(text)
        return None if piece_id == len(self._scores) else piece_id


def compile_vocabulary(pieces: Sequence[str], scores: Sequence[float]) -> Vocabulary:
    """Compile a vocabulary, ordered by id, into the form that ``Unigram`` loads.

    Every piece is of type NORMAL, also <s> and the other special ones: ``tokenizers`` matches them
    in a text like any other piece. Unknown characters have the id behind the last piece.

    Raises:
      ValueError: for an empty vocabulary, a score that is not a finite number of at most 0, or an
        empty or repeated piece.
    """
    values = np.asarray(scores, np.float64)
    if not len(pieces):
        raise ValueError("expected at least one piece")
    if not np.all(np.isfinite(values) & (values <= 0)):
        bad = int(np.argmin(np.isfinite(values) & (values <= 0)))
        raise ValueError(f"expected finite scores of at most 0, got {scores[bad]} at id {bad}")
    if "" in pieces:
        raise ValueError(f"expected pieces of at least one character, id {pieces.index('')} is ''")
    if len(set(pieces)) < len(pieces):
        raise ValueError(f"expected {len(pieces)} different pieces, got {len(set(pieces))}")
    longest = max(map(len, pieces))
    return Vocabulary(_model_proto(pieces, values), values, _adjacent_pairs(pieces), longest)


def _slack(characters: int, score: float) -> float:
    """Return a lead over the second-best ``score`` that is beyond float32 rounding.

    The error of a sum of k ≤ ``characters`` scores is at most k * 2**-24 * |score|, and a search
    adds each path in two parts: 4 (k + 1) such errors per comparison, rounded up to 16 k. The
    constant covers float64 sums over a whole word, of which this may be a part.
    """
    return 16 * characters * 2.0**-24 * -score + 1e-4


def _trace_back(last: Sequence[Piece]) -> list[Piece]:
    """Return the path to the end, given the last piece that ends at each position."""
    path: list[Piece] = []
    end = len(last) - 1
    while end > 0:
        path.append(last[end])
        end = last[end][1]
    return path[::-1]


def _model_proto(pieces: Sequence[str], scores: np.ndarray) -> bytes:
    """Serialise a sentencepiece ModelProto without normalisation.

    Wire format of sentencepiece_model.proto: ModelProto.pieces = 1, .normalizer_spec = 3;
    SentencePiece.piece = 1, .score = 2, .type = 3 (UNKNOWN is 2); NormalizerSpec's
    add_dummy_prefix = 3, remove_extra_whitespaces = 4, escape_whitespaces = 5.
    """
    floats = scores.astype("<f4").tobytes()
    parts: list[bytes] = []
    for at, piece in enumerate(pieces):
        text = piece.encode()
        parts += (_piece_header(len(text)), text, b"\x15", floats[4 * at : 4 * at + 4])
    unknown = _field(1, _unused_name(pieces).encode()) + b"\x15" + struct.pack("<f", 0) + b"\x18\2"
    parts.append(_field(1, unknown))
    parts.append(_field(3, b"\x18\0\x20\0\x28\0"))
    return b"".join(parts)


def _unused_name(pieces: Iterable[str]) -> str:
    """Return a text that is not a piece."""
    return "?" * (1 + max(map(len, pieces)))


@functools.cache
def _piece_header(size: int) -> bytes:
    """Return the bytes in front of the text of a piece of ``size`` bytes."""
    return b"\x0a" + _varint(len(_varint(size)) + size + 6) + b"\x0a" + _varint(size)


def _field(number: int, content: bytes) -> bytes:
    """Serialise a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Serialise an unsigned number, seven bits per byte."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _adjacent_pairs(pieces: Sequence[str]) -> str:
    """Return the distinct pairs of neighbouring characters, as one text."""
    text = "\n".join(pieces).encode("utf-32-le")
    codes = np.frombuffer(text, "<u4").astype(np.int64)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    inside = np.ones(max(len(codes) - 1, 0), bool)
    joints = np.cumsum(sizes + 1)[:-1] - 1  # line feeds between pieces
    inside[joints] = False
    inside[joints - 1] = False
    pairs = np.unique((codes[:-1] << 21 | codes[1:])[inside])
    return np.stack([pairs >> 21, pairs & 0x1FFFFF], 1).astype("<u4").tobytes().decode("utf-32-le")
