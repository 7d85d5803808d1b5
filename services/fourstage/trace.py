"""The pipeline's timeline in Chrome's trace format, opened by Perfetto (ui.perfetto.dev).

Every process appends events to a file of its own; ``merge`` joins them into one ``trace.json``. Rows are stages,
one line of work per worker. Work is a complete event ("X"); the time in which a batch lies in a stage, worked on
or ready to be taken, is an async event ("b", "e") with the batch's sequence number as its id.

Times are CLOCK_MONOTONIC, which all processes of one host share.
"""

import json
import threading
from pathlib import Path
from typing import Any, TextIO

STAGE_ROWS = {"load": 1, "transform": 2, "copy": 3, "train": 4}
"""Chrome's process number of each stage: the rows appear in flow order."""
TRACE_FOLDER = "trace"


class Trace:
    """Events of one process; without a folder every call is free of effect."""

    def __init__(self, folder: Path | None, worker: str, number: int = 0) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{worker}.jsonl").open("a", encoding="utf-8")
            for stage, row in STAGE_ROWS.items():
                if stage in worker or worker.startswith(_OWNERS[stage]):
                    self._write(name="process_name", ph="M", pid=row, tid=number, ts=0, args={"name": stage})
                    self._write(name="thread_name", ph="M", pid=row, tid=number, ts=0, args={"name": worker})

    def work(self, stage: str, seq: int, began: float, ended: float, stream: str = "train") -> None:
        """A stage worked on a batch. Times in monotonic seconds."""
        if self._file:
            self._write(
                name=f"{stream} {seq}", cat=stage, ph="X", pid=STAGE_ROWS[stage], tid=self._number,
                ts=_micros(began), dur=_micros(ended - began), args={"seq": seq, "stream": stream},
            )  # fmt: skip

    def stay(self, stage: str, seq: int, began: float | None, ended: float | None, stream: str = "train") -> None:
        """A batch lay in a stage, from when it came until the next stage took it. A time that another process knows
        is None here: that process writes it."""
        if self._file:
            common: dict[str, Any] = {
                "name": f"{stream} {seq}", "cat": f"{stage} {stream}", "pid": STAGE_ROWS[stage],
                "tid": self._number, "id": seq, "args": {"seq": seq, "stream": stream, "stage": stage},
            }  # fmt: skip
            for phase, moment in (("b", began), ("e", ended)):
                if moment is not None:
                    self._write(ph=phase, ts=_micros(moment), **common)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, **event: Any) -> None:
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self._lock:
            if self._file:
                self._file.write(line)


_OWNERS = {"load": "loader", "transform": "augmenter", "copy": "trainer", "train": "trainer"}


def merge(folder: Path, out: Path) -> int:
    """Join the files of all processes into one trace; returns the number of events. Torn last lines of killed
    processes are left out."""
    events = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    out.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), "utf-8")
    return len(events)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
