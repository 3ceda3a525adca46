"""The command ``jina-jax info``."""

from __future__ import annotations

import json

import click

from jina_jax.cli import report
from jina_jax.cli.options import Model, json_option, model_options


@click.command()
@model_options
@click.option("--devices", is_flag=True, help="Describe this machine instead of a model.")
@json_option
def info(model: Model, devices: bool, as_json: bool) -> None:
    """Describe a model, or this machine.

    Prints the model's layout, size, tasks with their prompts, dimensions, limits and files. Only
    its config and file headers are read, no weights, and they are checked against each other.

    With --devices: the devices that JAX found, which attention kernels run on them and why others
    do not, and how texts are batched.

    \b
    jina-jax info
    jina-jax info --model jinaai/jina-embeddings-v3
    jina-jax info --model my-finetune --json | jq .parameters.total
    jina-jax info --devices
    """
    if devices and model.name is not None:
        raise click.UsageError("expected either --model or --devices")
    if devices:
        from jina_jax.cli import devices as machine

        facts = machine.describe()
        text = machine.as_text(facts)
    else:
        from jina_jax.convert import open_checkpoint

        facts = report.describe(open_checkpoint(model.fetch()))
        text = report.as_text(facts)
    click.echo(json.dumps(facts, ensure_ascii=False, indent=2) if as_json else text)
