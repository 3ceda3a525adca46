"""The command ``jina-jax encode``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from jina_jax.cli.formats import FORMATS, check_table, pick_format, write_rows
from jina_jax.cli.options import (
    PATH,
    Model,
    absent,
    dtype_option,
    force_option,
    model_options,
    prompt_option,
    quantization_option,
)
from jina_jax.tasks import LONG_TEXT


@click.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_options
@click.option("--input", "source", type=PATH, help="File with one text per line; - for stdin.")
@click.option("--field", help="Read JSONL, with the text in this field.")
@click.option(
    "--task",
    callback=absent,
    help="Adapter, e.g. retrieval.query.  [default: none, the base model]",
)
@click.option(
    "--task-field", help="JSONL field with the row's own task; --task where it is null or missing."
)
@prompt_option
@click.option("--prompt-name", help="Use the prompt of this name (see info) for every text.")
@click.option(
    "--truncate-dim", type=click.IntRange(min=0), help="Keep this many dimensions (see info)."
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="Maximum tokens encoded at once.  [default: the model's own]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Maximum texts per step.  [default: by number of tokens]",
)
@click.option(
    "--long-text",
    type=click.Choice(LONG_TEXT),
    default=LONG_TEXT[0],
    show_default=True,
    help="Texts above --max-length: cut them, or average over windows.",
)
@dtype_option
@quantization_option
@click.option(
    "--normalize/--no-normalize",
    "normalize_embeddings",
    default=True,
    help="Scale vectors to length 1.  [default: normalize]",
)
@click.option(
    "--split-special-tokens", is_flag=True, help="Treat <s>, <mask>, … in a text as plain text."
)
@click.option("--output", type=PATH, help="File to write (.jsonl, .npy, .txt).  [default: stdout]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="Output format.  [default: by the suffix of --output, else jsonl]",
)
@force_option
def encode(
    texts: tuple[str, ...],
    model: Model,
    source: Path | None,
    field: str | None,
    task: str | None,
    task_field: str | None,
    dtype: str | None,
    quantization: str | None,
    split_special_tokens: bool,
    output: Path | None,
    kind: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Embed texts: one vector per text.

    The texts are the arguments, or the lines of --input or stdin (-). With --field, each line is a
    JSON object with the text in that field.

    \b
    jina-jax encode "what is jax?"
    jina-jax encode --model M --task retrieval.query "what is jax?"
    jina-jax encode --model M --task retrieval.passage --input docs.txt --output docs.npy
    jina-jax encode --model M --input rows.jsonl --field body --task-field task > vectors.jsonl
    cut -f2 table.tsv | jina-jax encode --model M --task classification --output v.npy
    jina-jax encode --task text-matching --format table \\
        "How do I renew my passport?" "Wie verlängere ich meinen Pass?" "The best pizza in town"

    Every line is a text, so vector i belongs to line i: an empty line gives the vector of the empty
    text (in JSONL it is skipped). Empty input gives no vectors and is no error.

    \b
    jsonl  one object per text: "index", "text" and "embedding"; for JSONL input the fields of the
           row and "embedding"
    npy    float32 array (texts, dimensions)
    table  cosine similarities of up to 20 texts, for reading (.txt)

    Put -- before texts that begin with a dash.
    """
    from jina_jax.cli.rows import read_rows
    from jina_jax.files import check_not_input, new_output

    output = None if str(output) == "-" else output
    kind = pick_format(output, kind)
    check_not_input(output, source)
    rows = read_rows(texts, source, field, task_field, task)
    if kind == "table":
        check_table(len(rows.texts))
    with new_output(output, force=force) as file:
        embedder = model.load(
            dtype=dtype, quantization=quantization, split_special_tokens=split_special_tokens
        )
        rows.check_own_tasks(embedder.config.lora_adaptations)
        shown = sys.stderr.isatty()
        vectors = embedder.encode(rows.texts, task=rows.tasks, show_progress_bar=shown, **options)
        write_rows(file, kind, rows, vectors)
