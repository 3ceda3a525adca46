"""Lines of text files: UTF-8 always, ended by a line feed alone, as for ``wc``."""

from __future__ import annotations

import json
from typing import Any


def decode_line(raw: bytes, number: int) -> str:
    """Decode a line of a file that was opened in binary, without its end.

    Args:
      raw: as the file gives it.
      number: from 1; the first line may begin with a byte order mark.

    Raises:
      ValueError: if it is not UTF-8.
    """
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None


def json_object(line: str) -> dict[str, Any]:
    """Parse a line of JSONL.

    Raises:
      ValueError: if it is not a JSON object; NaN and infinities are no JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    try:
        row = json.loads(line, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    return row
