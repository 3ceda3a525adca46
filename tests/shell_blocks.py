"""Shell blocks of the pages: Bash, with a ``jina-jax`` that runs in the tests' own process.

A process of its own would import JAX, load the model and read its programs for every command.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from pathlib import Path

import click
from click.testing import CliRunner

from jina_jax.cli import main as cli

ROOT = Path(__file__).parents[1]
_SECONDS = 300.0  # of a block, on a busy machine
_CLIENT = """#!{python} -SE
import pickle, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    link.sendall(pickle.dumps((sys.argv[1:], sys.stdin.buffer.read())))
    link.shutdown(socket.SHUT_WR)
    status, out, err = pickle.load(link.makefile("rb"))
sys.stdout.buffer.write(out)
sys.stderr.buffer.write(err)
sys.exit(status)
"""
_NOTHING = "#!/bin/sh\n"
# Of blocks for a checkout or another machine, which are checked, not run.
_OTHERS = ("curl", "mkdocs", "pip", "podman", "pytest", "python", "python3", "uv")


class Shell:
    """A directory in which blocks are run, one after another.

    Args:
      directory: where blocks run; the caller makes it the working directory of this process.
      tools: an empty directory for the programs that blocks find first.
    """

    def __init__(self, directory: Path, tools: Path):
        self.directory = directory
        self.output = ""
        self._address = tools / "socket"
        client = _CLIENT.format(python=sys.executable, address=str(self._address))
        for name, content in (("jina-jax", client), ("pip", _NOTHING)):
            (tools / name).write_text(content)
            (tools / name).chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def run(self, source: str) -> None:
        """Run a block; its output is in ``output``. Raises AssertionError if a command fails."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self._address))
            server.listen()
            server.settimeout(0.01)
            status, self.output, errors = self._bash(source, server)
        self._address.unlink()
        assert status == 0, f"status {status}\n{source}\n{self.output}{errors}"

    def _bash(self, source: str, server: socket.socket) -> tuple[int, str, str]:
        """Run Bash, and meanwhile its ``jina-jax``; files take its output, as pipes may fill up."""
        deadline = time.monotonic() + _SECONDS
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            with subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", source],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            ) as bash:
                try:
                    while bash.poll() is None:
                        assert time.monotonic() < deadline, f"over {_SECONDS:.0f} s:\n{source}"
                        with contextlib.suppress(TimeoutError):
                            self._serve(server.accept()[0])
                finally:
                    bash.kill()
            for file in (out, err):
                file.seek(0)
            return bash.returncode, out.read(), err.read()

    def _serve(self, link: socket.socket) -> None:
        with link:
            link.settimeout(_SECONDS)
            arguments, given = pickle.load(link.makefile("rb"))
            with warnings.catch_warnings():
                warnings.filterwarnings("default", "no model named")
                result = CliRunner().invoke(cli.main, arguments, input=given)
            if result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception
            link.sendall(pickle.dumps((result.exit_code, result.stdout_bytes, result.stderr_bytes)))


def check_commands(source: str) -> None:
    """Check that what a block names exists: commands, options and values, extras, files."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    known = set(extras["project"]["optional-dependencies"])
    for group in re.findall(r"\.\[([\w,-]+)\]", source):
        assert set(group.split(",")) <= known, f"[{group}]: expected extras of pyproject.toml"
    for words in commands(source):
        if "jina-jax" in words and words[0] not in _OTHERS:
            _check_ours(words[words.index("jina-jax") + 1 :])
        for path in words:
            if re.match(r"(tests|benchmarks|docs|recipes)/[\w/.-]+\w$", path):
                assert (ROOT / path).exists(), f"{path}: no such file"
        _check_script(words)


def is_for_here(source: str) -> bool:
    """Return whether a block runs in the tests: it has our command, or only those of the shell."""
    return any("jina-jax" in words for words in commands(source)) or not any(
        word.rpartition("/")[2] in _OTHERS for words in commands(source) for word in words
    )


def commands(source: str) -> list[list[str]]:
    """Split a block into commands, each a list of words."""
    found: list[list[str]] = []
    for line in source.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found.append([])
        for word in _whole_lines(lexer):
            if set(word) <= set("();<>|&"):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]


def _whole_lines(lexer: shlex.shlex) -> list[str]:
    try:
        return list(lexer)
    except ValueError:  # a quotation of several lines, as of curl's JSON
        return []


def _check_ours(arguments: list[str]) -> None:
    command: click.Command = cli.main
    parent = click.Context(cli.main, info_name="jina-jax")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(click.exceptions.Exit):
        while isinstance(command, click.Group):
            if not arguments or arguments[0] in ("--help", "--version"):
                return
            found = command.get_command(parent, arguments[0])
            if found is None and "run" in command.commands:  # bulk INPUT OUTPUT
                found, arguments = command.commands["run"], ["run", *arguments]
            assert found is not None, f"jina-jax {arguments[0]}: no such command"
            command, arguments = found, arguments[1:]
        try:
            command.make_context(command.name, list(arguments), parent)
        except click.UsageError as error:
            raise AssertionError(f"jina-jax … {command.name}: {error.format_message()}") from error


def _check_script(words: list[str]) -> None:
    """Check that a script of this repository has the options that a command gives it."""
    scripts = [word for word in words if word.startswith("benchmarks/") and word.endswith(".py")]
    for script in scripts:
        text = (ROOT / script).read_text("utf-8")
        for word in words[words.index(script) + 1 :]:
            if word.startswith("--"):
                assert f'"{word}"' in text, f"{script}: no option {word}"
