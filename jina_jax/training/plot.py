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
    figure = Figure(figsize=(10, 5), layout="constrained")
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
    names = sorted({name for line in lines for name in line["losses"]})
    for name, colour in zip(names, _colours(len(names)), strict=True):
        own = [line for line in lines if name in line["losses"]]
        values = [line["losses"][name] for line in own]
        axes.plot([line["step"] for line in own], values, lw=1, c=colour, label=_label(name))
    rate = axes.twinx()
    rates = [line["learning_rate"] for line in lines]
    rate.plot([line["step"] for line in lines], rates, "--", c="0.7", lw=1)
    rate.set_ylabel("learning rate (dashed)")
    axes.set(xlabel="step", ylabel="loss", title="loss")
    _legend(axes)


def _draw_evaluations(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Draw the main metric of each evaluation, and their mean, the score of checkpoints."""
    steps, names = [line["step"] for line in lines], lines[-1]["primary"]
    for name, colour in zip(names, _colours(len(names)), strict=True):
        values = [line["evaluation"][name] for line in lines]
        axes.plot(steps, values, marker=".", lw=1, c=colour, label=_label(name))
    if len(names) > 1:
        axes.plot(steps, [line["score"] for line in lines], "k", lw=2, label="mean")
    axes.set(xlabel="step", title="evaluation")
    _legend(axes)


def _label(name: str) -> str:
    """Keep dollars from being read as formulas."""
    return name.replace("$", r"\$")


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["turbo"].resampled(count + 2)(range(1, count + 1))


def _legend(axes: Any) -> None:
    """Put the legend below, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="x-small")
