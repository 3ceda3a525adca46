"""Print the parity table: what, ours, theirs, largest difference.

python tests/parity/table.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


def main() -> None:
    """Print a row per comparison, as a table of Markdown."""
    from sbert_cases import CASES, compare

    print("| what | ours | theirs | largest difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(CASES):
            (Path(root) / str(number)).mkdir()
            for row in compare(name, Path(root) / str(number)):
                print(f"| {row.what} | {row.ours} | {row.theirs} | {row.difference:.1e} |")


if __name__ == "__main__":
    main()
