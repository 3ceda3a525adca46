"""The commands ``jina-jax train`` and ``jina-jax export``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from jina_jax.cli.options import PATH

_TARGETS = ("published", "transformers", "native", "merged")
_LIBRARIES = ("orbax", "pydantic")  # of the extra train


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Tell which extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in _LIBRARIES:
            raise
        message = f'this command needs {library}: pip install "jina-jax[train]"'
        raise click.ClickException(message) from None
    except ImportError as error:  # an evaluation's, which tells the same
        raise click.ClickException(str(error)) from None


def _show_fields(context: click.Context, _: Any, value: bool) -> None:
    if value and not context.resilient_parsing:
        with _extra():
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
    jina-jax export runs/retrieval tuned --to transformers

    The run's directory gets settings, metrics.jsonl and checkpoints: the latest two and the best
    by the evaluations. With matplotlib (extra plot) also curves.png.
    """
    with _extra():
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


@click.command()
@click.argument("run", type=PATH)
@click.argument("target", type=PATH)
@click.option("--to", "layout", required=True, type=click.Choice(_TARGETS), help="What to write.")
@click.option("--step", type=int, help="Checkpoint; the best evaluated, else the latest.")
@click.option("--task", help="With --to merged: the adapter to fold in.")
def export(run: Path, target: Path, layout: str, step: int | None, task: str | None) -> None:
    """Write what a run has trained, for PyTorch or for this library.

    RUN is the directory of a training run, TARGET a new directory.

    \b
    published     as jinaai/jina-embeddings-v3, adapters stacked in one file
    transformers  as jinaai/jina-embeddings-v3-hf, one PEFT folder a task
    native        as this library saves
    merged        one adapter folded into plain weights, in transformers' layout

    Trained weights are float32 and stay so, beside a base in fewer bits.
    """
    from jina_jax.cli.info import report_copy
    from jina_jax.convert import merge_checkpoint, write_checkpoint

    with _extra():
        from jina_jax.training.run import load_run
    if task is not None and layout != "merged":
        raise click.UsageError("--task is for --to merged; other layouts take all adapters")
    checkpoint = load_run(run, step)
    if layout == "merged":
        tasks = checkpoint.config.lora_adaptations
        if task is None:
            raise click.UsageError(f"--to merged needs --task, one of {', '.join(tasks) or 'none'}")
        merged = merge_checkpoint(checkpoint, task)
        write_checkpoint(merged, target, "transformers")
        click.echo(report_copy(checkpoint, target, "transformers", task))
        return
    write_checkpoint(checkpoint, target, layout)
    click.echo(report_copy(checkpoint, target, layout))
