"""The command ``jina-jax train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jina_jax.cli.errors import needs
from jina_jax.cli.options import PATH


def _show_fields(context: click.Context, _: Any, value: bool) -> None:
    if value and not context.resilient_parsing:
        with needs("train"):
            from jina_jax.training.settings import describe

        click.echo(describe(), nl=False)
        context.exit()


@click.command()
@click.argument("config", type=PATH)
@click.option("--resume", is_flag=True, help="Go on with the run from its last checkpoint.")
@click.option("--output", type=PATH, help="Directory of the run, instead of the file's.")
@click.option(
    "--fields",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_fields,
    help="Explain every field of CONFIG, and exit.",
)
def train(config: Path, resume: bool, output: Path | None) -> None:
    """Train adapters, a new task or the whole network.

    CONFIG is a TOML file; --fields explains it.

    \b
    jina-jax train retrieval.toml
    jina-jax train retrieval.toml --resume     # after an interruption: the same losses
    jina-jax convert runs/retrieval tuned --to transformers

    The run's directory gets settings, metrics.jsonl and checkpoints: the latest two and the best
    by the evaluations. With matplotlib (extra plot) also curves.png.
    """
    with needs("train"):
        from jina_jax.training.plot import plot_run
        from jina_jax.training.settings import Settings
        from jina_jax.training.trainer import Trainer

        settings = Settings.from_toml(config)
        if output is not None:
            settings = settings.model_copy(update={"output": output})
        trainer = Trainer(settings, resume=resume)
    click.echo(trainer.summary(), err=True)
    for name, value in trainer.fit().items():
        click.echo(f"{name:<48} {value:.4f}")
    curves = plot_run(settings.output)
    click.echo(f"run      {settings.output}: {trainer.step} steps", err=True)
    if curves is not None:
        click.echo(f"curves   {curves}", err=True)
