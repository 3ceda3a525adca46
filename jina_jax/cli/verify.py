"""The command ``jina-jax verify``."""

from __future__ import annotations

from pathlib import Path

import click

from jina_jax.cli.options import PATH, Model, model_options


@click.command()
@model_options
@click.option(
    "--gold",
    type=PATH,
    help="File of reference values.  [default: the model's gold.json, else the published values]",
)
@click.pass_context
def verify(context: click.Context, model: Model, gold: Path | None) -> None:
    """Compare a model's hidden states and vectors with reference values.

    \b
    jina-jax verify
    jina-jax verify --model jinaai/jina-embeddings-v3    # needs 2.3 GB of memory

    Encodes a few short inputs with the base model and each adapter in float32, and prints one line
    per comparison. The reference values are gold.json in the model's directory, or for a model of
    its size those published for jina-embeddings-v3. Exit status 0 if all agree within
    rtol = atol = 1e-4, 1 if not, 2 if the model cannot be compared.
    """
    from jina_jax.convert import open_checkpoint
    from jina_jax.text.tokenizer import Tokenizer
    from jina_jax.verify.compare import TOLERANCE, load_references, references_of, verify

    references = None if gold is None else load_references(gold)  # before anything is downloaded
    checkpoint = open_checkpoint(model.fetch())
    references = references or references_of(checkpoint)
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer)
    checks = verify(checkpoint, tokenizer, references)
    for check in checks:
        result = "ok" if check.agrees else "DIFFERS"
        line = f"{check.input:<10} {check.subject:<26} max |difference| {check.difference:.1e}"
        click.echo(f"{line}  {result}")
    agreed = sum(check.agrees for check in checks)
    click.echo(f"{agreed} of {len(checks)} agree within rtol = atol = {TOLERANCE:g}")
    context.exit(0 if agreed == len(checks) else 1)
