"""How ``jina-jax`` ends: exit statuses, and errors and warnings as plain lines on stderr.

The one place where exceptions become messages; the commands let them pass.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click

# huggingface_hub and what it talks to the network with: some of their errors are no OSError.
_NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "requests")


class Program(click.Group):
    """A group of commands that tells a user's mistake in one line and keeps tracebacks for bugs."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit: 0, 1 for a failed ``verify``, 2 for an error, 130 for Ctrl-C.

        A process of its own (``args`` is None) ends at once on Ctrl-C: with work still on the
        device, the orderly end of the interpreter crashes in jaxlib (0.10.1 on CPU).
        """
        extra["standalone_mode"] = False
        with _plain_warnings(), _no_lost_interrupt():
            try:
                code = super().main(args, *rest, **extra)
            except click.Abort:
                code = 130
                if args is None:
                    os._exit(code)
            except Exception as error:
                if not _is_expected(error):
                    raise
                _print_line("error", _message(error))
                code = 2
        sys.exit(code or 0)


def _is_expected(error: Exception) -> bool:
    library = type(error).__module__.partition(".")[0]
    users = isinstance(error, (click.ClickException, OSError, ValueError))
    return users or library in ("jina_jax", *_NETWORK_LIBRARIES)


def _message(error: Exception) -> str:
    """Put an error in one line; our own errors may list several problems, one a line."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{error.format_message()} (see '{error.ctx.command_path} --help')"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    is_ours = type(error).__module__.startswith("jina_jax.")
    return text if is_ours else " ".join(text.split())


def _print_line(kind: str, text: str) -> None:
    # A terminal or log that cannot show a character gets it escaped.
    click.echo(f"jina-jax: {kind}: {text}".encode(errors="backslashreplace"), err=True)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings without the line of code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _print_line("warning", str(message))

    with warnings.catch_warnings():
        # Of a jaxlib that sums wrongly in programs that are not ours: there are none here.
        warnings.filterwarnings("ignore", "jaxlib .* returns wrong sums", UserWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C that fell into a callback: Python drops exceptions there, and JAX has some.

    One in five got lost in JAX's garbage collection callback without this.
    """

    def repeat(event: Any) -> None:
        if issubclass(event.exc_type, KeyboardInterrupt):
            # Later, or it would fall into this function and get lost as well.
            # A true signal, since a simulated one does not end a wait.
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(event)

    previous, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        yield
    finally:
        sys.unraisablehook = previous
