"""The four stages at work at one time, as the trace shows them."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.harness import CROP, complete_run, fourstage, start_run

STAGES = ("load", "transform", "copy", "train")


def stays(trace: Path) -> dict[str, list[tuple[float, float, int]]]:
    """By stage: when a batch came, when the next stage took it, its number."""
    begun: dict[tuple[str, int], float] = {}
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for event in sorted(json.loads(trace.read_text())["traceEvents"], key=lambda event: (event["ts"], event["ph"])):
        if event["ph"] == "b":
            begun[event["args"]["stage"], event["id"]] = event["ts"]
        elif event["ph"] == "e":
            stage = event["args"]["stage"]
            found[stage].append((begun[stage, event["id"]], event["ts"], event["id"]))
    return found


@pytest.fixture(scope="module")
def traced(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run of 45 steps of a tenth of a second: its summary and directory."""
    run_dir = tmp_path_factory.mktemp("traced") / "run"
    summary = complete_run(
        store, run_dir, "--recipe", "drain", "--augmenters", "2", "--epochs", "3", "--trace", "--set",
        f"augmenter.crop={CROP}", "--set", "batch_size=16", "--set", "train.step_seconds=0.1",
    )  # fmt: skip
    return summary, run_dir


def test_a_slow_device_never_waits_and_four_batches_are_in_four_stages(traced: tuple[dict[str, Any], Path]) -> None:
    summary, run_dir = traced
    assert summary["data_wait_fraction"] <= 0.02
    found = stays(run_dir / "trace.json")
    assert {stage: len(found[stage]) for stage in STAGES} == dict.fromkeys(STAGES, 45)
    # Steady: from the fifth batch on until the loader has read the last one.
    begin = sorted(found["train"])[4][0]
    end = max(begun for begun, _, _ in found["load"])
    at = [begin + (end - begin) * (tick + 0.5) / 2000 for tick in range(2000)]
    ascending = 0
    for moment in at:
        inside = [[seq for begun, ended, seq in found[stage] if begun <= moment < ended] for stage in STAGES]
        train, copy, transform, load = (set(batches) for batches in reversed(inside))
        ascending += any(
            c > t and any(f > c and any(n > f for n in load) for f in transform) for t in train for c in copy
        )
    assert ascending / len(at) >= 0.95


def test_the_trace_opens_in_perfetto(traced: tuple[dict[str, Any], Path]) -> None:
    _, run_dir = traced
    events = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    assert {"M", "X", "b", "e", "s", "t", "f"} == {event["ph"] for event in events}
    for event in events:
        assert isinstance(event["ts"], int)
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
    rows = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert rows == set(STAGES)
    assert not (run_dir / "trace").exists()


def test_a_window_of_a_running_run_is_traced_on_request(store: Path, tmp_path: Path) -> None:
    run = start_run(
        store, tmp_path / "run", "--recipe", "drain", "--epochs", "1000", "--set", f"augmenter.crop={CROP}", "--set",
        "batch_size=16", "--set", "train.step_seconds=0.02",
    )  # fmt: skip
    try:
        run.reach(3)
        asked = fourstage("trace", "--run-dir", str(tmp_path / "run"), "--seconds", "1")
        assert asked.returncode == 0, asked.stderr
        path = tmp_path / "run" / "trace.json"
        assert str(path) in asked.stdout
        events = json.loads(path.read_text())["traceEvents"]
        through = defaultdict(set)
        for event in events:
            if event["ph"] in "stf":
                through[event["args"]["seq"]].add(event["pid"])
        assert len(through) > 5
        assert all(stages == {1, 2, 3, 4} for stages in through.values())
    finally:
        run.process.terminate()
        run.finish()
    assert json.loads(path.read_text())["traceEvents"] == events, "the window stays what it was"
