"""Lines and JSON lines of text files, and the check of texts read from files.

One rule for all commands. Files are UTF-8, with or without a byte order mark at the beginning. Only
a line feed ends a line, as for ``wc``, and a carriage return before it belongs to the end. A line
is at most 64 MiB, without NUL bytes. In files of records (JSONL, CSV) a blank line is no record; in
files of texts it is a text. Anything else that cannot be read, such as UTF-16 or a compressed file,
is an error or a problem with file and line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jina_jax.checks import check_unicode

LONGEST_LINE = 1 << 26  # bytes; characters of a field of CSV. A book has a million.

# What files begin with that are no text in UTF-8, longer beginnings first.
_FOREIGN = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PK\x03\x04": "a zip file or a spreadsheet",
    b"PAR1": "a Parquet file",
}
NUL = "NUL bytes, as in UTF-16 or a binary file, which are no text"


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      text: without its end; "" if it cannot be read.
      reason: why it cannot be read, else "".
    """

    number: int
    text: str
    reason: str = ""


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield every line of a file opened in binary; the first may begin with a byte order mark."""
    for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if number == 1 and (reason := foreign(raw)):
            yield Line(number, "", reason)
            return
        if len(raw) > LONGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_LINE)
            yield Line(number, "", too_long("bytes"))
            continue
        yield read_line(number, raw)


def read_line(number: int, raw: bytes) -> Line:
    """Decode one line of a file, with its end; number 1 may begin with a byte order mark."""
    text = raw.removesuffix(b"\n").removesuffix(b"\r")
    if b"\0" in text:
        return Line(number, "", NUL)
    if number == 1 and b"\r" in text and not raw.endswith(b"\n"):
        return Line(number, "", "expected lines that end in line feeds, got carriage returns alone")
    try:
        return Line(number, text.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, "", f"not UTF-8 ({error.reason} at byte {error.start})")


def foreign(start: bytes) -> str:
    """Return why a file that begins so is no text in UTF-8, or "" for any other beginning."""
    kind = next((kind for mark, kind in _FOREIGN.items() if start.startswith(mark)), "")
    return f"expected UTF-8 text, got {kind}" if kind else ""


def too_long(unit: str) -> str:
    """Return the reason why a line longer than ``LONGEST_LINE`` cannot be read."""
    return f"expected lines of at most {LONGEST_LINE:,} {unit}, got a longer one"


def named_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield ("name:number", line) for every line of a file opened in binary.

    Raises:
      ValueError: for a line that is not UTF-8; names it.
    """
    for number, text, reason in read_lines(file):
        label = f"{name}:{number}"
        if reason:
            raise ValueError(f"{label}: {reason}")
        yield label, text


def path_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("path:number", line) for every line of a file.

    Raises:
      ValueError: if the file is empty, or for a line that is not UTF-8; names it.
      OSError: if the file cannot be read.
    """
    label = ""
    with path.open("rb") as file:
        for label, line in named_lines(file, str(path)):
            yield label, line
    if not label:
        raise ValueError(f"{path}: is empty")


def json_lines(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (label, line, object) for every line of JSONL that is not blank.

    Args:
      lines: (label, line), as ``named_lines`` and ``path_lines`` yield them.

    Raises:
      ValueError: as ``json_object``; names the line.
    """
    for label, line in lines:
        if line.strip():
            with labelled(label):
                row = json_object(line)
            yield label, line, row


def json_object(line: str) -> dict[str, Any]:
    """Parse a line of JSONL.

    Raises:
      ValueError: if it is not a JSON object, or repeats a field; NaN and infinities are no JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    try:
        row = json.loads(line, parse_constant=refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of a field given twice, JSON would silently use the last."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"expected each field once, got {repeated!r} {names.count(repeated)} times"
        )
    return row


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Prepend a label, such as "file:line", to the message of a ``ValueError``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def check_string(value: Any, name: str) -> str:
    """Return a value that is a string of Unicode text, which may be blank.

    Args:
      value: from a file.
      name: what the error calls it, e.g. "field 'text'".

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {type_name(value)}")
    return check_unicode(value, name)


def check_text(value: Any, name: str) -> str:
    """Return a value that is a text, as ``check_string``, and not blank."""
    if not check_string(value, name).strip():
        raise ValueError(f"{name}: expected a text, got a blank one")
    return value


def type_name(value: Any) -> str:
    """Name the type of a value in errors: "none" for None."""
    return "none" if value is None else type(value).__name__
