"""The command ``jina-jax convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jina_jax.checkpoints.names import LAYOUTS
from jina_jax.cli.errors import needs
from jina_jax.cli.options import PATH, Model, source_argument
from jina_jax.cli.report import report_copy

if TYPE_CHECKING:
    from jina_jax.convert import Checkpoint

# Makes a directory a training run (training/run.py, which cannot be imported without the extra).
_RUN_FILE = "settings.json"


@click.command()
@source_argument
@click.argument("target", type=PATH)
@click.option("--to", "layout", required=True, type=click.Choice(LAYOUTS), help="Layout of TARGET.")
@click.option("--merge", "task", metavar="TASK", help="Fold this adapter into plain weights.")
@click.option(
    "--step",
    type=int,
    help="Checkpoint of a training run.  [default: the best evaluated, else the latest]",
)
def convert(model: Model, target: Path, layout: str, task: str | None, step: int | None) -> None:
    """Write a checkpoint in another layout.

    SOURCE is a model (a directory, a Hub id, or tiny) or the directory of a training run; its
    layout is recognised. TARGET is a new directory.

    \b
    jina-jax convert jinaai/jina-embeddings-v3 v3-native --to native
    jina-jax convert runs/retrieval tuned --to transformers
    jina-jax convert jinaai/jina-embeddings-v3 v3-matching --to native --merge text-matching

    Conversions are lossless: weights keep their dtype and every bit, and reference values
    (gold.json) are copied. Weights that a run has trained are float32. Only one tensor at a time is
    in memory.

    With --merge the result has no adapters and needs no task; the task's prompt becomes its default
    prompt. Sums are computed in float32 and rounded once to the checkpoint's dtype.

    The module files of sentence-transformers are read and written, too: pooling, Dense, prompts and
    lengths. What cannot be represented is refused with its file and field (python -c "import
    jina_jax.convert.st_fields as s; print(s.__doc__)" lists all fields).

    \b
    native        config.json and flax_model.safetensors, as this library saves
    published     as jinaai/jina-embeddings-v3, adapters stacked in one file; transformers and
                  sentence-transformers open it with trust_remote_code and the code on the Hub,
                  with --merge also without
    transformers  as jinaai/jina-embeddings-v3-hf, one PEFT folder per task
    xlm-roberta   XLM-RoBERTa (absolute positions), one PEFT folder per task
    bert          BERT (positions from zero), as multilingual-e5-small; PEFT folders, too
    """
    from jina_jax.convert import merge_checkpoint, write_checkpoint
    from jina_jax.files import new_output
    from jina_jax.verify.compare import REFERENCES_FILE

    checkpoint = _open(model, step)
    written = checkpoint if task is None else merge_checkpoint(checkpoint, task)
    write_checkpoint(written, target, layout)
    references = checkpoint.directory / REFERENCES_FILE
    if task is None and not _is_run(model) and references.exists():
        with new_output(target / REFERENCES_FILE, force=False) as file:
            file.write(references.read_bytes())
    click.echo(report_copy(checkpoint, target, layout, task))


def _is_run(source: Model) -> bool:
    return Path(str(source.name), _RUN_FILE).is_file()


def _open(source: Model, step: int | None) -> Checkpoint:
    """Open a checkpoint, or what a training run has trained."""
    from jina_jax.convert import open_checkpoint

    if not _is_run(source):
        if step is not None:
            raise click.UsageError(f"--step: expected a training run as SOURCE, got {source.name}")
        return open_checkpoint(source.fetch())
    if source.revision is not None:
        raise click.UsageError("--revision: expected none for a training run, which has its own")
    with needs("train"):
        from jina_jax.training.run import load_run
    return load_run(str(source.name), step)
