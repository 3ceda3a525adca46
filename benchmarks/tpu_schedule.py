"""Static cycles of Pallas kernels, from the schedules that libtpu writes while it compiles.

A schedule is a list of bundles: what a core issues per cycle. Cycles are bundles times the rounds
of the loops around them, as if nothing ever waited for memory or for the matrix units. Both sides
of a branch count. A loop whose number of rounds is known only at run time counts as ``rounds``. The
loop over a kernel's grid has further rounds that only wait for copies; these do not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Only the final schedules: all passes of a program are gigabytes.
_OPTIONS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"
_OPTIONS += " --xla_jf_dump_llo_pass_label_regex=final_.*"
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +([A-Z]{2})? *: *(>*) *\{(.*)", re.MULTILINE)
_REGION = re.compile(r"Start region (\d+)")
_BRANCH = re.compile(r"sbr\.rel \(!?%(p\d+)_p\d+\) target = \$region(\d+)")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_EXIT = re.compile(r"%(p\d+)_p\d+ = scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/")


class Schedule(NamedTuple):
    """The schedule of one kernel.

    Attributes:
      cycles: bundles times rounds.
      open_loops: loops whose number of rounds is known only at run time.
    """

    cycles: int
    open_loops: int


class Loop:
    """A loop while its bundles are counted, or the kernel around all loops."""

    def __init__(self, first: str = "") -> None:
        self.regions = frozenset(_REGION.findall(first))
        self.is_grid = bool(_STAGE.search(first))
        self.cycles = 0  # of one round
        self.exit: str | None = None  # predicate of its backward branch


def dump_to(directory: Path) -> None:
    """Have libtpu write schedules to a directory; to be called before libtpu is loaded."""
    options = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{options} {_OPTIONS.format(directory)}".strip()


def read_schedules(directory: Path, names: Iterable[str], rounds: int = 1) -> dict[str, Schedule]:
    """Return the schedules of the kernels of these instructions; delete all files there."""
    wanted = set(names)
    found = {}
    for file in sorted(directory.iterdir()):
        match = _FILE.fullmatch(file.name)
        if match and match[1] in wanted:
            found[match[1]] = schedule(file.read_text(encoding="utf-8"), rounds)
        file.unlink()
    return found


def schedule(text: str, rounds: int = 1) -> Schedule:
    """Read the cycles of a kernel off its final bundles.

    Args:
      text: a file "…-final_bundles.txt" of libtpu.
      rounds: assumed for loops whose number of rounds is known only at run time.
    """
    limits = {name: int(limit) for name, limit in _EXIT.findall(text)}
    waits = max(map(int, _STAGE.findall(text)), default=0)  # rounds of the grid without work
    stack, open_loops = [Loop()], 0

    def leave() -> None:
        nonlocal open_loops
        loop = stack.pop()
        known = limits.get(loop.exit or "")
        open_loops += known is None
        own = rounds if known is None else known - waits * loop.is_grid
        stack[-1].cycles += loop.cycles * own

    for label, depth, body in _bundles(text):
        # Some bundles within a loop lack its mark: only after its backward branch may it end.
        while len(stack) > 1 + depth - (label == "LB") and stack[-1].exit:
            leave()
        if label == "LB":
            stack.append(Loop(body))
        stack[-1].cycles += 1
        for predicate, region in _BRANCH.findall(body):
            if region in stack[-1].regions:
                stack[-1].exit = predicate
    while len(stack) > 1:
        leave()
    return Schedule(stack[0].cycles, open_loops)


def _bundles(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield the label of each bundle, the number of loops around it, and its instructions."""
    for label, marks, body in _BUNDLE.findall(text):
        yield label, len(marks), body
