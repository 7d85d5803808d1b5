"""The timeline: one batch through all four stages, by one clock."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.trace import REQUEST, STAGE_ROWS, TRACE_FOLDER, Passage, Trace, await_trace, events, request_trace
from fourstage.wire.messages import Times

TIMES = Times(read_from=101.0, read_to=102.0, leased=103.0, received=103.5, made_from=104.0, made_to=105.0, sent=105.25)
WAY = Passage("augmenter@far", TIMES, clock_offset=100.0, arrived=5.5, copied_from=6.0, copied_to=7.0, trained_from=8.0,
              trained_to=9.0)  # fmt: skip


def written(run_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    return found


def test_arrows_lead_one_batch_through_the_four_stages_by_the_loader_s_clock() -> None:
    made = events(7, "train", WAY, rank=0, lane=0)
    arrows = [event for event in made if event["ph"] in "stf"]
    assert [(event["ph"], event["pid"], event["ts"]) for event in arrows] == [
        ("s", STAGE_ROWS["load"], 101_000_000), ("t", STAGE_ROWS["transform"], 104_000_000),
        ("t", STAGE_ROWS["copy"], 106_000_000), ("f", STAGE_ROWS["train"], 108_000_000),
    ]  # fmt: skip
    assert len({event["id"] for event in arrows}) == 1
    for arrow in arrows:
        inside = [
            work for work in made
            if work["ph"] == "X" and (work["pid"], work["tid"]) == (arrow["pid"], arrow["tid"])
            and work["ts"] <= arrow["ts"] <= work["ts"] + work["dur"]
        ]  # fmt: skip
        assert len(inside) == 1, "an arrow binds to the work that it lies in"


def test_stages_that_nobody_told_of_are_left_out() -> None:
    way = Passage("", Times(), copied_from=1.0, copied_to=2.0, trained_from=3.0, trained_to=4.0)
    made = events(7, "train", way, rank=1, lane=0)
    assert {event["pid"] for event in made} == {STAGE_ROWS["copy"], STAGE_ROWS["train"]}


def test_reads_that_overlap_lie_in_rows_of_their_own(tmp_path: Path) -> None:
    trace = Trace(tmp_path, always=True)
    for seq, (began, ended) in enumerate([(1.0, 3.0), (2.0, 4.0), (3.5, 5.0)]):
        times = Times(read_from=began, read_to=ended, leased=6.0)
        trace.batch(seq, "train", Passage("augmenter-0", times, copied_to=7.0, trained_to=8.0))
    trace.close()
    reads = [event for event in written(tmp_path) if event["ph"] == "X" and event["cat"] == "load"]
    assert [event["tid"] for event in sorted(reads, key=lambda event: event["args"]["seq"])] == [0, 1, 0]


def test_a_window_is_written_as_soon_as_it_is_over_and_asked_for_once(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).touch()
    trace, now = Trace(tmp_path), time.monotonic()
    trace.turn(now)
    trace.batch(1, "train", WAY)
    assert request_trace(tmp_path, 0.5) == tmp_path / "trace.json"
    trace.turn(now + 1.0)
    trace.batch(2, "train", WAY)
    asked = json.loads((tmp_path / REQUEST).read_text())["until"]
    while time.time() <= asked:
        trace.turn(now + 1.0)
    trace.turn(now + 2.0)
    trace.batch(3, "train", WAY)
    assert {event["args"]["seq"] for event in written(tmp_path) if event["ph"] == "X"} == {2}
    assert {path.name for path in tmp_path.iterdir()} == {rundir.SETTINGS, "trace.json"}


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"until": "now"}', '{"until": null}', f'{{"until": 1{400 * "0"}}}', 100_000 * "["]
)
def test_what_is_no_request_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / REQUEST).write_text(text)
    trace = Trace(tmp_path)
    trace.turn(time.monotonic())
    trace.close()
    assert not (tmp_path / "trace.json").exists()


def test_a_request_needs_a_run_and_a_time(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no run"):
        request_trace(tmp_path, 1.0)
    (tmp_path / rundir.SETTINGS).touch()
    for seconds in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(SettingsError, match="--seconds"):
            request_trace(tmp_path, seconds)


def test_a_run_that_traces_everything_needs_no_request(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).write_text("trace = true\n")
    with pytest.raises(SettingsError, match="begun with --trace"):
        request_trace(tmp_path, 1.0)


def test_a_request_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).touch()
    request_trace(tmp_path, 0.01)
    with pytest.raises(FourstageError, match="no trainer"):
        await_trace(tmp_path, 0.2)
    assert not (tmp_path / REQUEST).exists()


def test_a_timeline_that_was_given_up_was_said_to_be_written(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).touch()
    (tmp_path / "trace.json").write_text("{}")
    os.utime(tmp_path / "trace.json", (1.0, 1.0))
    request_trace(tmp_path, 60.0)
    (tmp_path / TRACE_FOLDER).write_text("")
    other, first = Trace(tmp_path, rank=1), Trace(tmp_path)
    other.turn(time.monotonic())
    assert (tmp_path / REQUEST).exists(), "the first trainer may do better"
    giving_up = threading.Timer(0.2, first.turn, [time.monotonic()])
    giving_up.start()
    with pytest.raises(FourstageError, match="was given up"):
        await_trace(tmp_path, 5.0)
    giving_up.join()
