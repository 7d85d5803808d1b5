"""What does a lease cost the loader, with ten augmenters and with five hundred?

A real ``fourstage loader``, and a process that plays augmenters and trainers (``benchmarks.players``): every one a
connection of its own over TCP that speaks the whole protocol, but decodes nothing. Batches are of one tiny image,
because reading is paid for by the image and what is asked here is what a batch costs: books, messages, heartbeats.
Transport is inline without side connections, as with augmenters on other hosts, where hundreds of them are; of so few
bytes it costs what a slot's number does.

Two loads for each number of augmenters and streams: ``paced``, in which augmenters take so long that some ``--rate``
leases a second flow, and ``full``, in which a batch is done as soon as it is leased. CPU is the loader's own of all
its threads (of that its main one's; the rest is reading and ZeroMQ's), memory its proportional set
(PSS) after the first window and after the last: what grew with load grew before.

    python -m benchmarks.scheduler [--augmenters 10,100,500] [--streams 1,4,16] [--rounds 3] [--json FILE]
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import cpu_seconds, make_store, spread, thread_seconds, write_figures
from benchmarks.machine import machine
from benchmarks.memory import proportional_set
from fourstage.loader.streams import MOST_SLOTS

TARGET_MICROSECONDS = 200.0
LOADS = ("paced", "full")
"""In this order: players whose work takes no time any more are not told to slow down again."""
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment: leases so far, and CPU seconds so far of the loader and of the players."""

    at: float
    leases: int
    loader: dict[str, float]
    """By kind of thread."""
    players: float


def between(before: Reading, after: Reading) -> dict[str, float]:
    """Rates between two moments."""
    seconds, leases = after.at - before.at, after.leases - before.leases
    spent = {kind: after.loader[kind] - before.loader[kind] for kind in after.loader}
    return {
        "leases_per_second": leases / seconds,
        "microseconds_per_lease": sum(spent.values()) * 1e6 / max(1, leases),
        "loader_busy": sum(spent.values()) / seconds,
        "players_busy": (after.players - before.players) / seconds,
    } | {f"microseconds_{kind}": cpu * 1e6 / max(1, leases) for kind, cpu in spent.items()}


def work_seconds(augmenters: int, streams: int, rate: float) -> float:
    """How long a batch takes where ``rate`` leases a second are to flow: as many are made at one time as there are
    augmenters, or JPEG slots."""
    return min(augmenters, streams * MOST_SLOTS) / rate


class Stage:
    """A loader and its players."""

    def __init__(self, loader: "subprocess.Popen[bytes]", players: "subprocess.Popen[str]") -> None:
        self.loader = loader
        self.players = players

    def ask(self, words: str = "") -> dict[str, Any]:
        """What the players say of themselves. words: an instruction to them."""
        if self.players.stdin is None or self.players.stdout is None:
            raise RuntimeError("the players have no pipes")
        self.players.stdin.write(f"{words}\n")
        self.players.stdin.flush()
        answer = self.players.stdout.readline()
        if not answer or self.loader.poll() is not None:
            sys.exit("the loader or its players have ended")
        told: dict[str, Any] = json.loads(answer)
        return told

    def read(self) -> Reading:
        """This moment."""
        leases = int(self.ask()["leases"])
        return Reading(time.monotonic(), leases, thread_seconds(self.loader.pid), cpu_seconds(self.players.pid))


