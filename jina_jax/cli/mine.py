"""The command ``jina-jax mine``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jina_jax.cli.options import (
    PATH,
    Model,
    dtype_option,
    force_option,
    model_options,
    quantization_option,
)
from jina_jax.tasks import SAMPLING_STRATEGIES

if TYPE_CHECKING:
    from jina_jax.search.negatives import Mined

_MOST_LISTED = 20


@click.command()
@click.argument("pairs", type=PATH)
@click.argument("output", type=PATH, metavar="OUT.jsonl")
@model_options
@click.option("--corpus", type=PATH, help="File of further texts to search (.txt, .jsonl, …).")
@click.option(
    "--num-negatives",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Negatives per pair.",
)
@click.option(
    "--range-min",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Nearest texts to skip: often unmarked positives.",
)
@click.option(
    "--range-max",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Nearest texts to consider per query.",
)
@click.option("--max-score", type=float, help="Skip texts with a larger cosine similarity.")
@click.option("--min-score", type=float, help="Skip texts with a smaller cosine similarity.")
@click.option(
    "--absolute-margin", type=float, help="Skip texts less than this below the positive's score."
)
@click.option(
    "--relative-margin", type=float, help="The same as a share of the positive's score, e.g. 0.05."
)
@click.option(
    "--sampling-strategy",
    type=click.Choice(SAMPLING_STRATEGIES),
    default=SAMPLING_STRATEGIES[0],
    show_default=True,
    help="Use the nearest of the remaining texts, or a random sample.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sample."
)
@dtype_option
@quantization_option
@force_option
def mine(
    pairs: Path,
    output: Path,
    model: Model,
    corpus: Path | None,
    dtype: str | None,
    quantization: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Find hard negatives for pairs of texts.

    PAIRS has the columns anchor and positive (.jsonl, .csv, .tsv or .parquet). OUT.jsonl gets one
    line per pair, with its negatives and their scores, and can be used for training as triplets.

    \b
    jina-jax mine pairs.jsonl triplets.jsonl --relative-margin 0.05
    jina-jax mine pairs.csv triplets.jsonl --model M --corpus passages.txt --range-min 5

    Negatives are the texts nearest to the anchor, among all positives and the corpus (one text per
    line in .txt, or the column text), that are no positive of the same anchor. Queries and texts
    are encoded with the retrieval adapters if the model has them. Pairs with too few negatives are
    dropped and reported.
    """
    from jina_jax.data import read_source
    from jina_jax.files import check_not_input, new_output

    if output.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"{output}: expected a name that ends in .jsonl")
    check_not_input(output, pairs, corpus)
    rows = [(row[0], row[1]) for row in read_source([pairs], "pairs").texts]
    texts = None if corpus is None else [text for (text,) in read_source([corpus], "texts").texts]
    with new_output(output, force=force) as file:
        from jina_jax.search.negatives import mine_hard_negatives, triplet_lines
        from jina_jax.search.rules import Rules

        rules = Rules(**options)
        embedder, shown = model.load(dtype=dtype, quantization=quantization), sys.stderr.isatty()
        mined = mine_hard_negatives(embedder, rows, texts, rules=rules, show_progress_bar=shown)
        file.writelines(triplet_lines(mined))
    click.echo(report(mined, output, rules.num_negatives))


def report(mined: Mined, output: Path, num_negatives: int) -> str:
    """Report the pairs that were mined and those left out; rows of the input count from 1."""
    lines = [
        f"{output}: {len(mined.rows):,} pairs, negatives per pair: {num_negatives}; "
        f"searched {mined.texts:,} texts for {mined.queries:,} queries"
    ]
    if mined.left_out:
        lines.append(f"dropped, too few negatives: {_listed(mined.left_out)}")
    if mined.repeated:
        lines.append(f"dropped, repeated: {_listed(mined.repeated)}")
    for name, removed in mined.removed.items():
        lines.append(f"{removed:,} candidates removed by --{name.replace('_', '-')}")
    return "\n".join(lines)


def _listed(indices: Sequence[int]) -> str:
    """Count pairs, and list the first of them."""
    named = ", ".join(str(index + 1) for index in indices[:_MOST_LISTED])
    more = f" and {len(indices) - _MOST_LISTED:,} more" if len(indices) > _MOST_LISTED else ""
    return f"{len(indices):,} pairs (rows {named}{more})"
