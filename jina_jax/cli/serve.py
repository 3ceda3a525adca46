"""The command ``jina-jax serve``."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from jina_jax.cli.errors import needs
from jina_jax.cli.options import (
    PATH,
    Model,
    absent,
    dtype_option,
    model_options,
    quantization_option,
)

_KEYS = "JINA_JAX_API_KEYS"
# The event loop waits for Python's lock at most so long while another thread tokenises.
_SWITCH_SECONDS = 0.0005


def _in_bytes(context: click.Context, option: click.Parameter, value: int | None) -> int | None:
    return None if value is None else value << 20


def _in_seconds(
    context: click.Context, option: click.Parameter, value: float | None
) -> float | None:
    return None if value is None else value / 1000


def _mb_option(name: str, words: str) -> Any:
    """Return an option in MiB, for a setting in bytes."""
    flag = f"--{name.replace('_', '-')}-mb"
    return click.option(flag, name, type=click.IntRange(1), callback=_in_bytes, help=words)


@click.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free."
)
@click.option(
    "--served-model-name",
    "served_names",
    multiple=True,
    help="What requests call the model; repeatable.  [default: the last part of --model]",
)
@click.option(
    "--default-task",
    callback=absent,
    help="Adapter of requests that name none.  [default: none, the base model, as Jina's API]",
)
@click.option(
    "--api-key-file",
    type=PATH,
    help=f"File with a key per line, of which requests must bring one (also ${_KEYS}, by commas).",
)
@click.option("--max-inputs", type=click.IntRange(1), help="Texts per request.  [default: 2048]")
@_mb_option("max_body", "MiB per request.  [default: 32]")
@_mb_option("max_reading", "MiB of all bodies that are being sent.  [default: 256]")
@_mb_option("max_reply", "MiB of a reply with values of each token.  [default: 256]")
@click.option("--max-request-tokens", type=click.IntRange(1), help="[default: 4194304]")
@click.option(
    "--max-queue-tokens", type=click.IntRange(1), help="Beyond them: 429.  [default: 8388608]"
)
@click.option("--timeout", type=click.FloatRange(0.1), help="Seconds per request.  [default: 600]")
@click.option(
    "--read-timeout",
    type=click.FloatRange(0.1),
    help="Seconds for a body to arrive, or for a client to read.  [default: 30]",
)
@click.option(
    "--drain", type=click.FloatRange(0), help="Seconds for requests after SIGTERM.  [default: 30]"
)
@click.option(
    "--max-wait-ms",
    "max_wait",
    type=click.FloatRange(0),
    callback=_in_seconds,
    help="Wait for more texts.  [default: 0]",
)
@click.option(
    "--warmup-length",
    type=click.IntRange(2),
    help="Tokens of texts whose programs are compiled before it is ready.  [default: 512]",
)
@click.option(
    "--stall",
    type=click.FloatRange(0.1),
    help="Seconds without a result of the device until it is not ready.  [default: 300]",
)
@click.option("--lazy", is_flag=True, help="Be ready first, and compile beside requests.")
@click.option("--strict", is_flag=True, help="Refuse unknown fields (422).")
@click.option("--log-requests", is_flag=True, help="Log a line of JSON per request, to stderr.")
@dtype_option
@quantization_option
def serve(
    model: Model,
    host: str,
    port: int,
    served_names: tuple[str, ...],
    api_key_file: Path | None,
    log_requests: bool,
    dtype: str | None,
    quantization: str | None,
    **settings: Any,
) -> None:
    """Serve the Embedding API: Jina's, OpenAI's and text-embeddings-inference's.

    \b
    jina-jax serve --model jinaai/jina-embeddings-v3
    curl localhost:8080/v1/embeddings -H 'content-type: application/json' \\
      -d '{"input": "How do I renew my passport?", "task": "retrieval.query"}'

    There is a page to try it at / and a description of all routes at /docs. SIGTERM lets requests
    that are under way finish; a second one ends at once.
    """
    with needs("serve"):
        from jina_jax.serving.server import Server
        from jina_jax.serving.settings import Settings
    keys = _keys(api_key_file)
    names = served_names or (Path(model.name or "tiny").name,)
    given = {name: value for name, value in settings.items() if value is not None}
    own = Settings(served_names=names, api_keys=keys, **given)
    _log_to_stderr()
    load = functools.partial(model.load, dtype=dtype, quantization=quantization)
    server = Server(load, own, host, port, log_requests=log_requests, on_loaded=_freeze)
    sys.setswitchinterval(_SWITCH_SECONDS)
    click.echo(f"jina-jax: {', '.join(names)} at {server.url}", err=True)
    status = server.run()
    # The orderly end of the interpreter would wait for the device's threads.
    sys.stderr.flush()
    os._exit(status)


def _keys(path: Path | None) -> tuple[str, ...]:
    """Return the keys of a file and of the environment."""
    found = os.environ.get(_KEYS, "").split(",")
    if path is not None:
        found += path.read_text(encoding="utf-8").splitlines()
    keys = tuple(own.strip() for own in found if own.strip())
    if not keys and (path is not None or _KEYS in os.environ):
        raise ValueError(f"{path or '$' + _KEYS}: expected at least one key, got none")
    return keys


def _freeze() -> None:
    """Let the garbage collector pass over what there is: it takes 50 ms for the model alone."""
    gc.collect()
    gc.freeze()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jina_jax.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
