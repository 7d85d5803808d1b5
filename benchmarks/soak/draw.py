"""A soak in one picture: what happened to the run above, and below it what it did and held."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.soak.disturb import KINDS, Act, Kind
from benchmarks.soak.findings import ROLES, STREAM, Finding
from benchmarks.soak.judge import Series
from benchmarks.soak.watch import Sample
from fourstage.figures import style

COLOURS = dict(zip(ROLES, style.LINES, strict=False))
ACTED: dict[Kind, str] = {
    "kill augmenter": COLOURS["augmenter"], "kill loader": COLOURS["loader"], "scale": style.QUIET,
    "freeze": style.LINES[5],
}  # fmt: skip
WINDOW_SECONDS = 10.0
"""Over which rates and quantiles are taken."""
_HELD = (
    ("private", "private memory", "MB"), ("arenas", "arenas mapped", "MB"), ("descriptors", "descriptors", ""),
    ("threads", "threads", ""),
)  # fmt: skip
_BORN_SECONDS, _DYING_SAMPLES = 3.0, 2
"""How a process begins and how it ends, with next to nothing, is not drawn."""
_FAR_APART = 20.0
"""Levels of one panel that differ by more are drawn on a logarithmic axis."""
_LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1.0, "shrinkB": 1.0}
_LABEL_GAP = 0.17
"""Between two labels at a panel's edge, as a share of its height."""


def draw(samples: Sequence[Sample], acts: Sequence[Act], steps: Series, found: Sequence[Finding], title: str) -> Figure:
    """All panels. steps: (n,) milliseconds of each step of the run; found: what is said of each line at its end"""
    figure = style.new_figure(9.0, 8.8)
    panels = figure.subplots(3 + len(_HELD), 1, sharex=True, height_ratios=[0.8] + [1.0] * (2 + len(_HELD)))
    end = samples[-1].second / 60
    _draw_acts(panels[0], acts)
    panels[0].set_title(title, pad=10.0)
    _draw_rate(panels[1], samples, found)
    _draw_steps(panels[2], samples, steps, found)
    for axes, (measure, words, unit) in zip(panels[3:], _HELD, strict=True):
        _draw_held(axes, samples, measure, unit, found)
        axes.set_ylabel(words + (f"\n({unit})" if unit else ""))
    for axes in panels[1:]:
        axes.grid(axis="y")
        for act in acts:
            axes.axvline(
                act.at / 60,
                color=style.tint(ACTED[act.kind], 0.6 if act.kind == "kill loader" else 0.25),
                linewidth=0.6,
                zorder=0,
            )
    panels[-1].set_xlabel("minutes")
    panels[-1].set_xlim(0.0, end)
    figure.align_ylabels(list(panels))
    return figure


