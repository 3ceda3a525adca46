"""The command ``jina-jax``: the group of its commands.

Files of commands import click and names alone at their top, so that ``--help`` is quick; each
command imports what it needs when it runs.
"""

from __future__ import annotations

import os

import click

from jina_jax import __version__
from jina_jax.cli.bulk import bulk
from jina_jax.cli.convert import convert
from jina_jax.cli.encode import encode
from jina_jax.cli.errors import ErrorGroup
from jina_jax.cli.eval import evaluate
from jina_jax.cli.info import info
from jina_jax.cli.mine import mine
from jina_jax.cli.search import search
from jina_jax.cli.serve import serve
from jina_jax.cli.train import train
from jina_jax.cli.verify import verify


@click.group(
    cls=ErrorGroup,
    name="jina-jax",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="jina-jax")
@click.pass_context
def main(context: click.Context) -> None:
    """Text embeddings with jina-embeddings-v3, in JAX.

    A model is a directory or a Hugging Face Hub id such as jinaai/jina-embeddings-v3, which is
    downloaded once and then read from the Hub's cache. Without --model, commands use tiny, the
    small model in the package.

    Exit status: 0 success, 1 verify found differences, 2 error, 130 interrupted,
    141 output not read to its end, 143 terminated (bulk).
    """
    # When it reads a compiled program from the cache, XLA for CPU logs kilobytes about processor
    # features that do not exist ("prefer-no-gather"). Real errors are exceptions as well. JAX sets
    # level 1 in every process that imports it, and child processes inherit it.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (encode, bulk, search, serve, train, mine, evaluate, convert, info, verify):
    main.add_command(command)
