"""The timeline of a run in Chrome's trace event format, opened by Perfetto (ui.perfetto.dev).

A batch brings its own history along (``Times`` travel with LEASE and BATCH), so the trainer writes the rows of all
four stages, of all hosts by one clock: the loader's. Work is a complete event ("X") in the row of its worker; the
time in which a batch lies in a stage, worked on or ready to be taken, is an async event ("b", "e"); flow events
("s", "t", "f") are the arrows from one stage's work on a batch to the next one's.
"""

import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.resolve import read_toml
from fourstage.wire.messages import Times

STAGE_ROWS = {"load": 1, "transform": 2, "copy": 3, "train": 4}
"""Chrome's process number of each stage: the rows appear in flow order."""
TRACE_FOLDER = "trace"
REQUEST = "trace-request.json"
LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
_LANES = 64
"""Rows that one trainer's reads may take: they overlap, and Chrome's slices of one row must not."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Passage:
    """One batch from the disk to the end of its step.

    times: of the loader's clock; all others are this process's, and ``clock_offset`` is what to add to them
    """

    worker: str = ""
    times: Times = field(default_factory=Times)
    clock_offset: float = 0.0
    arrived: float = 0.0
    copied_from: float = 0.0
    copied_to: float = 0.0
    trained_from: float = 0.0
    trained_to: float = 0.0

    def age(self, moment: float) -> float | None:
        """Seconds from the beginning of its reading to a moment of this process's clock; None where nobody said."""
        return moment + self.clock_offset - self.times.read_from if self.times.read_from else None


class Trace:
    """What one trainer writes: everything, or a window that was asked for; without a folder nothing."""

    def __init__(self, run_dir: Path | None, *, rank: int = 0, name: str = "trainer", always: bool = False) -> None:
        self._run_dir = run_dir
        self._rank = rank
        self._name = name
        self._always = always
        self._until = float("inf") if always else 0.0
        self._look_at = 0.0
        self._file: TextIO | None = None
        self._named: set[tuple[int, int]] = set()
        self._lane_ends: list[float] = []
        if always:
            with self._or_none():
                self._open()

    def batch(self, seq: int, split: str, passage: Passage) -> None:
        """A batch was trained on, or tested."""
        if self._file is None:
            return
        with self._or_none():
            self._write(self._file, seq, split, passage)

    def _write(self, file: TextIO, seq: int, split: str, passage: Passage) -> None:
        lane = self._lane(passage.times) if passage.times.read_to else 0
        lines = []
        for event in events(seq, split, passage, rank=self._rank, lane=lane):
            row = event["pid"], event["tid"]
            if row not in self._named:
                self._named.add(row)
                lines += names(*row, worker=self._worker(event["pid"], lane, passage.worker))
            lines.append(event)
        file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        file.flush()

    def turn(self, now: float) -> None:
        """Begin a window that was asked for, or end it. now: monotonic seconds."""
        if self._run_dir is None or self._always or now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        with self._or_none():
            self._look(self._run_dir)

    def _look(self, run_dir: Path) -> None:
        if self._file is None:
            self._until = _asked_until(run_dir / REQUEST)
            if time.time() < self._until:
                _log.info("tracing for %.1f s", self._until - time.time())
                self._open()
        elif time.time() > self._until:
            self._close()
            if self._rank == 0:
                self._merge(run_dir)

    def close(self) -> None:
        """The run is over: the first trainer joins what all of them wrote."""
        if self._file is None or self._run_dir is None:
            return
        with self._or_none():
            self._close()
            if self._rank == 0:
                self._merge(self._run_dir)

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        """A timeline that cannot be written is given up: the run is worth more."""
        try:
            yield
        except (OSError, FourstageError) as error:
            _log.warning("the timeline ends here, it cannot be written: %s", error)
            with suppress(OSError):
                self._close()
            self._file = None
            if self._run_dir is not None and self._rank == 0:
                with suppress(OSError):
                    (self._run_dir / REQUEST).unlink(missing_ok=True)

    def _open(self) -> None:
        if self._run_dir is None:
            return
        folder = self._run_dir / TRACE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed trainer wrote belongs to the same run; a window begins anew.
        self._file = (folder / f"{self._name}.jsonl").open("a" if self._always else "w", encoding="utf-8")
        self._named.clear()
        self._lane_ends.clear()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _merge(self, run_dir: Path) -> None:
        count = merge(run_dir / TRACE_FOLDER, run_dir / rundir.TRACE)
        # Whoever asked waits for this.
        (run_dir / REQUEST).unlink(missing_ok=True)
        _log.info("%d events written to %s", count, run_dir / rundir.TRACE)

    def _lane(self, times: Times) -> int:
        ends = self._lane_ends
        lane = next((lane for lane, end in enumerate(ends) if end <= times.read_from), len(ends))
        lane = min(lane, _LANES - 1)
        ends[lane : lane + 1] = [times.read_to]
        return lane

    def _worker(self, row: int, lane: int, worker: str) -> str:
        if row == STAGE_ROWS["load"]:
            return f"loader {lane + 1}" if lane else "loader"
        return worker if row == STAGE_ROWS["transform"] else self._name


