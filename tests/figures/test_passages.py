"""Traces as a timeline: which batch was in which stage when."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import FourstageError, SettingsError
from fourstage.figures.passages import (
    Passage,
    Timeline,
    lanes,
    parse_window,
    read_timeline,
    steady_window,
    timeline,
)
from fourstage.trace import STAGE_ROWS, Trace, merge
from fourstage.trace import Passage as Way
from fourstage.wire.messages import Times
from tests.figures.conftest import Drawn


def trained(durations: Sequence[float]) -> Timeline:
    """Steps one after the other, numbered from 100."""
    moment, passages = 0.0, []
    for number, duration in enumerate(durations):
        end = moment + duration
        passages.append(Passage("train", 0, 100 + number, moment, moment, end, end))
        moment = end
    return Timeline(tuple(passages), {})


def test_every_batch_passes_the_four_stages_in_order(drawn: Drawn) -> None:
    read = read_timeline(drawn.relu / "trace.json", split="train")
    assert [step.seq for step in read.trained()] == list(range(30))
    by_batch: dict[int, list[Passage]] = {}
    for passage in read.passages:
        assert passage.came <= passage.began <= passage.ended <= passage.left
        by_batch.setdefault(passage.seq, []).append(passage)
    for passages in by_batch.values():
        assert [passage.stage for passage in sorted(passages, key=lambda each: each.came)] == list(STAGE_ROWS)
        for before, after in pairwise(sorted(passages, key=lambda each: each.came)):
            assert before.left <= after.began
    assert {(stage, name.partition(" ")[0]) for (stage, _), name in read.workers.items()} == {
        ("load", "loader"), ("transform", "augmenter-0"), ("transform", "augmenter-1"), ("copy", "trainer"),
        ("train", "trainer"),
    }  # fmt: skip


def test_work_is_joined_with_the_stay_around_it_and_other_streams_are_left_out(tmp_path: Path) -> None:
    trace = Trace(tmp_path, rank=3, name="trainer-3", always=True)
    times = Times(received=1.0, made_from=1.5, made_to=2.0)
    way = Way("augmenter-0", times, copied_from=4.0, copied_to=4.5, trained_from=5.0, trained_to=6.0)
    trace.batch(5, "mine", way)
    trace.batch(5, "val", way)
    trace.close()
    # The first trainer does it in the end.
    merge(tmp_path / "trace", tmp_path / "trace.json")
    read = read_timeline(tmp_path / "trace.json", split="mine")
    assert set(read.passages) == {
        Passage("transform", 0, 5, came=1.0, began=1.5, ended=2.0, left=4.0),
        Passage("copy", 3, 5, came=4.0, began=4.0, ended=4.5, left=5.0),
        Passage("train", 3, 5, came=5.0, began=5.0, ended=6.0, left=6.0),
    }
    assert read.workers["transform", 0] == "augmenter-0"
    assert not (tmp_path / "trace").exists()


def test_no_trace_and_another_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FourstageError, match=r"no trace\.json.*--trace"):
        read_timeline(tmp_path / "trace.json", split="train")
    documents: list[Any] = [[], {"traceEvents": [{"ph": "X"}]}, {"traceEvents": 3}]
    for document in documents:
        (tmp_path / "trace.json").write_text(json.dumps(document))
        with pytest.raises(FourstageError, match="is not a trace"):
            read_timeline(tmp_path / "trace.json", split="train")


def test_the_steady_window_has_neither_the_slow_start_nor_a_pause() -> None:
    durations = [1.0] * 12 + [0.1] * 60
    durations[40] = 5.0
    first, last = steady_window(trained(durations))
    assert last - first == 11
    chosen = durations[first - 100 : last - 99]
    assert chosen == [0.1] * 12


def test_too_short_a_trace_has_no_window() -> None:
    with pytest.raises(FourstageError, match="11 trained batches"):
        steady_window(trained([0.1] * 11))
    assert steady_window(trained([0.1] * 12)) == (100, 111)


def test_two_trainers_steps_are_counted_once() -> None:
    one = trained([0.1] * 12).passages
    two = tuple(Passage("train", 1, each.seq, each.came, each.began, each.ended, each.left) for each in one)
    assert timeline([], split="train").trained() == []
    assert [step.worker for step in Timeline(one + two, {}).trained()] == [0] * 12


intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=30).map(
    lambda pairs: sorted((float(begin), float(begin + length)) for begin, length in pairs)
)


@given(intervals)
def test_lanes_are_as_many_as_lie_over_one_another_and_no_more(stays: list[tuple[float, float]]) -> None:
    chosen = lanes(stays)
    for one, lane in enumerate(chosen):
        for other in range(one):
            if chosen[other] == lane:
                assert stays[other][1] <= stays[one][0]
    most = max((sum(began <= moment < ended for began, ended in stays) for moment, _ in stays), default=0)
    assert max(chosen, default=-1) + 1 == most


def test_a_window_is_two_batch_numbers() -> None:
    assert parse_window("200:211") == (200, 211)
    for wrong in ("200", "200:", "a:b", "211:200", "-1:5", "5:5"):
        with pytest.raises(SettingsError, match="FIRST:LAST"):
            parse_window(wrong)
