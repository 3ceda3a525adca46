"""The command ``jina-jax``.

Only click is imported up here, so that ``--help`` is quick; each command imports what it needs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from jina_jax import __version__
from jina_jax.cli.errors import Program
from jina_jax.cli.eval import evaluate
from jina_jax.cli.mine import mine
from jina_jax.cli.options import LAYOUTS, PATH, dtype_option, hub_options, model_and
from jina_jax.cli.search import search
from jina_jax.cli.train import export, train

LONG_TEXT = ("truncate", "windows")
FORMATS = ("jsonl", "npy", "table")


@click.group(
    cls=Program,
    name="jina-jax",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="jina-jax")
@click.pass_context
def main(context: click.Context) -> None:
    """Embed texts with jina-embeddings-v3, and handle its checkpoints.

    MODEL and SOURCE are a directory or a Hugging Face Hub id such as jinaai/jina-embeddings-v3,
    which is downloaded once and then read from the Hub's cache. Left out, or tiny: the small model
    that comes with the package.

    Exit status: 0 all right, 1 verify found differences, 2 error, 130 interrupted.
    """
    # Reading a compiled program from the cache, XLA for CPU logs kilobytes about processor features
    # that are none ("prefer-no-gather"). What goes wrong is an exception as well. Level 1 is what
    # JAX sets in every process that imports it, and what its children inherit.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--model", help="Directory or Hub id.  [default: tiny, in the package]")
@click.option("--input", "source", type=PATH, help="File with one text a line; - for stdin.")
@click.option("--field", help="The input is JSONL, with the text in this field.")
@click.option("--task", help="Adapter, e.g. retrieval.query; without it the base model is used.")
@click.option("--task-field", help="JSONL field with a row's own task; null or missing: --task.")
@click.option(
    "--prompt",
    default="auto",
    show_default=True,
    help="auto: the task's own; none: no prompt; else the string to put in front of each text.",
)
@click.option(
    "--truncate-dim", type=click.IntRange(min=0), help="Keep this many dimensions (see info)."
)
@click.option(
    "--max-length", type=click.IntRange(min=2), help="Most tokens that are encoded at once."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Most texts in one step, a row each.  [default: as many tokens as run best]",
)
@click.option(
    "--long-text",
    type=click.Choice(LONG_TEXT),
    default=LONG_TEXT[0],
    show_default=True,
    help="What becomes of a text of more tokens: cut, or averaged over windows.",
)
@dtype_option
@click.option(
    "--normalize/--no-normalize",
    "normalize_embeddings",
    default=True,
    help="Scale vectors to length 1.  [default: normalize]",
)
@click.option(
    "--split-special-tokens", is_flag=True, help="Take <s>, <mask>, … in a text as plain text."
)
@click.option("--output", type=PATH, help="File (.jsonl, .npy, .txt) to write.  [default: stdout]")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="[default: by the suffix]")
@click.option("--force", is_flag=True, help="Replace the output file if there is one.")
@hub_options
def encode(
    texts: tuple[str, ...],
    model: str | None,
    source: Path | None,
    field: str | None,
    task_field: str | None,
    dtype: str | None,
    split_special_tokens: bool,
    output: Path | None,
    kind: str | None,
    force: bool,
    revision: str | None,
    local_files_only: bool,
    **options: Any,
) -> None:
    """Turn texts into vectors.

    The texts are the arguments, or the lines of --input or of stdin (-). With --field these lines
    are JSON objects with the text in that field.

    \b
    jina-jax encode "what is jax?"
    jina-jax encode --model M --task retrieval.query "what is jax?"
    jina-jax encode --model M --task retrieval.passage --input docs.txt --output docs.npy
    jina-jax encode --model M --input rows.jsonl --field body --task-field task > vectors.jsonl
    cut -f2 table.tsv | jina-jax encode --model M --task classification --output v.npy
    jina-jax encode --model M --task text-matching --format table "a cat" "a dog" "a car"

    Every line is a text, so vector i belongs to line i: an empty line gives the vector of the empty
    text (and is an error in JSONL). No input gives no vectors, which is no error.

    \b
    jsonl  one object a row with "embedding", beside "index" and "text" or, for JSONL input,
           beside the row's own fields
    npy    float32 array (texts, dimensions)
    table  cosine similarities of up to 20 texts, to look at (.txt)

    Put -- in front of texts that begin with a dash.
    """
    from jina_jax.cli.rows import check_table, pick_format, read_rows, write_rows
    from jina_jax.files import new_output

    output = None if str(output) == "-" else output
    kind = pick_format(output, kind)
    rows = read_rows(texts, source, field, task_field, options["task"])
    if kind == "table":
        check_table(len(rows.texts))
    options["task"] = rows.tasks
    options["prompt"] = None if options["prompt"] == "none" else options["prompt"]
    with new_output(output, force=force) as file:
        from jina_jax.embedder import JinaEmbeddings  # seconds, after what can be refused at once

        embedder = JinaEmbeddings.from_pretrained(
            model,
            dtype=dtype,
            split_special_tokens=split_special_tokens,
            revision=revision,
            local_files_only=local_files_only,
        )
        options["show_progress_bar"] = sys.stderr.isatty()
        vectors = embedder.encode(rows.texts, **options)
        write_rows(file, kind, rows, vectors)


@main.command()
@model_and("TARGET", model="SOURCE")
@click.option("--to", "layout", required=True, type=click.Choice(LAYOUTS), help="Layout to write.")
@hub_options
def convert(places: tuple[str | None, Path], layout: str, **hub: Any) -> None:
    """Write a checkpoint in another layout.

    TARGET is a new directory. Without SOURCE, tiny is written, the model in the package.

    \b
    jina-jax convert jinaai/jina-embeddings-v3 v3-native --to native
    jina-jax convert my-finetune for-transformers --to transformers

    The layout of SOURCE is recognised. Weights keep their dtype and every bit; memory is needed for
    one tensor at a time.

    \b
    native        config.json and flax_model.safetensors, as this library saves
    published     as jinaai/jina-embeddings-v3, adapters stacked in one file
    transformers  as jinaai/jina-embeddings-v3-hf, one PEFT folder a task
    xlm-roberta   plain XLM-RoBERTa (absolute positions, no adapters)
    """
    from jina_jax.checkpoints.hub import fetch
    from jina_jax.cli.info import report_copy
    from jina_jax.convert import open_checkpoint, write_checkpoint

    source, target = places
    checkpoint = open_checkpoint(fetch(source, **hub))
    write_checkpoint(checkpoint, target, layout)
    click.echo(report_copy(checkpoint, target, layout))


@main.command()
@model_and("TARGET", model="SOURCE")
@click.option("--task", required=True, help="Adapter to fold in, e.g. text-matching.")
@click.option("--to", "layout", type=click.Choice(LAYOUTS), help="[default: the layout of SOURCE]")
@hub_options
def merge(places: tuple[str | None, Path], task: str, layout: str | None, **hub: Any) -> None:
    """Fold one task's adapter into plain weights.

    TARGET is a new directory. Without SOURCE, tiny is taken, the model in the package.

    \b
    jina-jax merge jinaai/jina-embeddings-v3 v3-matching --task text-matching

    The result has no adapters and needs no task; the task's prompt is its default prompt. Sums are
    made in float32 and rounded once to the checkpoint's dtype.
    """
    from jina_jax.checkpoints.hub import fetch
    from jina_jax.cli.info import report_copy
    from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint

    source, target = places
    checkpoint = open_checkpoint(fetch(source, **hub))
    layout = layout or checkpoint.layout
    write_checkpoint(merge_checkpoint(checkpoint, task), target, layout)
    click.echo(report_copy(checkpoint, target, layout, task))


@main.command()
@click.argument("model", required=False)
@click.option("--devices", is_flag=True, help="Tell about this machine instead of a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@hub_options
def info(model: str | None, devices: bool, as_json: bool, **hub: Any) -> None:
    """Tell what a checkpoint is, or what it would run on.

    Prints layout, size, tasks with their prompts, dimensions, limits and what it takes on disk.
    With --devices: the devices that JAX found, which attention kernels can run on them and why
    others cannot, and how texts are put into batches.

    \b
    jina-jax info                              # of tiny, the model in the package
    jina-jax info jinaai/jina-embeddings-v3
    jina-jax info my-finetune --json | jq .parameters.total
    jina-jax info --devices

    Of MODEL only config and file headers are read, no weights, and it is checked that they fit.
    """
    if devices and model is not None:
        raise click.UsageError("expected either MODEL or --devices")
    if devices:
        from jina_jax.cli import devices as cli_devices

        facts = cli_devices.describe()
        text = cli_devices.as_text(facts)
    else:
        from jina_jax.checkpoints.hub import fetch
        from jina_jax.cli import info as cli_info
        from jina_jax.convert import open_checkpoint

        facts = cli_info.describe(open_checkpoint(fetch(model, **hub)))
        text = cli_info.as_text(facts)
    click.echo(json.dumps(facts, ensure_ascii=False, indent=2) if as_json else text)


@main.command()
@click.argument("model", required=False)
@click.option(
    "--gold",
    type=PATH,
    help="File of values.  [default: gold.json of the model, else the published ones]",
)
@hub_options
@click.pass_context
def verify(context: click.Context, model: str | None, gold: Path | None, **hub: Any) -> None:
    """Compare a checkpoint with the values that it should give.

    \b
    jina-jax verify                              # tiny, the model in the package
    jina-jax verify jinaai/jina-embeddings-v3    # with the published values; needs 2.3 GB of memory

    Runs a few short inputs through the base model and each adapter in float32, and prints a line
    for each comparison of hidden states. The values are those of gold.json in the model's
    directory, or without one those published for jina-embeddings-v3. Exit status 0 if all agree
    within rtol = atol = 1e-4, 1 if not, 2 if the checkpoint cannot be compared.
    """
    from jina_jax.checkpoints.hub import fetch
    from jina_jax.convert import open_checkpoint
    from jina_jax.text.tokenizer import Tokenizer
    from jina_jax.verify import TOLERANCE, load_references, references_of, verify

    references = None if gold is None else load_references(gold)  # before anything is downloaded
    checkpoint = open_checkpoint(fetch(model, **hub))
    references = references or references_of(checkpoint.directory)
    tokenizer = Tokenizer.from_file(checkpoint.directory / "tokenizer.json")
    checks = verify(checkpoint, tokenizer, references)
    for check in checks:
        result = "ok" if check.agrees else "DIFFERS"
        line = f"{check.input:<10} {check.subject:<18} max |difference| {check.difference:.1e}"
        click.echo(f"{line}  {result}")
    agreed = sum(check.agrees for check in checks)
    click.echo(f"{agreed} of {len(checks)} agree within rtol = atol = {TOLERANCE:g}")
    context.exit(0 if agreed == len(checks) else 1)


for command in (search, train, mine, evaluate, export):
    main.add_command(command)


if __name__ == "__main__":
    main()
