"""The command ``jina-jax eval``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jina_jax.cli.options import (
    PATH,
    TOO_MANY_TASKS,
    Model,
    dtype_option,
    json_option,
    model_options,
    quantization_option,
    task_option,
)
from jina_jax.tasks import EVALUATIONS

if TYPE_CHECKING:
    from jina_jax.evaluation import Evaluation

Results = dict[str, float]


class _List(click.ParamType):
    """Values separated by commas; if all are numbers, positions or dimensions."""

    name = "list"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        parts = value.split(",")
        if not all(parts):
            self.fail(f"{value!r}: expected values separated by commas", parameter, context)
        return tuple(map(int, parts)) if all(map(str.isdecimal, parts)) else tuple(parts)


class _Dims(_List):
    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        dims = super().convert(value, parameter, context)
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            self.fail(f"{value!r}: expected positive integers", parameter, context)
        return dims


@click.command("eval")
@click.argument("kind", type=click.Choice(tuple(EVALUATIONS)), metavar="KIND")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@model_options
@task_option
@click.option("--dims", type=_Dims(), help="Matryoshka dimensions to score as well, e.g. 64,256.")
@dtype_option
@quantization_option
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="Maximum tokens per text.  [default: the model's limit]",
)
@click.option(
    "--columns",
    type=_List(),
    help="Column names, e.g. text,category; or positions from 0 in CSV without a header.",
)
@click.option("--split", help="Split of a retrieval data set.  [default: test]")
@json_option
def evaluate(
    kind: str,
    paths: tuple[Path, ...],
    model: Model,
    dtype: str | None,
    quantization: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate a model's embeddings.

    \b
    jina-jax eval sts stsb-dev.csv
    jina-jax eval sts stsb-dev.csv --model jinaai/jina-embeddings-v3 --dims 32,64,128
    jina-jax eval classification train.csv test.csv --model M --columns text,category
    jina-jax eval retrieval scifact --model M --task retrieval.query --task retrieval.passage

    \b
    KIND
    sts             CSV, TSV or JSONL: sentence1, sentence2, score. For several files Spearman's
                    correlation of each, and the mean
    bitext          two files: line i of one is the translation of line i of the other
    classification  CSV, TSV or JSONL: text, label. Two files to train and to test, or one for
                    5-fold cross validation
    clustering      like classification, one file
    retrieval       directory in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv

    Needs the extra eval: pip install "jina-jax[eval]".
    """
    if isinstance(options["task"], tuple) and kind != "retrieval":
        raise click.UsageError(TOO_MANY_TASKS)
    evaluations = _prepare(kind, paths, options)
    embedder = model.load(dtype=dtype, quantization=quantization)
    results = _run(evaluations, embedder)
    if as_json:
        click.echo(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        click.echo(_table(results, evaluations, embedder.config.embedding_dim(None)))


def _prepare(kind: str, paths: Sequence[Path], options: dict[str, Any]) -> list[Evaluation]:
    """Read the data; of sts every file is an evaluation of its own."""
    from jina_jax.evaluation import Evaluation

    groups = [[path] for path in paths] if kind == "sts" else [list(paths)]
    names = _names(groups)
    try:
        return [
            Evaluation(kind=kind, paths=group, name=name, **options)
            for group, name in zip(groups, names, strict=True)
        ]
    except ImportError as error:
        raise click.ClickException(str(error)) from None


def _names(groups: Sequence[Sequence[Path]]) -> Sequence[str | None]:
    """Name evaluations by their files, with the directory if names are equal."""
    if len(groups) == 1:
        return [None]  # the default of Evaluation
    paths = [group[0] for group in groups]
    for names in ([path.stem for path in paths], list(map(str, paths))):
        if len(set(names)) == len(names):
            return names
    raise click.UsageError("expected each file once")


def _run(evaluations: Sequence[Evaluation], model: Any) -> Results:
    """Return the metrics of all evaluations, and for several also the means, as "mean/metric"."""
    results: Results = {}
    metrics: dict[str, list[float]] = {}
    for evaluation in evaluations:
        own = evaluation.run(model)
        results |= own
        for key, value in own.items():
            metrics.setdefault(key.rpartition("/")[2], []).append(value)
    if len(evaluations) > 1:
        results |= {f"mean/{name}": sum(all_) / len(all_) for name, all_ in metrics.items()}
    return results


def _table(results: Results, evaluations: Sequence[Evaluation], dim: int) -> str:
    """Lay out metrics down and dimensions across; of several evaluations the main metric alone."""
    first = evaluations[0]
    main = first.primary.rpartition("/")[2]
    if len(evaluations) > 1:
        title = main
        rows = {str(each.name): each.primary for each in evaluations} | {"mean": f"mean/{main}"}
    else:
        title = f"{first.kind} {first.name}"
        rows = {key.rpartition("/")[2]: key for key in results if "@" not in key.rpartition("/")[2]}
    suffixes = ["", *(f"@{cut}" for cut in first.dims or ())]
    width = max(map(len, (title, *rows)))
    lines = [f"{title:<{width}}" + "".join(f"{suffix[1:] or dim:>9}" for suffix in suffixes)]
    for label, key in rows.items():
        numbers = "".join(f"{results[key + suffix]:>9.4f}" for suffix in suffixes)
        lines.append(f"{label:<{width}}{numbers}")
    return "\n".join(lines)
