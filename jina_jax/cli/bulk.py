"""The commands ``jina-jax bulk``, ``bulk status`` and ``bulk verify``."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jina_jax.bulk.settings import KINDS, LONG_TEXT, SHARD_BYTES, SHARD_ROWS
from jina_jax.cli.errors import needs, orderly_end
from jina_jax.cli.options import (
    PATH,
    Model,
    absent,
    dtype_option,
    force_option,
    json_option,
    model_options,
    planned_model_options,
    prompt_option,
    quantization_option,
)

_RUN = "run"
_PLACE = ("--local-devices", "--rank", "--world")  # options that say which process this is


class _Group(click.Group):
    """A group whose first command needs no name: ``bulk INPUT OUTPUT`` is ``bulk run`` of them."""

    default_command = _RUN

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group, invoke_without_command=True)
@click.pass_context
def bulk(context: click.Context) -> None:
    """Turn tables of text into tables of vectors, on any number of machines.

    \b
    jina-jax bulk "corpus/*.parquet" vectors/ --text body --id doc_id \\
        --task retrieval.passage --model jinaai/jina-embeddings-v3
    jina-jax bulk status vectors/
    jina-jax bulk verify vectors/

    bulk INPUT... OUTPUT is short for bulk run INPUT... OUTPUT; see bulk run --help. Inputs that are
    called as one of the commands need the whole: bulk run status vectors/.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _chunks(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    if value is None or value == "sentences":
        return value
    if value.isascii() and value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"expected sentences or a number of tokens, got {value!r}")


@bulk.command(_RUN)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.argument("output")
@model_options
@click.option(
    "--text",
    multiple=True,
    required=True,
    help="Column with texts; repeatable, each gets a column of vectors.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    callback=absent,
    help="Adapter, one, or one per --text.  [default: none, the base model]",
)
@click.option("--task-column", help="Column with the row's own adapter, --task where it is null.")
@click.option(
    "--id", "id", help="Column that names rows.  [default: none; the output has file and row]"
)
@click.option("--columns", multiple=True, help="Column to pass through; repeatable.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(KINDS),
    default=KINDS[0],
    show_default=True,
    help="Vectors as lists of floats, as bytes of float32, or as packed bits.",
)
@click.option("--truncate-dim", type=click.IntRange(min=0), help="Keep this many dimensions.")
@prompt_option
@click.option("--prompt-name", help="Use the prompt of this name for every text.")
@click.option(
    "--max-length", type=click.IntRange(min=2), help="Maximum tokens.  [default: the model's own]"
)
@click.option(
    "--long-text",
    type=click.Choice(LONG_TEXT),
    help="Texts above --max-length: cut them, average over windows, or refuse the row."
    "  [default: truncate]",
)
@click.option(
    "--chunks",
    callback=_chunks,
    help="A row per chunk, encoded in its context: sentences, or a number of tokens.",
)
@click.option("--dedup", is_flag=True, help="Encode identical texts of a shard once.")
@click.option(
    "--normalize/--no-normalize", default=True, help="Scale vectors to length 1. [default: yes]"
)
@click.option(
    "--split-special-tokens", is_flag=True, help="Treat <s>, <mask>, … in a text as plain text."
)
@dtype_option
@quantization_option
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    default=SHARD_ROWS,
    show_default=True,
    help="Most rows per shard.",
)
@click.option(
    "--shard-mb",
    type=click.IntRange(min=1),
    default=SHARD_BYTES >> 20,
    show_default=True,
    help="Most text per shard, about.",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Rows in _errors/ above which the exit status is 1.",
)
@click.option("--rank", type=click.IntRange(min=0), help="Of this process.  [default: SLURM's, …]")
@click.option("--world", type=click.IntRange(min=1), help="Number of processes.")
@click.option("--leases", is_flag=True, help="Share the work with whoever has the same output.")
@click.option("--local-devices", type=click.IntRange(min=1), help="A process per so many devices.")
@click.option("--ray", help="Compute on a Ray cluster: its address, or auto.")
def run(
    inputs: tuple[str, ...],
    output: str,
    model: Model,
    shard_rows: int,
    shard_mb: int,
    max_errors: int,
    rank: int | None,
    world: int | None,
    leases: bool,
    local_devices: int | None,
    ray: str | None,
    truncate_dim: int | None,
    **options: Any,
) -> None:
    """Encode every row of INPUT once into OUTPUT.

    INPUT are files (.parquet, .jsonl, .csv, .tsv, .arrow, also .gz and .zst of lines), directories
    and patterns, on disk or in a store (s3://, gs://, …, with its fsspec package). OUTPUT is a
    directory, also in a store. Run it again, and it goes on; run it on many machines with --rank
    and --world, --leases or --ray, and they share the work.

    \b
    jina-jax bulk corpus/ vectors/ --text body --id doc_id --task retrieval.passage
    jina-jax bulk rows.jsonl vectors/ --text title --text body --task separation \\
        --task retrieval.passage --columns url --as float16
    jina-jax bulk docs.parquet chunks/ --text body --id doc_id --chunks sentences

    Rows that cannot be encoded are in OUTPUT/_errors, with the reason.
    """
    with needs("bulk"):
        from jina_jax.bulk import job
        from jina_jax.bulk.ranks import ALONE, rank_and_world
        from jina_jax.bulk.stores import Store
    shared = leases or ray is not None
    if not shared and (rank is None) != (world is None):
        raise click.UsageError("expected --rank and --world, got one of them")
    if shared and (rank is not None or world is not None):
        raise click.UsageError("expected --rank and --world, --leases, or --ray, got two of them")
    if ray is not None and local_devices is not None:
        raise click.UsageError("expected --ray or --local-devices, got both")
    place = ALONE if shared else rank_and_world(rank, world)
    with orderly_end():
        store = Store(output)
        if local_devices is not None:
            code = _in_processes(local_devices, place, store, by_rank=not leases)
            raise click.exceptions.Exit(code)
        directory = model.fetch()
        settings = job.resolve(directory, truncate_dim=truncate_dim, **options)
        load = functools.cache(lambda: job.load(directory, settings))
        manifest = job.plan(
            inputs,
            store,
            settings,
            directory,
            name=model.name or "tiny",
            revision=model.revision,
            shard_rows=shard_rows,
            shard_bytes=shard_mb << 20,
            wait=place.rank > 0,
            check=load if ray is None else lambda: None,  # Ray's machines may have other devices
        )
        if ray is not None:
            _on_ray(ray, manifest, store, directory)
        elif leases:
            _by_leases(manifest, store, load)
        else:
            _compute(manifest, store, load, job.own_shards(manifest, store, place))
        _end(job.summary(manifest, store), output, max_errors)


