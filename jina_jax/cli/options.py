"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jina_jax.checkpoints.names import DTYPES
from jina_jax.nn.names import QUANTIZATIONS
from jina_jax.tasks import AUTO, from_word

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

PATH = click.Path(path_type=Path)
TOO_MANY_TASKS = "expected --task once, or for retrieval twice"

dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), help="Dtype of the weights.  [default: as in the file]"
)
quantization_option = click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="Multiply in 8 bits; fp8 needs an NVIDIA GPU with float8 units.  [default: none]",
)
force_option = click.option("--force", is_flag=True, help="Overwrite an existing output file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Model(NamedTuple):
    """A model as the command line names it.

    Attributes:
      name: directory or Hub id; None for the model in the package.
      revision: branch, tag or commit on the Hub.
      local_files_only: never use the network.
    """

    name: str | None
    revision: str | None
    local_files_only: bool

    def fetch(self) -> Path:
        """Return its directory, see ``jina_jax.checkpoints.hub.fetch``."""
        from jina_jax.checkpoints.hub import PACKAGED, fetch

        name = PACKAGED if self.name is None else self.name
        directory = fetch(name, revision=self.revision, local_files_only=self.local_files_only)
        if self.name is None:
            warnings.warn(
                "no model named: using tiny, the small one in the package (below "
                "jina-embeddings-v3 in quality; name jinaai/jina-embeddings-v3 for the published "
                "one)",
                stacklevel=1,
            )
        return directory

    def load(self, **options: Any) -> JinaEmbeddings:
        """Load it, see ``JinaEmbeddings.from_pretrained``.

        It takes seconds: call this after everything that can be refused at once.
        """
        from jina_jax.embedder import JinaEmbeddings

        return JinaEmbeddings.from_pretrained(self.fetch(), **options)


def model_options(command: Callable) -> Callable:
    """Add --model and the options of the Hub; the command gets a ``Model`` as ``model``."""
    named = click.option("--model", help="Directory or Hub id.  [default: tiny, in the package]")
    return _with_model(command, named)


def planned_model_options(command: Callable) -> Callable:
    """Add --model, whose default the command takes from a plan, and the options of the Hub."""
    named = click.option("--model", help="Directory or Hub id.  [default: that of the job's plan]")
    return _with_model(command, named)


def source_argument(command: Callable) -> Callable:
    """Add the argument SOURCE and the options of the Hub; the command gets a ``Model``."""
    return _with_model(command, click.argument("model", metavar="SOURCE"))


def _with_model(command: Callable, named: Callable) -> Callable:
    @functools.wraps(command)
    def with_model(
        *args: Any, model: str | None, revision: str | None, local_files_only: bool, **options: Any
    ) -> Any:
        return command(*args, model=Model(model, revision, local_files_only), **options)

    offline = click.option(
        "--offline",
        "local_files_only",
        is_flag=True,
        help="Never use the network; read the Hub's cache only.",
    )
    revision = click.option("--revision", help="Branch, tag or commit on the Hugging Face Hub.")
    return named(revision(offline(with_model)))


def absent(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Return None for "none": the callback of every option that takes a task or a prompt."""
    return from_word(value)


prompt_option = click.option(
    "--prompt",
    default=AUTO,
    show_default=True,
    callback=absent,
    help="auto for the task's own prompt, none for no prompt, or a string to prepend.",
)


def task_option(command: Callable) -> Callable:
    """Add --task for a job; the command gets ``task``: "auto", a name, None, or a pair of these."""

    def join(context: click.Context, parameter: click.Parameter, tasks: tuple[str, ...]) -> Any:
        if len(tasks) > 2:
            raise click.UsageError(TOO_MANY_TASKS, context)
        return absent(context, parameter, tasks if len(tasks) > 1 else (*tasks, AUTO)[0])

    return click.option(
        "--task",
        multiple=True,
        callback=join,
        help="Adapter, or none for the base model; for retrieval also twice: of queries, then of "
        "documents.  [default: auto, the adapter for this job if the model has it]",
    )(command)
