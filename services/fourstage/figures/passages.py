"""From the events of ``trace.json`` to batches in stages, and to a dozen steps that are worth a picture."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.errors import FourstageError, SettingsError
from fourstage.trace import STAGE_ROWS

STEPS = 12
_STAGES = {row: stage for stage, row in STAGE_ROWS.items()}


@dataclass(frozen=True, slots=True)
class Passage:
    """One batch in one stage. Times in seconds on the trace's own clock."""

    stage: str
    worker: int
    seq: int
    came: float
    began: float
    """Of the work on it."""
    ended: float
    """Of the work: until it leaves, it lies ready for the next stage."""
    left: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The training batches' passages, and the names of the workers by (stage, number)."""

    passages: tuple[Passage, ...]
    workers: Mapping[tuple[str, int], str]

    def trained(self) -> list[Passage]:
        """The first trainer's steps, in order."""
        steps = [passage for passage in self.passages if passage.stage == "train"]
        first = min((step.worker for step in steps), default=0)
        return sorted((step for step in steps if step.worker == first), key=lambda step: step.began)


def read_timeline(path: Path, *, split: str) -> Timeline:
    """Read the ``trace.json`` of a run that trained on ``split``. Raises FourstageError where there is none or it has
    another form."""
    try:
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
        return timeline(events, split=split)
    except FileNotFoundError as error:
        raise FourstageError("the run has no trace.json", hint="train with --trace; it comes at the end") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FourstageError(f"{path} is not a trace of fourstage: {error!r}") from error


def timeline(events: Sequence[Mapping[str, Any]], *, split: str) -> Timeline:
    """Join each piece of work ("X") with the stay around it ("b", "e"), both as ``fourstage.trace`` writes them.

    Of other streams than ``split`` nothing is taken. A batch whose stay was not told leaves as its work ends.
    """
    workers: dict[tuple[str, int], str] = {}
    came: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    left: dict[tuple[str, int], list[float]] = defaultdict(list)
    works: list[tuple[tuple[str, int, int], float, float]] = []
    for event in events:
        stage, number, arguments = _STAGES[event["pid"]], event["tid"], event["args"]
        moment = event["ts"] / 1e6
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                workers[stage, number] = arguments["name"]
            continue
        if arguments["stream"] != split:
            continue
        key = stage, number, arguments["seq"]
        if event["ph"] in "stf":
            continue
        if event["ph"] == "X":
            works.append((key, moment, moment + event["dur"] / 1e6))
        elif event["ph"] == "b":
            came[key].append(moment)
        else:
            left[stage, arguments["seq"]].append(moment)
    passages = []
    for key, began, ended in works:
        stage, number, seq = key
        first = max((moment for moment in came[key] if moment <= began), default=began)
        last = min((moment for moment in left[stage, seq] if moment >= ended), default=ended)
        passages.append(Passage(stage, number, seq, first, began, ended, last))
    return Timeline(tuple(passages), workers)


def steady_window(timeline: Timeline, steps: int = STEPS) -> tuple[int, int]:
    """The first and last batch of ``steps`` consecutive ones that are typical: of all such windows in the middle half
    of the run the one of median duration, so neither the start nor a pause for validation is in it.

    Raises FourstageError where fewer were trained.
    """
    trained = timeline.trained()
    if len(trained) < steps:
        raise FourstageError(f"the trace has {len(trained)} trained batches, the picture shows {steps}")
    starts = range(len(trained) - steps + 1)
    middle = starts[len(starts) // 4 : len(starts) - len(starts) // 4]
    by_duration = sorted(middle, key=lambda start: trained[start + steps - 1].ended - trained[start].began)
    start = by_duration[len(by_duration) // 2]
    return trained[start].seq, trained[start + steps - 1].seq


def parse_window(text: str) -> tuple[int, int]:
    """``FIRST:LAST`` as two batch numbers. Raises SettingsError."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise SettingsError(f"--timeline {text!r}", hint="FIRST:LAST, two batch numbers, for example 200:211")
    return int(first), int(last)


def lanes(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """For each interval, given by ascending beginnings, the first lane whose last interval is over."""
    ends: list[float] = []
    chosen = []
    for began, ended in intervals:
        lane = next((lane for lane, end in enumerate(ends) if end <= began), len(ends))
        ends[lane : lane + 1] = [ended]
        chosen.append(lane)
    return chosen
