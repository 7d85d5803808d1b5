"""How a panel looks, by kind: drawn with matplotlib as Grafana would draw it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fourstage.dashboards.grafana import Panel, Word
from fourstage.dashboards.measures import scale, written
from fourstage.dashboards.prometheus import Line
from fourstage.figures.style import FAINT, INK, LINES, QUIET

_NAMED = {"green": "#009E73", "orange": "#E69F00", "red": "#b3001b", "text": INK}
"""Grafana's names of colours that are used, in this palette."""


@dataclass(frozen=True, slots=True)
class Span:
    """What time is shown, in Unix seconds, and where something happened."""

    start: float
    end: float
    step: float
    events: tuple[tuple[float, str], ...] = ()
    """Each with its colour."""

    @property
    def grid(self) -> NDArray[np.float64]:
        """Every moment that was asked for."""
        return np.arange(self.start, self.end + self.step / 2, self.step)


Answers = Sequence[tuple[str, Line]]
"""Lines by the names that the legend gives them."""


def over_time(axes: Axes, panel: Panel, answers: Answers, span: Span) -> Mapping[str, str]:
    """Lines, areas or bars; the colour of each name, for the legend."""
    found = {name: _on_grid(line, span) for name, line in answers}
    # Those with a colour of their own first, in their order: stacks look alike on every panel.
    names = [name for name in panel.colours if name in found] + [name for name in found if name not in panel.colours]
    spare = itertools.cycle(LINES)
    colours = {name: panel.colours.get(name) or next(spare) for name in names}
    minutes = (span.grid - span.start) / 60
    if panel.stacked:
        layers = [np.nan_to_num(found[name]) for name in names]
        axes.stackplot(minutes, layers, colors=[colours[name] for name in names], linewidth=0)
    elif panel.bars:
        floor = np.zeros(len(minutes))
        for name in names:
            values = np.nan_to_num(found[name])
            axes.bar(minutes, values, span.step / 60, bottom=floor, color=colours[name])
            floor += values
    else:
        for name in names:
            axes.plot(minutes, found[name], color=colours[name], linewidth=1.5)
    for limit, colour in _limits(panel):
        axes.axhline(limit, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
    _vertical(axes, panel, list(found.values()))
    _horizontal(axes, span)
    for moment, colour in span.events:
        axes.axvline((moment - span.start) / 60, color=colour, linewidth=1.1, linestyle=(0, (3, 2)))
    return colours


def states(axes: Axes, panel: Panel, answers: Answers, span: Span) -> Mapping[str, str]:
    """One band whose colour changes; the words that occur, for the legend."""
    words = {word.value: word for word in panel.words}
    values = _on_grid(answers[0][1], span) if answers else np.full(len(span.grid), math.nan)
    shown: dict[str, str] = {}
    at = 0
    for value, group in itertools.groupby(0 if math.isnan(value) else round(value) for value in values):
        length = len(list(group))
        if (word := words.get(value)) is not None:
            shown[word.text] = word.colour
            axes.barh(0, length * span.step / 60, left=at * span.step / 60, height=1, color=word.colour, linewidth=0)
        at += length
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _horizontal(axes, span)
    return shown


def number(axes: Axes, panel: Panel, answers: Answers) -> None:
    """The last value, large; its word where it has one."""
    axes.set_axis_off()
    value = next((v for v in reversed(answers[0][1].values) if math.isfinite(v)), math.nan) if answers else math.nan
    text, colour = _said(panel, value)
    size = 26.0 if len(text) <= 8 else 21.0 if len(text) <= 14 else 16.0
    axes.text(
        0.5, 0.46, _broken(text, 24), ha="center", va="center", fontsize=size, color=colour, transform=axes.transAxes,
    )  # fmt: skip


def table(axes: Axes, panel: Panel, columns: Mapping[str, Sequence[Line]]) -> None:
    """A line for each set of labels, a column for each query."""
    axes.set_axis_off()
    rows: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for name, lines in columns.items():
        for line in lines:
            rows.setdefault(tuple(sorted(line.labels.items())), {})[name] = line.values[-1]
    if not rows:
        return
    labels = [label for label, _ in next(iter(rows))]
    heads = [*labels, *columns]
    weights = [1.6 if head in ("instance", "replica") else 1.0 for head in heads]
    lefts = np.cumsum([0.0, *weights[:-1]]) / sum(weights)
    high = max(len(rows) + 1, 7)
    for number_, (row, values) in enumerate([((), {}), *sorted(rows.items())]):
        y = 1 - (number_ + 0.5) / high
        cells = heads if number_ == 0 else [value for _, value in row]
        if number_ > 0:
            cells = [
                *cells,
                *(
                    written(values.get(name, math.nan), panel.units.get(name, panel.unit), panel.decimals)
                    for name in columns
                ),
            ]
            axes.axhline(y + 0.5 / high, color=FAINT, linewidth=0.7)
        for left, cell in zip(lefts, cells, strict=True):
            axes.text(left, y, cell, va="center", fontsize=9, color=QUIET if number_ == 0 else INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _said(panel: Panel, value: float) -> tuple[str, str]:
    """A stat's text and colour."""
    if not math.isfinite(value):
        return "no data", QUIET
    word: Word | None = next((word for word in panel.words if word.value == round(value)), None)
    if word is not None:
        return word.text, word.colour
    passed = [step for step in panel.steps if step.start is None or value >= step.start]
    colour = _NAMED.get(passed[-1].colour, passed[-1].colour) if passed else INK
    return written(value, panel.unit, panel.decimals), colour


def _broken(text: str, width: int) -> str:
    """Over two lines where it is long."""
    if len(text) <= width:
        return text
    cut = min(
        (i for i, sign in enumerate(text) if sign == " "), key=lambda i: abs(i - len(text) / 2), default=len(text)
    )
    return f"{text[:cut]}\n{text[cut + 1 :]}"


def _on_grid(line: Line, span: Span) -> NDArray[np.float64]:
    """A value for each moment; NaN where there was none."""
    values = np.full(len(span.grid), math.nan)
    for time, value in zip(line.times, line.values, strict=True):
        index = round((time - span.start) / span.step)
        if 0 <= index < len(values):
            values[index] = value
    return values


def _vertical(axes: Axes, panel: Panel, found: Sequence[NDArray[np.float64]]) -> None:
    finite = [values[np.isfinite(values)] for values in found]
    positive = [values[values > 0] for values in finite if (values > 0).any()]
    if panel.log and positive:
        axes.set_yscale("log")
        axes.set_ylim(min(map(np.min, positive)) / 2, max(map(np.max, positive)) * 2)
        axes.minorticks_off()
    else:
        top = panel.maximum
        if top is None:
            highest = _highest(panel, found)
            top = 1.12 * max([highest, *(limit for limit, _ in _limits(panel))]) or 1.0
        axes.set_ylim(panel.minimum if panel.minimum is not None else None, top)
        size = scale(top, panel.unit)
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=panel.unit == "locale").tick_values(0, top / size)
        axes.set_yticks([tick * size for tick in ticks if tick * size <= top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, _short(panel.unit), None)))
    axes.grid(axis="y")


def _highest(panel: Panel, found: Sequence[NDArray[np.float64]]) -> float:
    filled = [np.nan_to_num(values) for values in found]
    together = [np.sum(filled, axis=0)] if filled and (panel.stacked or panel.bars) else filled
    return max((float(values.max()) for values in together), default=0.0)


def _limits(panel: Panel) -> list[tuple[float, str]]:
    """Thresholds with their colours."""
    return [(step.start, _NAMED.get(step.colour, step.colour)) for step in panel.steps if step.start is not None]


def _short(unit: str) -> str:
    """On an axis the word stands once, in the panel's title."""
    return "short" if unit.startswith("suffix:") else unit


def _horizontal(axes: Axes, span: Span) -> None:
    axes.set_xlim(0, (span.end - span.start) / 60)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
