"""Curves of a run as a picture."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jina_jax.training.metrics import read_metrics
from jina_jax.training.run import METRICS

CURVES = "curves.png"


def plot_run(directory: str | Path) -> Path | None:
    """Draw loss, learning rate and evaluations of a run over its steps.

    Args:
      directory: of the run.

    Returns:
      The picture's path, ``curves.png`` in the directory; None without matplotlib (extra plot) or
      anything to draw.
    """
    lines = read_metrics(Path(directory) / METRICS)
    if find_spec("matplotlib") is None or not any("loss" in line for line in lines):
        return None
    # Neither pyplot nor a display: the caller's own figures are not touched.
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "evaluation" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2) if evaluations else (figure.subplots(), None)
    _draw_loss(left, steps)
    if right is not None:
        _draw_evaluations(right, evaluations)
    path = Path(directory) / CURVES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of files named in other scripts
        figure.savefig(path, dpi=120)
    return path


def _draw_loss(axes: Any, lines: list[dict[str, Any]]) -> None:
    for name in sorted({name for line in lines for name in line["losses"]}):
        own = [line for line in lines if name in line["losses"]]
        axes.plot(
            [x["step"] for x in own], [x["losses"][name] for x in own], lw=1, label=_label(name)
        )
    axes.set(xlabel="step", ylabel="loss", title="loss")
    axes.legend(fontsize="small")
    rate = axes.twinx()
    rate.plot([x["step"] for x in lines], [x["learning_rate"] for x in lines], "--", c="0.7", lw=1)
    rate.set_ylabel("learning rate (dashed)")


def _draw_evaluations(axes: Any, lines: list[dict[str, Any]]) -> None:
    names = [name for name in lines[0]["evaluation"] if "@" not in name.rpartition("/")[2]]
    for name in names or lines[0]["evaluation"]:
        axes.plot(
            [x["step"] for x in lines],
            [x["evaluation"][name] for x in lines],
            lw=1,
            marker=".",
            label=_label(name),
        )
    axes.plot([x["step"] for x in lines], [x["score"] for x in lines], "k", lw=2, label="score")
    axes.set(xlabel="step", title="evaluation")
    axes.legend(fontsize="x-small", ncols=2)


def _label(name: str) -> str:
    """Keep dollars from being read as formulas."""
    return name.replace("$", r"\$")