def _draw_acts(axes: Axes, acts: Sequence[Act]) -> None:
    for row, kind in enumerate(KINDS):
        for act in acts:
            if act.kind != kind:
                continue
            if act.lasts:
                axes.plot(
                    [act.at / 60, (act.at + act.lasts) / 60], [row, row], color=ACTED[kind], linewidth=4.0,
                    solid_capstyle="butt",
                )  # fmt: skip
            else:
                axes.plot(act.at / 60, row, marker="x", markersize=4.5, markeredgewidth=1.4, color=ACTED[kind])
            if kind == "scale":
                axes.annotate(
                    f"{act.number}", (act.at / 60, row), (-1, 0), textcoords="offset points", ha="right", va="center",
                    fontsize=6.5, color=style.QUIET,
                )  # fmt: skip
    names = [f"{kind} to" if kind == "scale" else kind for kind in KINDS]
    axes.set_yticks(range(len(KINDS)), names, fontsize=7.5)
    axes.set_ylim(len(KINDS) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _draw_rate(axes: Axes, samples: Sequence[Sample], found: Sequence[Finding]) -> None:
    groups = _by_window(samples)
    times = [group[-1].second / 60 for group in groups]
    rates = [(g[-1].stream.steps - g[0].stream.steps) / (g[-1].second - g[0].second) for g in groups]
    axes.plot(times, rates, color=style.INK, linewidth=1.1)
    axes.set_ylim(0.0, 1.15 * max(rates))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("throughput\n(batches/s)")
    usual = [finding for finding in found if finding.role == STREAM and finding.measure.name == "batch"]
    label = f"{1e3 / usual[0].judgement.level:,.0f} batches/s" if usual else "batches"
    _label(axes, [(float(np.median(rates)), label, style.INK)])


def _draw_steps(axes: Axes, samples: Sequence[Sample], steps: Series, found: Sequence[Finding]) -> None:
    labels = []
    for name, quantile, colour in (("p99", 0.99, style.LINES[1]), ("p50", 0.5, style.LINES[0])):
        points = [
            (group[-1].second / 60, float(np.quantile(taken, quantile)))
            for group in _by_window(samples)
            if len(taken := steps[int(group[0].stream.steps) : int(group[-1].stream.steps)])
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.1)
            labels.append(
                (
                    float(np.median([value for _, value in points])),
                    _said(found, STREAM, f"step {name}", name, "ms"),
                    colour,
                )
            )
    _count_by_powers(axes)
    axes.set_ylabel("step to step\n(ms)")
    _label(axes, labels)


def _count_by_powers(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_held(axes: Axes, samples: Sequence[Sample], measure: str, unit: str, found: Sequence[Finding]) -> None:
    lives: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    born: dict[tuple[str, int], float] = {}
    for sample in samples:
        for key, held in sample.processes.items():
            # How each begins, with nothing yet, would hide the rest behind upright lines.
            if sample.second - born.setdefault(key, sample.second) >= _BORN_SECONDS or sample is samples[0]:
                lives[key].append((sample.second / 60, float(getattr(held, measure))))
    for points in lives.values():
        if points and points[-1][0] < samples[-1].second / 60:
            del points[-_DYING_SAMPLES:]
    labels = []
    values = [value for points in lives.values() for _, value in points]
    logarithmic = max(values) > _FAR_APART * min([value for value in values if value > 0], default=1.0)
    for role in ROLES:
        of_role = [points for (name, _), points in lives.items() if points and name.partition("-")[0] == role]
        if logarithmic:
            # What holds nothing at all has no place on such an axis.
            of_role = [points for points in of_role if all(value > 0 for _, value in points)]
        if not of_role:
            continue
        for points in of_role:
            axes.plot(*zip(*points, strict=True), color=COLOURS[role], linewidth=1.1, drawstyle="steps-post")
        last = max(of_role, key=len)
        labels.append((last[-1][1], _said(found, role, measure, role, unit), COLOURS[role]))
    if logarithmic:
        _count_by_powers(axes)
    else:
        axes.set_ylim(0.0, 1.12 * max(values))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _label(axes, labels)


def _said(found: Sequence[Finding], role: str, measure: str, name: str, unit: str) -> str:
    """A line's name, and how much it may rise in an hour at most."""
    for finding in found:
        if (finding.role, finding.measure.name) == (role, measure) and np.isfinite(finding.judgement.high):
            high = finding.judgement.high
            most = f"{high:+,.0f}" if abs(high) >= 10.0 else f"{high:+.2g}" if high else "0"
            return f"{name}  {'rises, ' * (finding.judgement.word == 'rises')}≤ {most}{' ' * bool(unit)}{unit}/h"
    return name


def _by_window(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Those of each ten seconds, each group with the first of the next one, so that nothing lies between two."""
    groups: list[list[Sample]] = []
    for sample in samples:
        if groups:
            groups[-1].append(sample)
        if not groups or sample.second - groups[-1][0].second >= WINDOW_SECONDS:
            groups.append([sample])
    return [group for group in groups if group[-1].second > group[0].second and group[-1].stream.steps]


def _label(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Words at the ends of lines, moved apart where they would hide one another. labels: height, words, colour"""
    low, high = axes.get_ylim()
    scale = np.log10 if axes.get_yscale() == "log" else np.asarray
    shares = [float((scale(height) - scale(low)) / (scale(high) - scale(low))) for height, _, _ in labels]
    order = np.argsort(shares, kind="stable")
    places = apart(np.array(shares)[order], _LABEL_GAP)
    for place, number in zip(places.tolist(), order.tolist(), strict=True):
        _, words, colour = labels[number]
        axes.annotate(
            words, (1.0, shares[number]), (1.022, place), xycoords="axes fraction", textcoords="axes fraction",
            color=colour, va="center", fontsize=7.5, annotation_clip=False,
            arrowprops=_LEADER | {"color": style.tint(colour, 0.5)},
        )  # fmt: skip


def apart(places: Series, gap: float) -> Series:
    """Rising places (n,), moved as little as need be to lie ``gap`` apart: groups stay about their middle."""
    groups: list[list[float]] = []
    for place in places.tolist():
        groups.append([place, 1.0])
        while len(groups) > 1:
            (one, many), (other, few) = groups[-2:]
            if other - one >= gap * (many + few) / 2:
                break
            groups[-2:] = [[(one * many + other * few) / (many + few), many + few]]
    return np.array([middle + gap * (n - (count - 1) / 2) for middle, count in groups for n in range(int(count))])
