"""A job from its arguments to its end: the plan, this process's part of the work, and the sum."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jina_jax.bulk.inputs import list_inputs
from jina_jax.bulk.leases import Leases
from jina_jax.bulk.local_disk import absolute, local_path
from jina_jax.bulk.plan import ERRORS, MANIFEST, STATS, Manifest, ModelId, PlanError, agree
from jina_jax.bulk.ranks import ALONE, Position
from jina_jax.bulk.settings import KINDS, LONG_TEXT, SHARD_BYTES, SHARD_ROWS, Settings
from jina_jax.bulk.shards import Progress, Worker
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import vector_type
from jina_jax.checkpoints.hashing import hash_of
from jina_jax.checks import check_integer
from jina_jax.convert import open_checkpoint
from jina_jax.runtime.arguments import check_mean_pooler, make_requests

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_OLD = 24 * 3600.0  # seconds after which what a killed process left is removed
_POLL = 1.0


class Summary(NamedTuple):
    """The state of a job after this process's part.

    Attributes:
      shards, done: of the plan, and in the output.
      bad: rows of these that are in ``_errors``.
    """

    shards: int
    done: int
    bad: int


def resolve(directory: Path, *, truncate_dim: int | None = None, **options: Any) -> Settings:
    """Return the settings of a job, complete and checked; reads no weights.

    Args:
      directory: of the model.
      truncate_dim: Matryoshka dimension; None for the model's.
      options: attributes of ``Settings``; None or absent for the default.

    Raises:
      ValueError: for an option that this model cannot have; the message names it.
    """
    checkpoint = open_checkpoint(directory)
    config = checkpoint.config
    given = {name: value for name, value in options.items() if value is not None}
    # "none" means something here: no prompt.
    given |= {"prompt": options["prompt"]} if "prompt" in options else {}
    given.setdefault("dtype", checkpoint.tensors["word_embeddings.embedding"].dtype.name)
    given.setdefault("max_length", config.max_seq_length or config.max_length)
    check_integer("max_length", given["max_length"], 2, config.max_length)
    given["dim"] = config.embedding_dim(truncate_dim)
    text = tuple(given.pop("text"))
    tasks = tuple(given.pop("tasks", ())) or (None,)
    if not text or len(set(text)) != len(text):
        raise ValueError(f"text: expected names of columns, each once, got {', '.join(text)}")
    if len(tasks) not in (1, len(text)):
        raise ValueError(
            f"task: expected one, or one per column of texts ({len(text)}), got {len(tasks)}"
        )
    tasks = tasks * len(text) if len(tasks) == 1 else tasks
    if given.get("chunks") is not None:
        if len(text) > 1:
            raise ValueError(f"chunks: expected one column of texts, got {len(text)}")
        if given.get("long_text", LONG_TEXT[0]) == "error":
            raise ValueError("long_text='error': expected none with chunks, which cut nothing")
        given["long_text"] = "windows"
    for name, known in (("kind", KINDS), ("long_text", LONG_TEXT)):
        if given.get(name, known[0]) not in known:
            raise ValueError(f"{name}={given[name]!r}: expected one of {', '.join(known)}")
    settings = Settings(text=text, tasks=tasks, **given)
    if settings.long_text == "windows":  # of chunks, too
        check_mean_pooler(config, "chunks" if settings.chunks else "long_text='windows'")
    vector_type(settings.kind, settings.dim)
    make_requests(config, [""] * len(tasks), tasks, settings.prompt, settings.prompt_name)
    return settings


def load(directory: Path, settings: Settings, **options: Any) -> JinaEmbeddings:
    """Return the model as a job's settings want it; ``options`` are of ``from_pretrained``."""
    from jina_jax.embedder import JinaEmbeddings

    return JinaEmbeddings.from_pretrained(
        directory,
        dtype=settings.dtype,
        quantization=settings.quantization,
        split_special_tokens=settings.split_special_tokens,
        **options,
    )


def plan(
    inputs: Sequence[str],
    store: Store,
    settings: Settings,
    directory: Path,
    *,
    name: str,
    revision: str | None = None,
    shard_rows: int = SHARD_ROWS,
    shard_bytes: int = SHARD_BYTES,
    wait: bool = False,
    seconds: float = 600.0,
    check: Callable[[], object] = lambda: None,
) -> Manifest:
    """Return the plan in an output, or make it.

    Args:
      inputs: files, directories and patterns.
      store: the output.
      settings: of ``resolve``.
      directory: of the model.
      name: what the model is called: a directory, which becomes absolute, or a Hub id.
      revision: of the model on the Hub.
      shard_rows, shard_bytes: most rows, and about most bytes of text, of a shard.
      wait: for another process that makes the plan, at most ``seconds``.
      check: called before a new plan is put, to refuse by an exception what cannot be computed;
        a plan that is there needs another output once its settings or its model are mended.

    Raises:
      PlanError: if the output has another plan.
      TimeoutError: if nobody has made the plan.
      ValueError: for inputs that cannot be read, or lack a column.
    """
    until = time.monotonic() + seconds
    while wait and store.read(MANIFEST) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"{store.url}: expected {MANIFEST} of rank 0 in {seconds:g} seconds")
        time.sleep(_POLL)
    store.clean(_OLD)
    own_name = absolute(name) if Path(name).is_dir() else name
    model = ModelId(own_name, hash_of(directory), revision)
    files = list_inputs(inputs)
    for own in (*inputs, *(file.url for file in files)):
        if _is_below(store.url, own) or _is_below(own, store.url):
            raise ValueError(
                f"output={store.url!r}: expected a place outside of the inputs, got one with {own}"
            )
    return agree(
        store,
        files,
        settings,
        model,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
        check=check,
    )


def _is_below(inner: str, outer: str) -> bool:
    """Return whether a path or URL is another one, or in its directory."""
    own, other = local_path(inner), local_path(outer)
    if own is None or other is None:
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    return Path(own).resolve().is_relative_to(Path(other).resolve())


def own_shards(manifest: Manifest, store: Store, place: Position = ALONE) -> list[int]:
    """Return the shards of one of several processes that are not done."""
    done = manifest.done(store)
    return [k for k in range(place.rank, len(manifest.shards), place.world) if k not in done]


def leased_shards(manifest: Manifest, leases: Leases) -> Iterator[int]:
    """Yield the shards that this worker takes, until all are done."""
    numbers = {f"{manifest.name(k)}.parquet": k for k in range(len(manifest.shards))}
    return (numbers[name] for name in leases.take(list(numbers)))


def work(
    model: JinaEmbeddings,
    manifest: Manifest,
    store: Store,
    shards: Iterable[int],
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Compute shards; see ``Worker`` and its ``run``."""
    Worker(model, manifest, store, report, stop).run(shards)


def check_model(manifest: Manifest, directory: Path) -> None:
    """Refuse another model than a plan's.

    Raises:
      PlanError: if its files are others.
    """
    if hash_of(directory) != manifest.model.sha256:
        raise PlanError(f"model: expected the files of {manifest.model.name}, got others")


def summary(manifest: Manifest, store: Store) -> Summary:
    """Return the state of a job."""
    done = manifest.done(store)
    names = {manifest.name(k) for k in done}
    bad = 0
    for own in store.names(ERRORS):
        name = own.partition(".")[0]
        statistics = store.read(f"{STATS}/{name}.json") if name in names else None
        bad += json.loads(statistics)["bad"] if statistics else 0
    return Summary(len(manifest.shards), len(done), bad)
