"""The command ``jina-jax eval``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jina_jax.cli.options import TOO_MANY_TASKS, counted, dtype_option, hub_options, task_option

if TYPE_CHECKING:
    from jina_jax.evaluation import Evaluation

# Those of jina_jax.evaluation.KINDS, which takes long to import.
KINDS = ("sts", "bitext", "classification", "clustering", "retrieval")

Results = dict[str, float]


class _List(click.ParamType):
    """Values with commas between them; all of them numbers are positions or dimensions."""

    name = "list"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        parts = value.split(",")
        if not all(parts):
            self.fail(f"{value!r}: expected values with commas between them", parameter, context)
        return tuple(map(int, parts)) if all(map(str.isdecimal, parts)) else tuple(parts)


class _Dims(_List):
    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        dims = super().convert(value, parameter, context)
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            self.fail(f"{value!r}: expected positive integers", parameter, context)
        return dims


def _split(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> Any:
    """Give the model or None, the kind and the paths."""
    # A directory may be called like a kind: then the kind follows, and it is the model.
    place = 1 if values[1:2] and values[1] in KINDS else 0
    kind, paths = values[place : place + 1], values[place + 1 :]
    if not (paths and kind[0] in KINDS) and not context.resilient_parsing:
        raise click.UsageError(
            f"expected [MODEL] KIND PATH..., KIND one of {', '.join(KINDS)}; got {counted(values)}",
            context,
        )
    return (*(values[:place] or (None,)), *kind, [Path(path) for path in paths])


@click.command("eval")
@click.argument("places", nargs=-1, metavar="[MODEL] KIND PATH...", callback=_split)
@task_option
@click.option("--dims", type=_Dims(), help="Matryoshka dimensions to score as well, e.g. 64,256.")
@dtype_option
@click.option("--max-length", type=click.IntRange(min=2), help="Most tokens of a text.")
@click.option(
    "--columns",
    type=_List(),
    help="Names, e.g. text,category; or positions from 0 in CSV without a header.",
)
@click.option("--split", default="test", show_default=True, help="Of a retrieval data set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@hub_options
def evaluate(
    places: tuple[str | None, str, list[Path]],
    dtype: str | None,
    as_json: bool,
    revision: str | None,
    local_files_only: bool,
    **options: Any,
) -> None:
    """Measure what a model's vectors are worth.

    Without MODEL that is tiny, the one in the package.

    \b
    jina-jax eval sts stsb-dev.csv
    jina-jax eval jinaai/jina-embeddings-v3 sts stsb-dev.csv --dims 32,64,128
    jina-jax eval my-finetune classification train.csv test.csv --columns text,category
    jina-jax eval my-finetune retrieval scifact --task retrieval.query --task retrieval.passage

    \b
    KIND
    sts             CSV, TSV or JSONL: sentence1, sentence2, score. Of several files Spearman's
                    correlation for each, and the mean
    bitext          two files: line i of one is the translation of line i of the other
    classification  CSV, TSV or JSONL: text, label. Two files to train and to test, or one for
                    5-fold cross validation
    clustering      as for classification, one file
    retrieval       directory in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv

    Needs the extra eval: pip install "jina-jax[eval]".
    """
    model, kind, paths = places
    if isinstance(options["task"], tuple) and kind != "retrieval":
        raise click.UsageError(TOO_MANY_TASKS)
    from jina_jax.evaluation import Evaluation

    groups = [[path] for path in paths] if kind == "sts" else [paths]
    try:
        evaluations = [
            Evaluation(kind=kind, paths=group, name=name, **options)
            for group, name in zip(groups, _names(groups), strict=True)
        ]
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    from jina_jax.embedder import JinaEmbeddings  # seconds, after what can be refused at once

    embedder = JinaEmbeddings.from_pretrained(
        model, dtype=dtype, revision=revision, local_files_only=local_files_only
    )
    results = _run(evaluations, embedder)
    if as_json:
        click.echo(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        click.echo(_table(results, evaluations, embedder.config.embedding_dim(None)))


def _names(groups: Sequence[Sequence[Path]]) -> Sequence[str | None]:
    """Name evaluations by their files, with the directory if they are called the same."""
    if len(groups) == 1:
        return [None]  # what Evaluation takes
    paths = [group[0] for group in groups]
    for names in ([path.stem for path in paths], list(map(str, paths))):
        if len(set(names)) == len(names):
            return names
    raise click.UsageError("expected each file once")


def _run(evaluations: Sequence[Evaluation], model: Any) -> Results:
    """Return the metrics of all, and for several also the means, as "mean/metric"."""
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
    """Show metrics down and dimensions across; of several evaluations the main metric alone."""
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
