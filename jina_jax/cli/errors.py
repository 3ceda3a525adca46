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
from collections.abc import Callable, Iterator, Sequence
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
_INTERRUPTED, _TERMINATED = 128 + 2, 128 + 15
# Arguments in Python → of commands, where these are called otherwise.
_RENAMED = {
    "name_or_path": ("model",),
    "truncate_dim": ("dims",),
    "dim": ("truncate_dim", "dims"),
    "task": ("tasks",),
}


class Terminated(KeyboardInterrupt):
    """The end by SIGTERM, in order as by Ctrl-C."""


class ErrorGroup(click.Group):
    """A group of commands with one-line errors for mistakes of users, and tracebacks for bugs."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit: 0, 1 for a failed ``verify``, 2 for an error, 130 for Ctrl-C,
        141 for a closed pipe, 143 for SIGTERM.

        A process of its own (``args`` is None) ends at once on Ctrl-C: with work still on the
        device, the orderly end of the interpreter crashes in jaxlib (0.10.1 on CPU).
        """
        extra["standalone_mode"] = False
        if args is None:
            streams.fill_in()
        with _plain_warnings(), _no_lost_interrupt():
            try:
                code = super().main(args, *rest, **extra)
            except click.Abort as abort:
                is_terminated = isinstance(abort.__cause__, Terminated)
                code = _TERMINATED if is_terminated else _INTERRUPTED
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
        """Return the command that arguments name, a command of a group as well."""
        command: click.Command | None = self
        for word in sys.argv[1:] if args is None else args:
            if not isinstance(command, click.Group):
                break
            unnamed = command.commands.get(getattr(command, "default_command", ""))
            command = command.commands.get(word, unnamed)
        return command


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
    """Name arguments as the command line does: "top_k=0: …" is "--top-k 0: …".

    Arguments are named at the begin, with or without a value, and by differences of two plans.
    """
    shown = {own.name or "": _shown(own) for own in (command.params if command else ())}

    def rename(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        option = next((shown[own] for own in (name, *_RENAMED.get(name, ())) if own in shown), None)
        if option is None:
            return match[0]
        return f"{start}{option}{' ' if end == '=' else end}"

    found = re.sub(r"(^(?!\w+=True)|plan: |; )(\w+)(=|(?=: expected ))", rename, text)
    if found != text:
        found = re.sub(r"\b(expected|or) None\b", r"\1 none", found)
    for name, option in shown.items():
        found = found.replace(f"{name}=True", option)
    return found


def _shown(parameter: click.Parameter) -> str:
    is_option = isinstance(parameter, click.Option)
    return parameter.opts[0] if is_option else parameter.human_readable_name


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
def orderly_end(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End by SIGTERM in order: what is half done is removed, as by Ctrl-C.

    Later ones change nothing: a launcher may send one to each process of a group, whose parent
    sends one as well. A second Ctrl-C ends at once.

    Args:
      before: called first, in the handler of either signal, so that no thread is waited for.
    """
    if threading.current_thread() is not threading.main_thread():  # of a program around this one
        yield
        return

    seen: set[int] = set()

    def end(number: int, _frame: object) -> None:
        seen.add(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        before()
        raise Terminated if signal.SIGTERM in seen else KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


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