@contextmanager
def staged(store: Path, folder: Path, augmenters: int, streams: int, *, rows: int, work: float) -> Iterator[Stage]:
    """A loader with all its peers connected and every stream open."""
    announced = folder / "loader.json"
    announced.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "fourstage", "loader", "--store", os.fspath(store), "--announce", os.fspath(announced),
        "--set", "loader.address=tcp://127.0.0.1:0", "--set", f"sockets={folder}",
    ]  # fmt: skip
    with (folder / "loader.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as loader:
        try:
            _await(announced.is_file, "the loader is up")
            address = json.loads(announced.read_text())["address"]
            play = [
                sys.executable, "-m", "benchmarks.players", "--loader", address, "--augmenters", str(augmenters),
                "--streams", str(streams), "--rows", str(rows), "--work", str(work),
            ]  # fmt: skip
            with subprocess.Popen(play, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as players:
                try:
                    stage = Stage(loader, players)
                    _await(lambda: bool(stage.ask()["ready"]), "everybody is connected")
                    yield stage
                finally:
                    players.terminate()
        finally:
            loader.terminate()


def _await(probe: Any, what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not probe():
        if time.monotonic() > deadline:
            sys.exit(f"not within {_START_SECONDS:.0f} s: {what}")
        time.sleep(0.05)


def measure(
    store: Path,
    augmenters: int,
    streams: int,
    *,
    rows: int,
    rate: float,
    rounds: int,
    seconds: float,
    loads: Sequence[str] = LOADS,
) -> list[dict[str, Any]]:
    """Some loads, or both, of one pair of numbers."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        work = work_seconds(augmenters, streams, rate)
        with staged(store, Path(folder), augmenters, streams, rows=rows, work=work) as stage:
            for load in loads:
                stage.ask("work 0" if load == "full" else "")
                time.sleep(max(1.0, 1.5 * work if load == "paced" else 0.0))
                memory, readings = [], [stage.read()]
                for _ in range(rounds):
                    time.sleep(seconds)
                    readings.append(stage.read())
                    memory.append(proportional_set(stage.loader.pid)["Pss"])
                windows = [between(*pair) for pair in itertools.pairwise(readings)]
                figures = {name: spread([window[name] for window in windows]) for name in windows[0]}
                leases = readings[-1].leases - readings[0].leases
                found.append(
                    {"augmenters": augmenters, "streams": streams, "load": load, "pss_bytes": memory, "leases": leases}
                    | figures
                )
    return found


def show(entry: dict[str, Any]) -> str:
    """One line of the table."""
    cost = entry["microseconds_per_lease"]
    before, after = entry["pss_bytes"][0] / 1e6, entry["pss_bytes"][-1] / 1e6
    return (
        f"{entry['augmenters']:>10}{entry['streams']:>8} {entry['load']:<6}"
        f"{entry['leases_per_second']['median']:>9,.0f}{cost['median']:>10,.0f}"
        f"{cost['least']:>8,.0f}{cost['most']:>8,.0f}{entry['microseconds_main']['median']:>8,.0f}{entry['loader_busy']['median']:>8.0%}"
        f"{entry['players_busy']['median']:>9.0%}{before:>9.1f}{after:>7.1f}"
    )


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--augmenters", default="10,100,500", help="numbers of augmenters")
    parser.add_argument("--streams", default="1,4,16", help="numbers of streams, each with a trainer of its own")
    parser.add_argument("--rows", type=int, default=1, help="images of a batch")
    parser.add_argument("--rate", type=float, default=500.0, help="leases a second of the paced load")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each measurement")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each window")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    found: list[dict[str, Any]] = []
    print(f"{'augmenters':>10}{'streams':>8} {'load':<6}{'leases/s':>9}{'µs/lease':>10}{'least':>8}{'most':>8}"
          f"{'main':>8}{'loader':>8}{'players':>9}{'MB':>9}{'after':>7}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), images=1024, size=8)
        for augmenters in map(int, arguments.augmenters.split(",")):
            for streams in map(int, arguments.streams.split(",")):
                for entry in measure(
                    store, augmenters, streams,
                    rows=arguments.rows, rate=arguments.rate, rounds=arguments.rounds, seconds=arguments.seconds,
                ):  # fmt: skip
                    found.append(entry)
                    print(show(entry), flush=True)
    worst = max(found, key=lambda entry: float(entry["microseconds_per_lease"]["median"]))
    cost = worst["microseconds_per_lease"]["median"]
    verdict = "at most" if cost <= TARGET_MICROSECONDS else "more than"
    print(f"the dearest lease costs {cost:,.0f} µs, {verdict} {TARGET_MICROSECONDS:.0f}")
    write_figures(arguments.json, {"machine": before, "target_microseconds": TARGET_MICROSECONDS, "loads": found})


if __name__ == "__main__":
    main()
