"""The chart of the four stages: bars where the trace has them, in one colour for each batch."""

from collections import defaultdict
from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fourstage.errors import FourstageError
from fourstage.figures import gantt, style
from fourstage.figures.passages import Passage, Timeline, read_timeline, steady_window
from fourstage.trace import STAGE_ROWS
from tests.figures.conftest import Drawn


def textbook(batches: int) -> Timeline:
    """Every stage takes one second, and works for a quarter of it: the pipeline of the slides."""
    passages = [
        Passage(stage, 0, seq, came=seq + at, began=seq + at, ended=seq + at + 0.25, left=seq + at + 1.0)
        for seq in range(batches)
        for at, stage in enumerate(STAGE_ROWS)
    ]
    return Timeline(tuple(passages), {})


def test_four_batches_in_four_stages_at_one_moment() -> None:
    (axes,) = gantt.draw(textbook(40), 10, 21).axes
    assert axes.get_title(loc="left") == "One moment: batch 16 in train, 17 in copy, 18 in transform, 19 in load"
    labels = [text.get_text() for text in axes.texts]
    assert {"16 = n", "17 = n+1", "18 = n+2", "19 = n+3"} <= set(labels)
    rows = {text.get_text(): text.get_position()[1] for text in axes.texts if "=" in text.get_text()}
    heights = [rows[label] for label in ("19 = n+3", "18 = n+2", "17 = n+1", "16 = n")]
    assert all(above < below for above, below in pairwise(heights))
    assert [label.get_text().split("\n")[1] for label in axes.get_yticklabels()] == [
        "from disk", "decode, crop", "to the device", "a step each",
    ]  # fmt: skip
    assert axes.get_xlabel() == "time (s)"
    assert axes.get_xlim() == pytest.approx((0.0, 11.25))


def test_bars_lie_where_the_trace_has_them_in_the_batchs_colour() -> None:
    (axes,) = gantt.draw(textbook(40), 10, 21).axes
    solid: dict[float, list[tuple[float, str]]] = defaultdict(list)
    for patch in axes.patches:
        # The mark behind the bars is higher than they are.
        if not (isinstance(patch, Rectangle) and patch.get_fill() and patch.get_height() < 1.0):
            continue
        if patch.get_width() == pytest.approx(0.25):
            solid[patch.get_y()].append((patch.get_x(), to_hex(patch.get_facecolor())))
    assert len(solid) == 4
    for at, row in enumerate(sorted(solid)):
        for left, colour in solid[row]:
            # The window begins when batch 10 is trained, at 13 seconds.
            seq = round(left + 13.0 - at)
            assert colour == to_hex(style.BATCHES[seq % len(style.BATCHES)])


def test_a_real_run_has_a_row_for_each_worker(drawn: Drawn) -> None:
    timeline = read_timeline(drawn.relu / "trace.json", split="train")
    (axes,) = gantt.draw(timeline, *steady_window(timeline)).axes
    *reads, first, second, copy, train = [label.get_text().split("\n")[1] for label in axes.get_yticklabels()]
    # On a busy machine reads overlap, and each lane of them has a row.
    assert reads in (["from disk"], ["loader", *(f"loader {lane}" for lane in range(2, len(reads) + 1))])
    assert [first, second, copy, train] == ["augmenter-0", "augmenter-1", "to the device", "a step each"]
    assert axes.get_xlabel() in ("time (ms)", "time (s)")


def test_a_window_that_was_not_traced_is_refused() -> None:
    with pytest.raises(FourstageError, match=r"300 to 311.*--timeline"):
        gantt.draw(textbook(40), 300, 311)
