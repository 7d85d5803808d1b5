"""The paper's figure 1: how much sooner rectified linear units reach 25 % training error than tanh units do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fourstage.errors import FourstageError
from fourstage.figures import style
from fourstage.figures.crossing import LEVEL, Curve, Spread, crossing, ratio, spread
from fourstage.figures.runs import Run

_NAMES = {"relu": "ReLU", "tanh": "tanh"}
_LINES = {"relu": "-", "tanh": (0, (5, 2))}
"""Solid and dashed, as in the paper."""
_LEVEL = f"{100.0 * LEVEL:.0f} %"
_COLOURS = {"relu": style.LINES[0], "tanh": style.LINES[1]}


@dataclass(frozen=True, slots=True)
class Group:
    """The runs with one activation; ``crossing`` is that of their mean line, ``crossings`` each run's own."""

    runs: tuple[str, ...]
    line: Spread
    crossing: float | None
    crossings: tuple[float | None, ...]

    @property
    def began_below(self) -> bool:
        """The crossing is that of the first epoch, but may have come before its end: a bound, no measurement."""
        return self.crossing == self.line.mean.epochs[0]


def compare(runs: Sequence[Run]) -> dict[str, Group]:
    """The runs by activation, ``relu`` and ``tanh``. Raises FourstageError where one of the two has none."""
    curves: dict[str, list[tuple[str, Curve]]] = {name: [] for name in _NAMES}
    for run in runs:
        curve = run.errors("train")
        if curve.epochs:
            curves[run.settings().model.activation].append((run.name, curve))
    for activation, found in curves.items():
        if not found:
            raise FourstageError(
                f"it compares ReLU with tanh, and no run with model.activation = {activation!r} has trained an epoch",
                hint="give --run-dir once for each run",
            )
    groups = {}
    for activation, found in curves.items():
        line = spread([curve for _, curve in found])
        crossings = tuple(crossing(curve) for _, curve in found)
        groups[activation] = Group(tuple(name for name, _ in found), line, crossing(line.mean), crossings)
    return groups


def numbers(groups: Mapping[str, Group]) -> dict[str, Any]:
    """What the figure says, for ``figure-1.json``; epochs that were never reached are null."""
    return {
        "level": LEVEL,
        "activations": {
            activation: {
                "crossing_epochs": group.crossing,
                "runs": [
                    {"run": name, "crossing_epochs": epochs}
                    for name, epochs in zip(group.runs, group.crossings, strict=True)
                ],
                "epochs": group.line.mean.epochs,
                "mean_training_error": group.line.mean.errors,
            }
            for activation, group in groups.items()
        },
        "ratio": epochs_ratio(groups),
    }


def epochs_ratio(groups: Mapping[str, Group]) -> float | None:
    """How many times the epochs of ReLU tanh takes; None where one never crossed, or began below the level."""
    if any(group.began_below for group in groups.values()):
        return None
    return ratio(groups["relu"].crossing, groups["tanh"].crossing)


def draw(groups: Mapping[str, Group]) -> Figure:
    """Training error against epochs, with the epochs at which each line crosses 25 %."""
    figure = style.new_figure(5.6, 4.2)
    axes = figure.add_subplot()
    axes.axhline(100.0 * LEVEL, color=style.QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
    for activation, group in groups.items():
        _draw_group(axes, activation, group)
    axes.set_title(_finding(groups))
    axes.set_xlabel("epochs trained")
    axes.set_ylabel("training error, mean over the epoch")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=0.0)
    axes.legend(loc="upper right", handlelength=3.0)
    return figure


def _draw_group(axes: Axes, activation: str, group: Group) -> None:
    colour, mean = _COLOURS[activation], group.line.mean
    name = _NAMES[activation]
    if len(group.runs) > 1:
        name += f", mean of {len(group.runs)} runs (band: lowest to highest)"
        lowest, highest = 100.0 * np.array(group.line.lowest), 100.0 * np.array(group.line.highest)
        axes.fill_between(mean.epochs, lowest, highest, color=colour, alpha=0.18, linewidth=0.0)
    axes.plot(mean.epochs, 100.0 * np.array(mean.errors), color=colour, linestyle=_LINES[activation], label=name)
    if group.crossing is None:
        return
    level = 100.0 * LEVEL
    axes.plot([group.crossing] * 2, [0.0, level], color=colour, linewidth=0.8)
    axes.plot(group.crossing, level, marker="o", markersize=5.0, color=colour, markeredgecolor="white")
    axes.annotate(
        f"{group.crossing:.1f} epochs", (group.crossing, level), (6, 5), textcoords="offset points", color=colour,
        fontsize=8.0,
    )  # fmt: skip


def _finding(groups: Mapping[str, Group]) -> str:
    never = [_NAMES[activation] for activation, group in groups.items() if group.crossing is None]
    below = [_NAMES[activation] for activation, group in groups.items() if group.began_below]
    if never:
        return f"{' and '.join(never)} never reached {_LEVEL} training error: no ratio"
    if below:
        return f"{' and '.join(below)} had reached {_LEVEL} training error within the first epoch: no ratio"
    return f"tanh takes {epochs_ratio(groups):.1f} times the epochs of ReLU to {_LEVEL} training error"
