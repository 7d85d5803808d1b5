"""The pipeline's timeline: which batch is in which stage when, as a Gantt chart."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fourstage.errors import FourstageError
from fourstage.figures import style
from fourstage.figures.passages import Passage, Timeline, lanes
from fourstage.trace import STAGE_ROWS

_WHAT = {"load": "from disk", "transform": "decode, crop", "copy": "to the device", "train": "a step each"}
_WIDTH, _LANE, _FRAME = 10.0, 0.24, 1.15
"""Inches: of the figure, of a lane, of all that is above and below the lanes."""
_STAGE_GAP, _WORKER_GAP, _BAR = 0.6, 0.25, 0.84
"""In lanes."""
_READY = 0.38
"""Share of its colour that a batch has while it lies ready; the rest is white."""
_DIGIT = 0.0062
"""Width of a character of a bar's label, as a share of the window; what has no room for its number has none."""
_LONG = 10.0
"""Windows of more seconds than this are shown in seconds, shorter ones in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From the trace's clock to the axis."""

    began: float
    ended: float
    per_second: float

    def __call__(self, moment: float) -> float:
        return (moment - self.began) * self.per_second

    def within(self, moment: float) -> float:
        """The same of the part of the window that is nearest."""
        return self(min(max(moment, self.began), self.ended))


def draw(timeline: Timeline, first: int, last: int) -> Figure:
    """The steps of batches ``first`` to ``last``, and the batches in the other stages meanwhile.

    The middle step is marked: its batch is n, and the outlined ones are those that lie in some stage at that moment.
    Raises FourstageError where the trace lacks one of the two batches.
    """
    steps = [passage for passage in timeline.trained() if first <= passage.seq <= last]
    if not steps or (steps[0].seq, steps[-1].seq) != (first, last):
        raise FourstageError(f"the trace has no steps of batches {first} to {last}", hint="name others with --timeline")
    seconds = steps[-1].ended - steps[0].began
    scale = _Scale(steps[0].began, steps[-1].ended, 1.0 if seconds > _LONG else 1e3)
    marked = steps[len(steps) // 2]
    rows: dict[tuple[str, int], list[Passage]] = defaultdict(list)
    for passage in sorted(timeline.passages, key=lambda passage: passage.came):
        if passage.came < scale.ended and passage.left > scale.began:
            rows[passage.stage, passage.worker].append(passage)

    figure = style.new_figure(_WIDTH, _FRAME)
    axes = figure.add_subplot()
    axes.axvspan(scale(marked.began), scale(marked.ended), color=style.FAINT, alpha=0.5, linewidth=0.0, zorder=0)
    height = 0.0
    ticks: list[tuple[float, str]] = []
    for stage in STAGE_ROWS:
        workers = sorted(worker for other, worker in rows if other == stage)
        for worker in workers:
            passages = rows[stage, worker]
            places = lanes([(passage.came, passage.left) for passage in passages])
            for passage, place in zip(passages, places, strict=True):
                _draw_passage(axes, passage, height + place, scale, marked)
            used = max(places) + 1
            below = timeline.workers.get((stage, worker), "") if len(workers) > 1 else _WHAT[stage]
            ticks.append((height + used / 2, rf"$\bf{{{stage}}}$" + f"\n{below}"))
            height += used + _WORKER_GAP
        height += _STAGE_GAP - _WORKER_GAP
    height -= _STAGE_GAP
    axes.set_ylim(height, 0.0)
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], linespacing=1.3)
    axes.set_xlim(0.0, scale(scale.ended))
    axes.set_xlabel("time (s)" if seconds > _LONG else "time (ms)")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(_sentence(chain.from_iterable(rows.values()), marked))
    _add_legend(axes)
    figure.set_size_inches(_WIDTH, _FRAME + _LANE * height)
    return figure


def _draw_passage(axes: Axes, passage: Passage, top: float, scale: _Scale, marked: Passage) -> None:
    colour = style.BATCHES[passage.seq % len(style.BATCHES)]
    top += (1.0 - _BAR) / 2
    came, began, ended, left = (scale(m) for m in (passage.came, passage.began, passage.ended, passage.left))
    axes.add_patch(Rectangle((came, top), left - came, _BAR, color=style.tint(colour, _READY), linewidth=0.0))
    axes.add_patch(Rectangle((began, top), ended - began, _BAR, color=colour, linewidth=0.5))
    here = _is_there(passage, _middle(marked))
    edge, width, layer = (style.INK, 1.3, 3) if here else (colour, 0.5, 2)
    axes.add_patch(Rectangle((came, top), left - came, _BAR, fill=False, edgecolor=edge, linewidth=width, zorder=layer))
    ahead = passage.seq - marked.seq
    labels = [str(passage.seq)]
    if here:
        labels.insert(0, f"{passage.seq} = n{ahead:+d}" if ahead else f"{passage.seq} = n")
    begin, end = scale.within(passage.came), scale.within(passage.left)
    share = (end - begin) / scale(scale.ended)
    worked = scale.within(passage.ended) - scale.within(passage.began)
    ink = style.readable_on(colour) if worked > 0.5 * (end - begin) else style.INK
    for label in labels:
        if share > _DIGIT * (len(label) + 1):
            axes.text(
                (begin + end) / 2, top + _BAR / 2, label, color=ink, ha="center", va="center_baseline", fontsize=7.0,
                fontweight="bold" if here else "normal", zorder=4,
            )  # fmt: skip
            break


def _sentence(passages: Iterable[Passage], marked: Passage) -> str:
    inside: dict[str, set[int]] = defaultdict(set)
    for passage in passages:
        if _is_there(passage, _middle(marked)):
            inside[passage.stage].add(passage.seq)
    parts = [f"{_numbers(sorted(inside[stage]))} in {stage}" for stage in reversed(STAGE_ROWS) if inside[stage]]
    return "One moment: batch " + ", ".join(parts)


def _numbers(batches: Sequence[int]) -> str:
    if len(batches) > 2 and batches[-1] - batches[0] == len(batches) - 1:
        return f"{batches[0]} to {batches[-1]}"
    return " and ".join(map(str, batches))


def _middle(passage: Passage) -> float:
    return (passage.began + passage.ended) / 2


def _is_there(passage: Passage, moment: float) -> bool:
    return passage.came <= moment < passage.left


def _add_legend(axes: Axes) -> None:
    worked, ready = (Patch(color=style.tint(style.QUIET, share), linewidth=0.0) for share in (1.0, _READY))
    axes.legend(
        [worked, ready], ["worked on", "ready for the next stage"], loc="lower right", bbox_to_anchor=(1.0, 1.0),
        ncols=2, borderaxespad=0.2, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
