"""Draw the pictures of the documentation: ``python docs/pictures/draw.py`` (extra ``test``).

Numbers are those of the code and of files of figures; the bytes are the same every time.
"""

from __future__ import annotations

from pathlib import Path

import adapters
import bulk
import dimensions
import gradient_caching
import packing
import server
import speed
import wings

FOLDER = Path(__file__).parent
PICTURES = {
    "packing.svg": packing.draw,
    "adapters.svg": adapters.draw,
    "gradient-caching.svg": gradient_caching.draw,
    "wings.svg": wings.draw,
    "server.svg": server.draw,
    "bulk.svg": bulk.draw,
    "dimensions.svg": dimensions.draw,
    "speed.svg": speed.draw,
}


def main() -> None:
    """Write all pictures beside this file."""
    for name, draw in PICTURES.items():
        content = draw().svg()
        (FOLDER / name).write_text(content, encoding="utf-8", newline="\n")
        print(f"{name}: {len(content.encode()):,} bytes")


if __name__ == "__main__":
    main()
