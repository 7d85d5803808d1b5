"""Panels in one call each, and those that stand on more than one page."""

from collections.abc import Mapping
from typing import TypedDict, Unpack

from fourstage.dashboards.grafana import Panel, Query, Step
from fourstage.dashboards.queries import RUN_STATE, RUN_STATE_WORDS, WAITS_FOR, WAITS_FOR_WORDS, rate, series

STEP, STEPS = f"max({series('fourstage_run_step')})", f"max({series('fourstage_run_steps')})"
PACE = f"(max({rate('fourstage_steps_total')}) > 0)"
"""Steps per second, where there are any."""


class Looks(TypedDict, total=False):
    """What only some panels over time set."""

    height: int
    maximum: float
    steps: tuple[Step, ...]
    colours: Mapping[str, str]
    stacked: bool
    bars: bool
    log: bool


def lines(
    title: str, description: str, queries: Mapping[str, str], unit: str, width: int, **looks: Unpack[Looks]
) -> Panel:
    """Values over time, from 0 upwards. queries: expressions by legend."""
    return Panel(
        kind="timeseries",
        title=title,
        description=description,
        queries=tuple(Query(expr, legend) for legend, expr in queries.items()),
        unit=unit,
        width=width,
        minimum=0,
        **looks,
    )


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str,
    width: int,
    *,
    decimals: int | None = None,
    steps: tuple[Step, ...] = (),
) -> Panel:
    """One number, the last."""
    return Panel(
        kind="stat",
        title=title,
        description=description,
        queries=(Query(expr, title.lower()),),
        unit=unit,
        width=width,
        height=4,
        decimals=decimals,
        steps=steps,
    )


def _in_words(kind: str, title: str, description: str, of_run: bool, width: int) -> Panel:
    expr, words = (RUN_STATE, RUN_STATE_WORDS) if of_run else (WAITS_FOR, WAITS_FOR_WORDS)
    return Panel(
        kind="stat" if kind == "stat" else "state-timeline",
        title=title,
        description=description,
        queries=(Query(expr, "run" if of_run else "waits for"),),
        unit="short",
        words=words,
        width=width,
        height=4,
    )


def run_state(width: int) -> Panel:
    """What the run does now."""
    return _in_words("stat", "Run", "What the run does now.", True, width)


def run_states() -> Panel:
    """What it did."""
    return _in_words("timeline", "What the run did", "Its state over time. A gap: no trainer answered.", True, 24)


def waits_for(width: int) -> Panel:
    """What the run waits for now."""
    description = (
        "What holds the run up now, as its first trainer judges by the last ten seconds. Green is as it should be: the "
        "device is never without a batch."
    )
    return _in_words("stat", "The run waits for", description, False, width)


def waited_for() -> Panel:
    """What it waited for."""
    return _in_words("timeline", "What the run waited for", "The same judgement over time.", False, 24)


def time_left(width: int) -> Panel:
    """Until the run's last step."""
    description = "At the pace of the last minutes; validation is not counted."
    return stat("Time left", description, f"({STEPS} - {STEP}) / {PACE}", "s", width, decimals=0)