def events(seq: int, split: str, passage: Passage, *, rank: int, lane: int) -> list[dict[str, Any]]:
    """All events of one batch. Stages that nobody told of are left out."""
    times, offset = passage.times, passage.clock_offset
    copied, taken = passage.copied_from + offset, passage.trained_from + offset
    transformer = _row_number(passage.worker)
    stages = (
        ("load", rank * _LANES + lane, times.read_from, times.read_from, times.read_to, times.leased),
        ("transform", transformer, times.received, times.made_from, times.made_to, copied),
        ("copy", rank, copied, copied, passage.copied_to + offset, taken),
        ("train", rank, taken, taken, passage.trained_to + offset, passage.trained_to + offset),
    )
    known = [stage for stage in stages if stage[4] > max(offset, 0.0)]
    arguments = {"seq": seq, "stream": split}
    found: list[dict[str, Any]] = []
    for place, (stage, worker, came, began, ended, left) in enumerate(known):
        where = {"pid": STAGE_ROWS[stage], "tid": worker}
        name = f"{split} {seq}"
        found.append(
            {"name": name, "cat": stage, "ph": "X", "ts": _micros(began), "dur": _micros(ended - began), **where}
            | {"args": arguments | ({"sent": times.sent, "received": times.received} if stage == "transform" else {})}
        )
        for phase, moment in (("b", came), ("e", max(left, ended))):
            found.append(
                {"name": name, "cat": f"{stage} {split}", "ph": phase, "id": seq, "ts": _micros(moment), **where}
                | {"args": arguments | {"stage": stage}}
            )
        if len(known) > 1:
            flow = "s" if place == 0 else "f" if place == len(known) - 1 else "t"
            found.append(
                {"name": "batch", "cat": "batch", "ph": flow, "id": f"{split} {seq} of {rank}", "ts": _micros(began)}
                | where
                | ({"bp": "e"} if flow == "f" else {})
                | {"args": arguments}
            )
    return found


def names(row: int, number: int, *, worker: str) -> list[dict[str, Any]]:
    """The events that name a stage's group of rows and one worker's row in it."""
    stage = next(stage for stage, of_stage in STAGE_ROWS.items() if of_stage == row)
    where = {"ph": "M", "pid": row, "tid": number, "ts": 0}
    return [
        {"name": "process_name", **where, "args": {"name": stage}},
        {"name": "process_sort_index", **where, "args": {"sort_index": row}},
        {"name": "thread_name", **where, "args": {"name": worker}},
    ]


def request_trace(run_dir: Path, seconds: float) -> Path:
    """Ask the trainers of a run for a timeline of the next ``seconds``; where it will lie.

    Raises SettingsError for a directory that holds no run, for a run that writes its whole timeline anyway, and for a
    time that makes no sense.
    """
    if not (run_dir / rundir.SETTINGS).is_file():
        raise SettingsError(f"{run_dir} holds no run", hint="name the directory that fourstage run was given")
    if read_toml(run_dir / rundir.SETTINGS).get("trace"):
        raise SettingsError(f"{run_dir} was begun with --trace", hint="trace.json comes when it ends")
    if not 0.0 < seconds <= LONGEST_SECONDS:
        raise SettingsError(f"--seconds {seconds:g}", hint=f"more than 0, at most {LONGEST_SECONDS:g}")
    try:
        rundir.write_json(run_dir / REQUEST, {"until": time.time() + seconds})
    except OSError as error:
        raise SettingsError(f"cannot write to the run directory {run_dir}: {error.strerror}") from error
    return run_dir / rundir.TRACE


def await_trace(run_dir: Path, seconds: float) -> None:
    """Wait until what was asked for is written.

    Raises FourstageError where the trainer could not write it; and, taking the request back, where none has
    ``seconds`` after its end.
    """
    request = run_dir / REQUEST
    deadline, asked = _asked_until(request) + seconds, _changed(request)
    while request.exists():
        if time.time() > deadline:
            request.unlink(missing_ok=True)
            raise FourstageError(f"no trainer of {run_dir} has written a timeline", hint="is the run going on?")
        time.sleep(_LOOK_SECONDS / 5)
    if _changed(run_dir / rundir.TRACE) < asked:
        raise FourstageError(f"the timeline of {run_dir} was given up", hint="the logs of its trainers say why")


def merge(folder: Path, out: Path) -> int:
    """Join the files of all trainers into one trace and remove them; returns the number of events.

    Torn last lines of killed processes are left out.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    found.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    rundir.write_whole(out, json.dumps({"traceEvents": found, "displayTimeUnit": "ms"}), durable=False)
    shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _asked_until(path: Path) -> float:
    """Unix time until which a window was asked for; 0 where none was, or what lies there is no request."""
    try:
        until = json.loads(path.read_bytes())["until"]
        seconds = float(until) if isinstance(until, int | float) else 0.0
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return 0.0
    return min(seconds, time.time() + LONGEST_SECONDS)


def _changed(path: Path) -> int:
    """Nanoseconds; 0 where nothing is there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _row_number(worker: str) -> int:
    """The number in a worker's name, or one made of the whole name: the same in every trainer."""
    digits = worker.partition("@")[0].rpartition("-")[2]
    return int(digits) if digits.isdecimal() and "@" not in worker else zlib.crc32(worker.encode()) & 0xFFFFF


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
