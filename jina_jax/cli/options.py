"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jina_jax.tasks import AUTO, from_word

LAYOUTS = ("native", "published", "transformers", "xlm-roberta")
DTYPES = ("float32", "bfloat16", "float16")
PATH = click.Path(path_type=Path)
TOO_MANY_TASKS = "expected --task once, or for retrieval twice"

dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), help="Of the weights.  [default: the file's]"
)


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


def model_and(*paths: str, model: str = "MODEL") -> Callable:
    """Add arguments of which the first, a model, may be left out: "[MODEL] PAIRS OUT".

    The command gets them as ``places``: the model's name or None, and a ``Path`` for each other.

    Args:
      paths: what those behind the model are called.
      model: what the model is called.
    """
    usage = " ".join((f"[{model}]", *paths))

    def split(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> Any:
        count = len(values) - len(paths)
        if count not in (0, 1) and not context.resilient_parsing:
            raise click.UsageError(f"expected {usage}, got {counted(values)}", context)
        return (*(values[:count] or (None,)), *map(Path, values[count:]))

    return click.argument("places", nargs=-1, metavar=usage, callback=split)


def counted(values: tuple[str, ...]) -> str:
    """Say how many arguments came, and which."""
    if not values:
        return "no arguments"
    noun = "argument" if len(values) == 1 else "arguments"
    return f"{len(values)} {noun}: {' '.join(values)}"


def task_option(command: Callable) -> Callable:
    """Add --task, which the command gets as ``task``: "auto", a name, or a pair of names."""

    def join(context: click.Context, _: click.Parameter, tasks: tuple[str, ...]) -> Any:
        if len(tasks) > 2:
            raise click.UsageError(TOO_MANY_TASKS, context)
        return from_word(tasks if len(tasks) > 1 else (*tasks, AUTO)[0])

    return click.option(
        "--task",
        multiple=True,
        callback=join,
        help="Adapter; none: the base model. For retrieval also twice, of queries and of "
        "documents.  [default: the paper's, if the model has it]",
    )(command)