def _compute(
    manifest: Any,
    store: Any,
    load: Callable[[], Any],
    shards: Any,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Compute shards with the devices of this process."""
    from jina_jax.bulk import job
    from jina_jax.bulk.progress import Bar

    if isinstance(shards, list) and not shards:
        return
    model = load()
    bar = Bar(manifest, shards if isinstance(shards, list) else None)
    try:
        job.work(model, manifest, store, shards, bar, stop)
    finally:
        bar.close()


def _on_ray(address: str, manifest: Any, store: Any, directory: Path) -> None:
    """Compute what is left on a Ray cluster."""
    from jina_jax.bulk import job
    from jina_jax.bulk.progress import Bar

    with needs("ray"):
        from jina_jax.bulk import on_ray
    bar = Bar(manifest, job.own_shards(manifest, store))
    try:
        on_ray.run(address, manifest, store, directory, bar)
    finally:
        bar.close()


def _by_leases(manifest: Any, store: Any, load: Callable[[], Any]) -> None:
    from jina_jax.bulk import job
    from jina_jax.bulk.leases import Leases

    leases = Leases(store, f"{socket.gethostname()}:{os.getpid()}")
    with orderly_end(leases.stop), leases:  # else a thread may wait for other workers
        shards = job.leased_shards(manifest, leases)
        _compute(manifest, store, load, shards, leases.stop)


def _in_processes(each: int, place: Any, store: Any, *, by_rank: bool) -> int:
    """Run the same command in several processes; return the highest exit status."""
    from jina_jax.bulk.local import end_of_options, run_processes

    arguments = sys.argv[1:]
    behind = end_of_options(arguments)
    kept, skip = [], False
    for own in arguments[:behind]:
        name = own.partition("=")[0]
        if not skip and name not in _PLACE:
            kept.append(own)
        skip = not skip and name in _PLACE and "=" not in own
    return run_processes([*kept, *arguments[behind:]], each, place, store, by_rank=by_rank)


def _end(summary: Any, output: str, max_errors: int) -> None:
    """Print the sum of all workers, and exit with 1 for too many bad rows."""
    click.echo(f"{output}: {summary.done} of {summary.shards} shards, {summary.bad} bad rows")
    if summary.bad > max_errors:
        message = (
            f"{output}: expected at most {max_errors} bad rows, got {summary.bad}: see _errors"
        )
        click.echo(f"jina-jax: error: {message}", err=True)
        raise click.exceptions.Exit(1)


@bulk.command("status")
@click.argument("output")
@json_option
def show_status(output: str, as_json: bool) -> None:
    """Show how far a job is."""
    with needs("bulk"):
        from jina_jax.bulk.status import status
        from jina_jax.bulk.stores import Store
    found = status(Store(output))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), default=str))
        return
    rows = f"{found.rows:,}" + (f" of {found.all_rows:,}" if found.all_rows is not None else "")
    click.echo(f"{found.done} of {found.shards} shards, {rows} rows, {found.bad:,} bad")
    if found.seconds_left:
        left = datetime.timedelta(seconds=round(found.seconds_left))
        click.echo(f"{found.tokens_per_second:,.0f} tokens/s, {left} left")
    for worker in found.workers:
        rate = f"{worker.tokens_per_second:,.0f} tokens/s"
        last = f"last shard {worker.finished:%Y-%m-%d %H:%M:%S}"
        click.echo(f"{worker.name}: {worker.shards} shards, {rate}, {last}")
    for shard, name in found.leases.items():
        click.echo(f"shard {shard}: leased by {name}")


@bulk.command("verify")
@click.argument("output")
@planned_model_options
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Texts to encode again.",
)
def check(output: str, model: Model, sample: int) -> None:
    """Check a job's output against its plan and its inputs; exit with 1 for any problem.

    Every shard is there and has the rows of its inputs in their order, once; vectors are finite and
    of unit length; those of a sample of texts are as the model encodes them again.
    """
    with needs("bulk"):
        from jina_jax.bulk import job
        from jina_jax.bulk.status import read_plan
        from jina_jax.bulk.stores import Store
        from jina_jax.bulk.verify import verify
    store = Store(output)
    plan = read_plan(store)
    own = None
    if sample:
        if model.name is None:
            revision = model.revision or plan.model.revision
            model = model._replace(name=plan.model.name, revision=revision)
        directory = model.fetch()
        job.check_model(plan, directory)
        own = job.load(directory, plan.settings)
    problems = verify(store, own, sample)
    for problem in problems:
        click.echo(problem)
    click.echo(f"{output}: {len(problems)} problems in {len(plan.shards)} shards")
    if problems:
        raise click.exceptions.Exit(1)


@bulk.command("openai-batch")
@click.argument("source", type=PATH, metavar="REQUESTS")
@click.argument("output", type=PATH, metavar="ANSWERS")
@model_options
@click.option(
    "--errors", type=PATH, help="File for wrong requests.  [default: ANSWERS.errors.jsonl]"
)
@click.option("--task", callback=absent, help="Adapter of requests that name none.")
@click.option("--truncate-dim", type=click.IntRange(min=0), help="Keep this many dimensions.")
@click.option(
    "--long-text",
    type=click.Choice(LONG_TEXT),
    default="error",
    show_default=True,
    help="Texts above the model's length: refuse, cut, or average over windows.",
)
@dtype_option
@force_option
def openai_batch(
    source: Path,
    output: Path,
    model: Model,
    errors: Path | None,
    task: str | None,
    truncate_dim: int | None,
    long_text: str,
    dtype: str | None,
    force: bool,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    \b
    {"custom_id": "a", "method": "POST", "url": "/v1/embeddings",
     "body": {"model": "m", "input": "a text", "task": "retrieval.passage"}}
    """
    with needs("bulk"):
        from jina_jax.bulk.openai_batch import Rules
        from jina_jax.bulk.openai_file import answer_file
        from jina_jax.files import check_not_input
    errors = errors or output.with_name(f"{output.stem}.errors.jsonl")
    check_not_input(output, source)
    check_not_input(errors, source)
    with source.open("rb") as file:
        own = model.load(dtype=dtype)
        config = own.config
        config.task_id(task)
        rules = Rules(config.embedding_dim(truncate_dim), tuple(config.lora_adaptations), task)
        found = answer_file(own, file, output, errors, rules, long_text=long_text, force=force)
    click.echo(f"{output}: {found.good} answers; {found.bad} errors")
    if found.bad:
        click.echo(f"jina-jax: error: {errors}: {found.bad} requests are wrong", err=True)
        raise click.exceptions.Exit(1)
