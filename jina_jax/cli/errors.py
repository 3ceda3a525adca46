"""Exit statuses, error messages and warnings of ``jina-jax``.

The one place where exceptions become messages; commands do not catch them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click

from jina_jax.cli import streams

# huggingface_hub and its network libraries: some of their errors are no OSError.
_NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "requests")
# Extra → what its commands import.
_EXTRAS = {
    "bulk": ("fsspec", "pyarrow"),
    "ray": ("ray",),
    "serve": ("httptools", "msgspec", "orjson", "prometheus_client", "starlette", "uvicorn"),
    "train": ("orbax", "pydantic"),
}
# Errors of writing: those that name no file are of stdout (``jina_jax.files`` names the others).
_OF_STDOUT = (errno.ENOSPC, errno.EBADF, errno.EFBIG, errno.EIO, errno.EDQUOT)
_CLOSED_PIPE = 128 + 13  # as a shell reports the end by SIGPIPE
# Arguments in Python → of commands, where these are called otherwise.
_RENAMED = {"name_or_path": "model", "truncate_dim": "dims"}


class ErrorGroup(click.Group):
    """A group of commands with one-line errors for mistakes of users, and tracebacks for bugs."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit: 0, 1 for a failed ``verify``, 2 for an error, 130 for Ctrl-C,
        141 for a closed pipe.

        A process of its own (``args`` is None) ends at once on Ctrl-C: with work still on the
        device, the orderly end of the interpreter crashes in jaxlib (0.10.1 on CPU).
        """
        extra["standalone_mode"] = False
        if args is None:
            streams.fill_in()
        with _plain_warnings(), _no_lost_interrupt():
            try:
                code = super().main(args, *rest, **extra)
            except click.Abort:
                code = 130
                if args is None:
                    os._exit(code)
            except Exception as exception:
                error = exception if _is_expected(exception) else _no_platform()
                if error is None:
                    raise
                _print_line("error", _message(error, self._command(args)))
                code = 2
                if _is_of_stdout(error):
                    streams.discard_stdout()
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; end as other tools do, with 141, if nobody reads its output any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            streams.discard_stdout()
            raise click.exceptions.Exit(_CLOSED_PIPE) from None

    def _command(self, args: Sequence[str] | None) -> click.Command | None:
        return self.commands.get(next(iter(sys.argv[1:] if args is None else args), ""))


def _is_expected(error: Exception) -> bool:
    library = type(error).__module__.partition(".")[0]
    users = isinstance(error, (click.ClickException, OSError, ValueError))
    return users or library in ("jina_jax", *_NETWORK_LIBRARIES)


def _no_platform() -> Exception | None:
    """Return an error if JAX was imported and cannot use its platform, else None.

    JAX reports it in several ways, one of them a bare ``AssertionError``.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        jax.devices()
    except Exception as error:
        chosen = jax.config.jax_platforms
        named = f"platform {chosen!r} (JAX_PLATFORMS)" if chosen else "devices of this machine"
        reason = f": {error}" if str(error) else ""  # of which JAX's advice is a part
        if chosen and not reason:
            reason = '; unset it, or add ",cpu"'
        return click.ClickException(f"JAX cannot use the {named}{reason}")
    return None


def _is_of_stdout(error: Exception) -> bool:
    is_unnamed = isinstance(error, OSError) and error.filename is None
    return is_unnamed and getattr(error, "errno", None) in _OF_STDOUT


def _message(error: Exception, command: click.Command | None) -> str:
    """Format an error as one line; our own errors may list several problems, one per line."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{error.format_message()} (see '{error.ctx.command_path} --help')"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    elif _is_of_stdout(error) and isinstance(error, OSError):
        text = f"stdout: {error.strerror}"
    else:
        text = _with_options(str(error) or type(error).__name__, command)
    is_ours = type(error).__module__.startswith("jina_jax.")
    return text if is_ours else " ".join(text.split())


def _with_options(text: str, command: click.Command | None) -> str:
    """Name arguments as the command line does: "top_k=0: …" is "--top-k 0: …"."""
    parameters = command.params if command else ()
    for parameter in parameters:
        text = text.replace(f"{parameter.name}=True", parameter.opts[0])
    name, equals, rest = text.partition("=")
    for parameter in parameters if equals else ():
        if parameter.name in (name, _RENAMED.get(name)):
            is_option = isinstance(parameter, click.Option)
            shown = parameter.opts[0] if is_option else parameter.human_readable_name
            return f"{shown} " + re.sub(r"\b(expected|or) None\b", r"\1 none", rest)
    return text


def _print_line(kind: str, text: str) -> None:
    # Characters that the terminal or log cannot show are escaped.
    click.echo(f"jina-jax: {kind}: {text}".encode(errors="backslashreplace"), err=True)


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing library of an extra into an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in _EXTRAS[extra]:
            raise
        message = f'this command needs {library}: pip install "jina-jax[{extra}]"'
        raise click.ClickException(message) from None
    except ImportError as error:  # of an evaluation, whose message names its own extra
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings without the line of code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _print_line("warning", str(message))

    with warnings.catch_warnings():
        # About programs other than ours, which this process does not have.
        warnings.filterwarnings("ignore", "jaxlib .* returns wrong sums", UserWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C that was raised in a callback, where Python drops exceptions.

    JAX has such callbacks: without this, its garbage collection swallowed one Ctrl-C in five.
    """

    def repeat(event: Any) -> None:
        if issubclass(event.exc_type, KeyboardInterrupt):
            # Later, or it would be raised in this function and dropped as well.
            # A true signal, since a simulated one does not end a wait.
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(event)

    previous, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        yield
    finally:
        sys.unraisablehook = previous
