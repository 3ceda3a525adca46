"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

LAYOUTS = ("native", "published", "transformers", "xlm-roberta")
DTYPES = ("float32", "bfloat16", "float16")
PATH = click.Path(path_type=Path)


def hub_options(command: Callable) -> Callable:
    """Add the options of everything that takes a directory or a Hub id."""
    revision = click.option("--revision", help="Branch, tag or commit on the Hugging Face Hub.")
    offline = click.option(
        "--offline",
        "local_files_only",
        is_flag=True,
        help="Use what is on this machine; never ask the network.",
    )
    return revision(offline(command))
