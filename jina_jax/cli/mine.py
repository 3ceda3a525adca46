"""The command ``jina-jax mine``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jina_jax.cli.options import PATH, dtype_option, hub_options, model_and

if TYPE_CHECKING:
    from jina_jax.search.negatives import Mined

_MOST_LISTED = 20


@click.command()
@model_and("PAIRS", "OUT.jsonl")
@click.option("--corpus", type=PATH, help="File of texts to search as well (.txt, .jsonl, …).")
@click.option(
    "--num-negatives",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Negatives of each pair.",
)
@click.option(
    "--range-min",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Nearest texts to skip: often positives that nobody marked.",
)
@click.option(
    "--range-max",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Nearest texts to look at.",
)
@click.option("--max-score", type=float, help="Skip texts that are nearer than this cosine.")
@click.option("--min-score", type=float, help="Skip texts that are farther than this cosine.")
@click.option(
    "--absolute-margin", type=float, help="Skip texts less than this below the positive's score."
)
@click.option(
    "--relative-margin", type=float, help="The same as a share of the positive's score, e.g. 0.05."
)
@click.option(
    "--sampling-strategy",
    type=click.Choice(("top", "random")),
    default="top",
    show_default=True,
    help="Take the nearest that are left, or draw among them.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of a draw.")
@dtype_option
@click.option("--force", is_flag=True, help="Replace the output file if there is one.")
@hub_options
def mine(
    places: tuple[str | None, Path, Path],
    corpus: Path | None,
    dtype: str | None,
    force: bool,
    revision: str | None,
    local_files_only: bool,
    **options: Any,
) -> None:
    """Find hard negatives for pairs of texts.

    PAIRS has the columns anchor and positive (.jsonl, .csv, .tsv or .parquet). OUT.jsonl gets a
    line for each pair, with negatives and their scores, and can be trained on as triplets. Without
    MODEL that is tiny, the one in the package.

    \b
    jina-jax mine jinaai/jina-embeddings-v3 pairs.jsonl triplets.jsonl --relative-margin 0.05
    jina-jax mine my-finetune pairs.csv triplets.jsonl --corpus passages.txt --range-min 5

    Negatives are the texts nearest to the anchor, among all positives and the corpus (one text a
    line in .txt, or the column text), that are no positive of the same anchor. Queries and texts
    are encoded for retrieval if the model has these tasks. A pair for which there are too few is
    left out, and said to be.
    """
    from jina_jax.data import read_source
    from jina_jax.files import new_output

    model, pairs, output = places
    if output.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"{output}: expected a name that ends in .jsonl")
    rows = [(row[0], row[1]) for row in read_source([pairs], "pairs").texts]
    texts = None if corpus is None else [text for (text,) in read_source([corpus], "texts").texts]
    with new_output(output, force=force) as file:
        from jina_jax.embedder import JinaEmbeddings  # seconds, after what can be refused at once
        from jina_jax.search.negatives import mine_hard_negatives, triplet_lines
        from jina_jax.search.rules import Rules

        embedder = JinaEmbeddings.from_pretrained(
            model, dtype=dtype, revision=revision, local_files_only=local_files_only
        )
        shown = sys.stderr.isatty()
        mined = mine_hard_negatives(
            embedder, rows, texts, rules=Rules(**options), show_progress_bar=shown
        )
        file.writelines(triplet_lines(mined))
    click.echo(report(mined, output, options["num_negatives"]))


def report(mined: Mined, output: Path, num_negatives: int) -> str:
    """Say what was mined and what was not; rows of the input are counted from 1."""
    lines = [
        f"{output}: {len(mined.rows):,} pairs, negatives of each: {num_negatives}; "
        f"searched {mined.texts:,} texts for {mined.queries:,} queries"
    ]
    if mined.left_out:
        lines.append(f"left out, too few negatives: {_listed(mined.left_out)}")
    if mined.repeated:
        lines.append(f"left out, came before: {_listed(mined.repeated)}")
    for name, removed in mined.removed.items():
        lines.append(f"{removed:,} candidates removed by --{name.replace('_', '-')}")
    return "\n".join(lines)


def _listed(indices: Sequence[int]) -> str:
    """Count pairs, and name the first of them."""
    named = ", ".join(str(index + 1) for index in indices[:_MOST_LISTED])
    more = f" and {len(indices) - _MOST_LISTED:,} more" if len(indices) > _MOST_LISTED else ""
    return f"{len(indices):,} pairs (rows {named}{more})"
