"""Learning curves: errors by epoch, loss and learning rate by step, of one run or of several over one another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from fourstage.errors import FourstageError
from fourstage.figures import style
from fourstage.figures.runs import Run

_SMOOTHINGS = 40
"""The loss is averaged over a fortieth of the run: its batches scatter more than it falls."""
_MARKED = 30
"""Fewer epochs than this are marked by a point each."""
_DASHES = (0, (4, 2))


def draw(runs: Sequence[Run]) -> Figure:
    """Three panels of the runs that have a step with a loss. Raises FourstageError where none has."""
    steps = {run.name: lines for run in runs if (lines := run.steps())}
    runs = [run for run in runs if run.name in steps]
    if not runs:
        raise FourstageError(
            "no step with a loss is written", hint="the drain trains no network; a new run writes soon after it began"
        )
    figure = style.new_figure(9.0, 4.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1.0), height_ratios=(1.6, 1.0))
    errors, loss = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    rate = figure.add_subplot(grid[1, 1], sharex=loss)
    alone = len(runs) == 1
    smoothing = max(1, max(map(len, steps.values())) // _SMOOTHINGS)
    for run, colour in zip(runs, style.line_colours(len(runs)), strict=True):
        _draw_errors(errors, run, colour, alone=alone)
        _draw_steps(loss, rate, steps[run.name], colour, smoothing=smoothing, alone=alone)
    _finish_errors(errors)
    loss.set_title("Loss on the training batches")
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_ylim(bottom=0.0)
    loss.tick_params(labelbottom=False)
    rate.set_title("Learning rate")
    rate.set_xlabel("step")
    if all(line["learning_rate"] > 0.0 for lines in steps.values() for line in lines):
        rate.set_yscale("log")
    rate.margins(y=0.25)
    for axes in (errors, loss, rate):
        axes.grid(axis="y")
        axes.set_xlim(left=0)
    if not alone:
        _add_legends(figure, errors, runs)
    return figure


def _draw_errors(axes: Axes, run: Run, colour: str, *, alone: bool) -> None:
    ends = []
    for split, name, dashes in (("train", "training", "-"), ("val", "validation", _DASHES)):
        curve = run.errors(split)
        if not curve.epochs:
            continue
        marker = "o" if len(curve.epochs) < _MARKED else ""
        shown = style.LINES[1] if alone and split == "val" else colour
        percent = 100.0 * np.array(curve.errors)
        axes.plot(curve.epochs, percent, color=shown, linestyle=dashes, marker=marker, markersize=3.0)
        ends.append((percent[-1], curve.epochs[-1], f"{name} {percent[-1]:.1f} %", shown))
    if alone:
        # Each label on its own side of its line's end, or two that end together would hide each other.
        for side, (error, epoch, label, shown) in zip(("top", "bottom"), sorted(ends), strict=False):
            axes.annotate(
                label, (epoch, error), (7, 1 if side == "bottom" else -1), textcoords="offset points", color=shown,
                va=side, fontsize=8.0, annotation_clip=False,
            )  # fmt: skip


def _finish_errors(axes: Axes) -> None:
    axes.set_title("Top-1 error")
    axes.set_xlabel("epochs trained")
    axes.set_ylabel("share of images")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0.0)
    if not axes.lines:
        axes.text(
            0.5, 0.5, "no epoch is over yet", transform=axes.transAxes, ha="center", va="center", color=style.QUIET
        )


def _draw_steps(
    loss: Axes, rate: Axes, lines: Sequence[dict[str, Any]], colour: str, *, smoothing: int, alone: bool
) -> None:
    steps = np.array([line["step"] for line in lines])
    losses = np.array([line["loss"] for line in lines])
    if alone and smoothing > 1:
        loss.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.6)
    if len(lines) >= smoothing:
        loss.plot(running_mean(steps, smoothing), running_mean(losses, smoothing), color=colour)
    rate.plot(steps, [line["learning_rate"] for line in lines], color=colour, drawstyle="steps-mid")


def _add_legends(figure: Figure, errors: Axes, runs: Sequence[Run]) -> None:
    splits = [
        Line2D([], [], color=style.QUIET, label="training"),
        Line2D([], [], color=style.QUIET, linestyle=_DASHES, label="validation"),
    ]
    errors.legend(handles=splits, loc="upper right", handlelength=3.0)
    named = [
        Line2D([], [], color=colour, label=style.shortened(run.name, 40))
        for run, colour in zip(runs, style.line_colours(len(runs)), strict=True)
    ]
    figure.legend(handles=named, loc="outside lower center", ncols=min(4, len(named)))


def running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """(n - width + 1,): the mean of each ``width`` values that follow one another; ``values`` is (n,), n >= width."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    means: NDArray[np.float64] = (sums[width:] - sums[:-width]) / width
    return means
