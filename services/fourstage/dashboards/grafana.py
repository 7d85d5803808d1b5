"""What a dashboard is: panels in rows, and where they lie.

Panels flow from left to right over a grid of 24 columns, row by row. ``render`` makes Grafana's JSON of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One expression. legend: the name of its lines, or of its column in a table."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Step:
    """From ``start`` upwards values have this colour; None: from below."""

    start: float | None
    colour: str


@dataclass(frozen=True, slots=True)
class Word:
    """What a value is called, and its colour."""

    value: int
    text: str
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture of one question. ``description`` answers how to read it."""

    kind: Literal["stat", "timeseries", "state-timeline", "table"]
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    width: int
    height: int = 7
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    steps: tuple[Step, ...] = ()
    """Thresholds: a stat's colour, a dashed line over time."""
    words: tuple[Word, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of lines, by legend."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Of a table's columns that have another unit than the rest."""
    stacked: bool = False
    bars: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them, in reading order."""
        for row in self.rows:
            yield from row.panels


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel lies, in columns and units of height."""

    x: int
    y: int
    width: int
    height: int


def layout(dashboard: Dashboard) -> list[tuple[Row | Panel, Place]]:
    """Every heading and panel with its place. Raises ValueError where a panel is wider than the page."""
    placed: list[tuple[Row | Panel, Place]] = []
    y = 0
    for row in dashboard.rows:
        placed.append((row, Place(0, y, COLUMNS, 1)))
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if panel.width > COLUMNS:
                raise ValueError(f"{panel.title}: {panel.width} of {COLUMNS} columns")
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append((panel, Place(x, y, panel.width, panel.height)))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed
