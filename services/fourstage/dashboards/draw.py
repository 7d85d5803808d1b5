"""Pictures of the dashboards from a Prometheus' data, without a Grafana.

``python -m fourstage.dashboards.draw --prometheus http://127.0.0.1:9090 --out docs/images`` draws what it holds of the
last half hour: one PNG for each dashboard, panel by panel where Grafana would put them. Needs the extra ``figures``.
"""

import argparse
import io
import time
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from fourstage.dashboards import plots
from fourstage.dashboards.grafana import COLUMNS, Dashboard, Panel, Place, layout
from fourstage.dashboards.pages import DASHBOARDS, file_name
from fourstage.dashboards.plots import Span
from fourstage.dashboards.prometheus import Line, Prometheus
from fourstage.dashboards.queries import ANNOTATIONS, concrete
from fourstage.errors import FourstageError
from fourstage.figures.style import FAINT, INK, QUIET, house_style

_COLUMN, _UNIT = 0.68, 0.34
"""Inches that a column is wide and a unit of height is high."""
_HEAD = 0.75
_EDGE = 0.05
"""Half of the gap between two panels."""
_LEFT, _RIGHT, _TOP, _TICKS, _LEGEND_LINE = 0.72, 0.22, 0.42, 0.26, 0.19
"""Inches around the axes of a panel."""
_DPI, _COLOURS = 110, 256
_MOST_POINTS = 600


def draw_all(prometheus: Prometheus, folder: Path, start: float, end: float, interval: str) -> list[Path]:
    """Draw every dashboard between two Unix times; the files. Raises FourstageErrors where there is no answer.

    interval: what stands for Grafana's ``$__rate_interval``: four times the scrape interval or more
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dashboard in DASHBOARDS:
        path = folder / f"dashboard-{Path(file_name(dashboard)).stem}.png"
        with house_style():
            figure = _page(dashboard, prometheus, start, end, interval)
            _save(figure, path)
        paths.append(path)
    return paths


def _page(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, interval: str) -> Figure:
    span = _span(prometheus, start, end)
    placed = layout(dashboard)
    width = COLUMNS * _COLUMN
    height = _HEAD + _UNIT * max(place.y + place.height for _, place in placed) + _EDGE
    page = _Page(Figure(figsize=(width, height), facecolor="#f4f5f7"), width, height)
    begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(start))
    page.text(_EDGE * 2, 0.3, dashboard.title, size=16, weight="bold")
    page.text(_EDGE * 2, 0.57, f"{dashboard.description} Minutes since {begun} UTC.", size=9.5, colour=QUIET)
    _legend(page, {name.lower(): colour for name, (_, _, colour) in ANNOTATIONS.items()}, width - 3.2, 0.2, 3.2)
    for item, place in placed:
        if isinstance(item, Panel):
            _panel(page, item, place, prometheus, span, interval)
        else:
            page.text(_EDGE * 2, _HEAD + _UNIT * (place.y + 0.6), item.title, size=11, weight="bold")
    return page.figure


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, a third of the size."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=_DPI)
    with Image.open(whole) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(path, optimize=True)


class _Page:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure = figure
        self._width, self._height = width, height

    def text(self, x: float, y: float, text: str, *, size: float, weight: str = "normal", colour: str = INK) -> None:
        self.figure.text(
            x / self._width, 1 - y / self._height, text, fontsize=size, fontweight=weight, color=colour, va="center"
        )

    def card(self, x: float, y: float, width: float, height: float) -> None:
        self.figure.add_artist(
            Rectangle(
                (x / self._width, 1 - (y + height) / self._height), width / self._width, height / self._height,
                facecolor="white", edgecolor=FAINT, linewidth=0.8, zorder=-1,
            )
        )  # fmt: skip

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (x / self._width, 1 - (y + height) / self._height, width / self._width, height / self._height)
        )


def _panel(page: _Page, panel: Panel, place: Place, prometheus: Prometheus, span: Span, interval: str) -> None:
    x, y = place.x * _COLUMN + _EDGE, _HEAD + place.y * _UNIT + _EDGE
    width, height = place.width * _COLUMN - 2 * _EDGE, place.height * _UNIT - 2 * _EDGE
    page.card(x, y, width, height)
    word = panel.unit.removeprefix("suffix: ") if panel.unit.startswith("suffix:") and panel.kind != "stat" else ""
    said = not word or word in panel.title.casefold() or "per second" in panel.title
    page.text(x + 0.12, y + 0.19, panel.title if said else f"{panel.title} ({word})", size=10, weight="bold")
    inside = (x + 0.12, y + _TOP, width - 0.24, height - _TOP - 0.06)
    if panel.kind == "table":
        moment = span.end - span.step
        columns = {q.legend: prometheus.over(concrete(q.expr, interval), moment, moment, 1.0) for q in panel.queries}
        plots.table(page.axes(*inside), panel, columns)
        return
    answers = [
        (line.named(query.legend), line)
        for query in panel.queries
        for line in prometheus.over(concrete(query.expr, interval), span.start, span.end, span.step)
    ]
    answers.sort(key=lambda entry: entry[0])
    if panel.kind == "stat":
        plots.number(page.axes(*inside), panel, answers)
        return
    rows = _legend_rows(_names(panel, answers), width - _LEFT - _RIGHT)
    below = _TICKS + _LEGEND_LINE * len(rows) + 0.06
    left = 0.12 if panel.kind == "state-timeline" else _LEFT
    axes = page.axes(x + left, y + _TOP, width - left - _RIGHT, height - _TOP - below)
    draw = plots.states if panel.kind == "state-timeline" else plots.over_time
    colours = draw(axes, panel, answers, span)
    _legend(page, colours, x + left, y + height - below + _TICKS, width - left - _RIGHT)


def _names(panel: Panel, answers: plots.Answers) -> list[str]:
    """What the legend will hold."""
    if panel.kind != "state-timeline":
        return list(dict.fromkeys(name for name, _ in answers))
    seen = {round(value) for _, line in answers for value in line.values if value == value}
    return [word.text for word in panel.words if word.value in seen]


def _legend_rows(names: list[str], width: float) -> list[list[str]]:
    """Names side by side as far as there is room."""
    rows: list[list[str]] = [[]]
    room = width
    for name in names:
        needed = _entry_width(name)
        if rows[-1] and needed > room:
            rows.append([])
            room = width
        rows[-1].append(name)
        room -= needed
    return rows


def _entry_width(name: str) -> float:
    """Inches: a dash, the text in 8 points, a gap."""
    return 0.42 + 0.063 * len(name)


def _legend(page: _Page, colours: Mapping[str, str], x: float, y: float, width: float) -> None:
    for index, row in enumerate(_legend_rows(list(colours), width)):
        left, middle = x, y + _LEGEND_LINE * (index + 0.6)
        for name in row:
            dash = page.axes(left, middle - 0.05, 0.18, 0.1)
            dash.set_axis_off()
            dash.add_line(Line2D([0, 1], [0.5, 0.5], color=colours[name], linewidth=3.0, transform=dash.transAxes))
            page.text(left + 0.24, middle, name, size=8)
            left += _entry_width(name)


def _span(prometheus: Prometheus, start: float, end: float) -> Span:
    """The moments to ask for, and what is marked on every panel."""
    step = max(1.0, (end - start) / _MOST_POINTS)
    events: list[tuple[float, str]] = []
    for expr, _, colour in ANNOTATIONS.values():
        for line in prometheus.over(concrete(expr), start, end, step):
            events += [(moment, colour) for moment in _beginnings(line, step)]
    return Span(start, end, step, tuple(sorted(set(events))))


def _beginnings(line: Line, step: float) -> list[float]:
    """When each unbroken stretch of values began."""
    return [
        moment
        for before, moment in zip((float("-inf"), *line.times), line.times, strict=False)
        if moment - before > 1.5 * step
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the pictures")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back")
    parser.add_argument("--until", type=float, help="Unix time of the right edge; now")
    parser.add_argument("--interval", default="20s", help="over which rates are taken")
    arguments = parser.parse_args()
    end = arguments.until or time.time()
    try:
        draw_all(Prometheus(arguments.prometheus), arguments.out, end - 60 * arguments.minutes, end, arguments.interval)
    except FourstageError as error:
        raise SystemExit(f"fourstage: {error}") from None


if __name__ == "__main__":
    main()
