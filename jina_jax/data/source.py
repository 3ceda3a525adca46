"""Training data: rows of texts, with scores, labels or a teacher's vectors, from files.

Every row is checked before training starts. A row that cannot be used is an error, or is left out
and listed, as the caller chooses; no row is dropped silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jina_jax.checks import check_integer, is_integer
from jina_jax.data.kinds import ROWS as KINDS
from jina_jax.data.records import DELIMITERS, SUFFIXES, Columns, DataError, read_records
from jina_jax.data.rows import Row, check_row, pair_overlap

_COLUMNS = {
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negative"),
    "scored": ("sentence1", "sentence2", "score"),
    "labelled": ("text", "label"),
    "texts": ("text",),
}
_MOST_LISTED = 20


class Problem(NamedTuple):
    """A row that is not used.

    Attributes:
      file: path as given.
      line: number of the row's first line, from 1; in Parquet the number of the row.
      reason: why it is not used.
      kind: "bad", or "overlap" for a pair that ``drop_overlap`` dropped.
    """

    file: str
    line: int
    reason: str
    kind: str = "bad"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Rows of one kind, from one data set.

    Attributes:
      name: names of its files.
      kind: type of rows, one of ``KINDS``.
      texts: n rows of C texts each: anchor, positive and negatives; two sentences; or one text.
      targets: float32 (n,) scores, or int32 (n,) classes; None for other kinds.
      teacher: float (rows of the files, d), often memory-mapped: one vector per row of the files.
      teacher_rows: int64 (n,), index of each row's vector in ``teacher``; None for 0, 1, 2, ….
      label_names: label of each class.
      problems: rows of the files that are not used.
    """

    name: str
    kind: str
    texts: list[tuple[str, ...]]
    targets: np.ndarray | None = None
    teacher: np.ndarray | None = None
    teacher_rows: np.ndarray | None = None
    label_names: tuple[str | int, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    @property
    def columns(self) -> int:
        """Texts in each row."""
        return len(self.texts[0])

    def teacher_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Read the teacher's vectors of rows (B,): float32 (B, d), or None without a teacher.

        Raises:
          ValueError: if one is not finite.
        """
        if self.teacher is None:
            return None
        indices = rows if self.teacher_rows is None else self.teacher_rows[rows]
        with np.errstate(over="ignore"):
            vectors = np.asarray(self.teacher[indices], np.float32)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if broken.size:
            raise ValueError(
                f"teacher of {self.name}: expected finite float32 numbers, "
                f"vector {indices[broken[0]]} has others"
            )
        return vectors


def read_source(
    paths: Sequence[Path],
    kind: str,
    *,
    columns: Sequence[str | int] | None = None,
    negatives: int | None = None,
    teacher: Path | None = None,
    bad_rows: str = "error",
    drop_overlap: bool = False,
) -> Source:
    """Read files of one data set and check every row.

    A text is a string that is not blank, a score a finite number, a label a string or an integer;
    no negative is the row's anchor or positive. CSV and TSV have quotes as in RFC 4180. A blank
    line is no row, except in .txt, where it is a bad one.

    Args:
      paths: .jsonl, .ndjson, .csv, .tsv, .parquet; for texts also .txt, one text per line.
      kind: type of rows, one of ``KINDS``.
      columns: names; or 0-based positions, for CSV without a header. None for the usual names:
        pairs anchor, positive; triplets anchor, positive, negative, negative_1, negative_2, …
        (as many as there are); scored sentence1, sentence2, score; labelled text, label; texts
        text. A column of negatives may hold lists, but not in CSV.
      negatives: number of negatives per triplet. The first ones are used, further ones are not
        checked. None to use all, if all rows have the same number.
      teacher: .npy file, float (rows, d), with one vector per row of the files in their order,
        bad rows included.
      bad_rows: "error", or "skip" to use the others.
      drop_overlap: leave out pairs of nearly the same words, see ``pair_overlap``. They are listed
        as problems, and are no error.

    Raises:
      DataError: if rows are bad, a file has no good row, or lacks a column.
      ValueError: for options that contradict each other, or a teacher that does not fit.
      OSError: if a file cannot be read.
    """
    _check_options(kind, negatives, bad_rows, drop_overlap)
    columns = columns.tolist() if isinstance(columns, np.ndarray) else columns
    wanted = _check_columns(kind, columns)
    files = _check_paths(paths, kind, columns)
    vectors = None if teacher is None else _open_teacher(teacher)
    rows = _Reader(kind, negatives, drop_overlap)
    for path in files:
        rows.read(path, wanted)
    if bad_rows == "error":
        rows.refuse_bad()
    rows.refuse_empty()
    if vectors is not None and len(vectors) != rows.total:
        raise ValueError(
            f"teacher={str(teacher)!r}: expected {rows.total} rows, got {len(vectors)}"
        )
    return Source(
        name=", ".join(path.name for path in files),
        kind=kind,
        texts=rows.texts,
        targets=rows.target_array(),
        teacher=vectors,
        teacher_rows=None if vectors is None else np.array(rows.numbers, np.int64),
        label_names=tuple(rows.labels),
        problems=tuple(rows.problems),
    )


def _check_options(kind: str, negatives: Any, bad_rows: str, drop_overlap: bool) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    if bad_rows not in ("error", "skip"):
        raise ValueError(f"bad_rows={bad_rows!r}: expected 'error' or 'skip'")
    if negatives is not None:
        if kind != "triplets":
            raise ValueError(f"negatives={negatives!r}: expected None, kind {kind!r} has none")
        check_integer("negatives", negatives, 1)
    if drop_overlap and kind != "pairs":
        raise ValueError(f"drop_overlap={drop_overlap!r}: expected False, kind is {kind!r}")


def _check_columns(kind: str, columns: Sequence[str | int] | None) -> Columns:
    usual = _COLUMNS[kind]
    if columns is None:
        return Columns(usual, numbered=kind == "triplets")
    names = all(isinstance(column, str) for column in columns)
    positions = all(is_integer(column, 0) for column in columns)
    given = tuple(int(column) if positions else column for column in columns)
    if isinstance(columns, str) or not (names or positions):
        raise ValueError(f"columns={columns!r}: expected names, or positions from 0")
    if len(given) < len(usual) or (len(given) > len(usual) and kind != "triplets"):
        more = " or more" if kind == "triplets" else ""
        raise ValueError(
            f"columns={columns!r}: expected {len(usual)}{more} for kind {kind!r}, the columns "
            f"for {', '.join(usual)}"
        )
    return Columns(given)


def _check_paths(
    paths: Sequence[Path], kind: str, columns: Sequence[str | int] | None
) -> list[Path]:
    if isinstance(paths, str | Path) or not paths:
        raise ValueError(f"paths={paths!r}: expected a sequence of one path or more")
    files = [Path(path) for path in paths]
    for path in files:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected one of the suffixes {', '.join(SUFFIXES)}")
        if suffix == ".txt" and (kind != "texts" or columns is not None):
            raise ValueError(f"{path}: lines of text have no columns: expected kind 'texts' alone")
        if columns and is_integer(columns[0], 0) and suffix not in DELIMITERS:
            raise ValueError(f"columns={columns!r}: expected names, {path} has no positions")
    return files


def _open_teacher(path: Path) -> np.ndarray:
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"teacher={str(path)!r}: not a .npy file of numbers ({error})") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        got = f"{vectors.dtype} {vectors.shape}"
        raise ValueError(f"teacher={str(path)!r}: expected floats (rows, d), got {got}")
    return vectors


class _Reader:
    """Rows read so far."""

    def __init__(self, kind: str, negatives: int | None, drop_overlap: bool) -> None:
        self.kind, self.negatives, self.drop_overlap = kind, negatives, drop_overlap
        self.texts: list[tuple[str, ...]] = []
        self.targets: list[Any] = []
        self.numbers: list[int] = []  # among all rows of the files
        self.labels: dict[str | int, int] = {}
        self.problems: list[Problem] = []
        self.without: list[Path] = []  # files without a good row
        self.total = 0

    def read(self, path: Path, columns: Columns) -> None:
        before = len(self.texts)
        delimited = path.suffix.lower() in DELIMITERS
        for record in read_records(path, columns):
            try:
                if record.reason:
                    raise ValueError(record.reason)
                row = check_row(record.fields, self.kind, self.negatives, delimited)
                self._check_width(row)
            except ValueError as error:
                self.problems.append(Problem(str(path), record.line, str(error)))
            else:
                self._keep(row, str(path), record.line)
            self.total += 1
        if len(self.texts) == before:
            self.without.append(path)

    def _check_width(self, row: Row) -> None:
        if self.texts and len(row.texts) != len(self.texts[0]):
            raise ValueError(
                f"expected {len(self.texts[0]) - 2} negatives, as in the first row, got "
                f"{len(row.texts) - 2}"
            )

    def _keep(self, row: Row, file: str, line: int) -> None:
        if self.drop_overlap and pair_overlap(*row.texts):
            reason = "one text has the words of the other"
            self.problems.append(Problem(file, line, reason, "overlap"))
            return
        self.texts.append(row.texts)
        self.numbers.append(self.total)
        if self.kind == "labelled":
            self.targets.append(self.labels.setdefault(row.target, len(self.labels)))
        elif self.kind == "scored":
            self.targets.append(row.target)

    def refuse_bad(self) -> None:
        bad = [problem for problem in self.problems if problem.kind == "bad"]
        if bad:
            raise DataError(f"{len(bad)} of {self.total} rows are bad:\n{_listed(bad)}")

    def refuse_empty(self) -> None:
        for path in self.without:
            own = [problem for problem in self.problems if problem.file == str(path)]
            listed = f", all of {len(own)} are left out:\n{_listed(own)}" if own else ", got none"
            raise DataError(f"{path}: expected a row to use{listed}")

    def target_array(self) -> np.ndarray | None:
        dtypes = {"scored": np.float32, "labelled": np.int32}
        return np.array(self.targets, dtypes[self.kind]) if self.kind in dtypes else None


def _listed(problems: Sequence[Problem]) -> str:
    lines = [f"{file}:{line}: {reason}" for file, line, reason, _ in problems[:_MOST_LISTED]]
    if len(problems) > _MOST_LISTED:
        lines.append(f"and {len(problems) - _MOST_LISTED} more")
    return "\n".join(lines)
