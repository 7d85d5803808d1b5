"""What does it cost to carry a batch, besides decoding it?

Three measurements, 128 rows each:

- ``messages``: one process says all that is said of a batch over real Unix sockets and reads it again: LEASE with 128
  keys and sizes, BATCH with samples and draws, HOLDS, two PROGRESS, BEAT. CPU of all its threads: encoding, sending,
  receiving, checking every field, and nothing else.
- ``processes``: a real ``fourstage run --recipe drain``, by arena, of images so small that decoding them takes next to
  nothing; what ``transform`` takes for the same batches is measured alone and taken off. What is left is messages and
  the books at each end, reading and checksums, receipt and steps. Nobody but the augmenter touches pixels that go by
  arena, so the size of a slot changes nothing.
- ``inline``: bytes a second of BATCHes of 224x224 pixels from one process to another over loopback, from an arena, with
  a HOLDS for each and two on the way, as an augmenter and a trainer on two hosts would. Beside it the same bytes by
  plain ZeroMQ sockets, with an empty answer for each.

    python -m benchmarks.carriers [--rounds 5] [--json FILE]
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import cpu_seconds, make_store, next_step, run_command, spread, write_figures
from benchmarks.loopback import (
    DRAWS,
    IDENTITY,
    ROWS,
    STREAM,
    TIMES,
    WARM_UP,
    batch_message,
    copy_rate,
    inline_rate,
    samples,
)
from benchmarks.machine import machine
from fourstage import rundir
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import draw
from fourstage.augmenter.transform import transform
from fourstage.store import open_store
from fourstage.views import View
from fourstage.wire.codec import decode_body, encode_body
from fourstage.wire.messages import Beat, Hello, Holds, Lease, Message, Progress, Samples, Usage
from fourstage.wire.sockets import Bound, Dialled, Payload, Waiter

TARGET_GIGABYTES = 1.5
TINY = 8


class Ends:
    """A ROUTER and a DEALER over a Unix socket, both in this process."""

    def __init__(self, folder: Path) -> None:
        self.bound = Bound(f"ipc://{folder / 'ends'}")
        self.dialled = Dialled(self.bound.address)
        self._at_bound, self._at_dialled = Waiter(), Waiter()
        self._at_bound.add(self.bound)
        self._at_dialled.add(self.dialled)
        hello = Hello(1, "augmenter", bytes(16), 1, "carriers", "0", IDENTITY)
        while not self.dialled.send(hello):
            time.sleep(0.01)
        self.peer = self._receive_up()[0]

    def up(self, message: Message, payload: tuple[bytes, ...] = ()) -> list[Payload]:
        """From the one that dials to the one that binds; what arrives of the payload."""
        self.dialled.send(message, payload)
        return self._receive_up()[1]

    def down(self, message: Message, payload: tuple[bytes, ...] = ()) -> list[Payload]:
        """The other way."""
        self.bound.send(self.peer, message, payload)
        while (received := self.dialled.receive()) is None:
            self._at_dialled.wait(1.0)
        return received[1]

    def close(self) -> None:
        """Both ends."""
        self.dialled.close()
        self.bound.close()

    def _receive_up(self) -> tuple[bytes, list[Payload]]:
        while (received := self.bound.receive()) is None:
            self._at_bound.wait(1.0)
        return received[0], received[2]


def carry(ends: Ends, seq: int) -> None:
    """All that is said of one batch, one after another."""
    packed = encode_body(samples())
    sizes = bytes(4 * ROWS)
    lease = Lease(
        STREAM,
        seq,
        1,
        seq + 1,
        head=False,
        epoch=0,
        first=0,
        rows=ROWS,
        slot=1,
        sizes=sizes,
        code=bytes(16),
        times=TIMES,
    )
    passed_on = bytes(ends.down(lease, (packed,))[0])
    arrived = ends.up(batch_message(seq, slot=1), (passed_on, DRAWS))
    decode_body(Samples, arrived[0])
    ends.up(Progress(STREAM, seq, (seq,)))
    ends.down(Holds(STREAM, 1, seq + 1, ()))
    ends.up(Progress(STREAM, seq + 1, ()))
    ends.up(
        Beat(
            seq + 1,
            ((STREAM, seq + 1, bytes(16)), (STREAM, seq + 2, bytes(16))),
            ((STREAM, 1, 3),),
            Usage(seq, 1.0, 1.0, 1.0),
        )
    )


def messages_cost(batches: int, *, one_core: bool = False) -> float:
    """CPU microseconds of all messages of one batch. one_core: all threads share one, as where every core decodes;
    elsewhere each message wakes an idle core, which in a virtual machine costs more than the message."""
    cores = os.sched_getaffinity(0)
    if one_core:
        os.sched_setaffinity(0, {min(cores)})
    try:
        return _messages_cost(batches)
    finally:
        os.sched_setaffinity(0, cores)


def _messages_cost(batches: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        ends = Ends(Path(folder))
        for seq in range(WARM_UP):
            carry(ends, seq)
        began = time.process_time()
        for seq in range(batches):
            carry(ends, seq)
        spent = time.process_time() - began
        ends.close()
    return spent / batches * 1e6


def transform_cost(store: Path, batches: int) -> float:
    """CPU microseconds of drawing and decoding one batch of the store."""
    split = open_store(store).split("train")
    data = split.shards[0].read_bytes()
    starts = [(int(record["offset"]), int(record["size"])) for record in split.records[:ROWS]]
    images = [memoryview(data)[offset : offset + size] for offset, size in starts]
    decoder = make_decoder("auto")
    scratch, out = np.empty((TINY, TINY, 3), np.uint8), np.empty((ROWS, TINY, TINY, 3), np.uint8)
    began = time.process_time()
    for _ in range(batches):
        draws = draw(View("random", TINY, colour_std=0.1), size=TINY, seed=0, epoch=0, first=0, rows=ROWS,
                     colours=np.eye(3))  # fmt: skip
        transform(images, draws, decoder, scratch=scratch, out=out)
    return (time.process_time() - began) / batches * 1e6


def processes_cost(store: Path, rounds: int, seconds: float) -> list[dict[str, float]]:
    """CPU microseconds per batch of each process of a run, ``rounds`` times."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        settings: dict[str, object] = {"batch_size": ROWS, "augmenter.crop": TINY, "remainder": "drop"}
        command = run_command(store, run_dir, 1, settings, "--epochs", "1000000")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            try:
                step, before = reading(run, run_dir, after=50)
                for _ in range(rounds):
                    time.sleep(seconds)
                    later, after = reading(run, run_dir, after=step)
                    found.append({name: (after[name] - before[name]) / (later - step) * 1e6 for name in after})
                    step, before = later, after
            finally:
                run.terminate()
    return found


def reading(run: "subprocess.Popen[str]", run_dir: Path, *, after: int) -> tuple[int, dict[str, float]]:
    """The next step above ``after``, and the CPU seconds of the run's processes at that moment."""
    step = next_step(run, run_dir, after=after)
    listed = rundir.read_json(run_dir / "processes.json")
    cpu = {name.partition("-")[0]: cpu_seconds(entry["pid"]) for name, entry in listed.items()}
    return step, cpu | {"run": cpu_seconds(run.pid)}


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1000, help="of one round of messages; a tenth of them inline")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round of processes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    messages = spread([messages_cost(arguments.batches) for _ in range(arguments.rounds)])
    on_one = spread([messages_cost(arguments.batches, one_core=True) for _ in range(arguments.rounds)])
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), images=20 * ROWS, size=TINY)
        decoding = spread([transform_cost(store, max(1, arguments.batches // 10)) for _ in range(arguments.rounds)])
        processes = processes_cost(store, arguments.rounds, arguments.seconds)
    beyond = spread([sum(entry.values()) - decoding["median"] for entry in processes])
    sent = max(WARM_UP, arguments.batches // 10)
    copies, inlines = zip(*((copy_rate(sent), inline_rate(sent)) for _ in range(arguments.rounds)), strict=True)
    copy, inline = spread(copies), spread(inlines)
    print(f"{'µs of CPU for a batch of 128':<44}{'median':>9}{'least':>9}{'most':>9}")
    lines = {
        "messages alone": messages,
        "messages alone, on one core": on_one,
        "draws and decoding of tiny images alone": decoding,
    }
    lines |= {f"  {name}": spread([entry[name] for entry in processes]) for name in processes[0]}
    for name, figures in (lines | {"all processes but draws and decoding": beyond}).items():
        print(f"{name:<44}" + "".join(f"{figures[key]:>9,.0f}" for key in ("median", "least", "most")))
    verdict = "at least" if inline["median"] >= TARGET_GIGABYTES else "less than"
    print(f"inline over loopback {inline['median']:.2f} GB/s ({inline['least']:.2f} to {inline['most']:.2f}), "
          f"{verdict} {TARGET_GIGABYTES}; plain ZeroMQ {copy['median']:.2f}, "
          f"ratio {inline['median'] / copy['median']:.2f}")  # fmt: skip
    names = list(processes[0])
    told: dict[str, Any] = {
        "machine": before,
        "messages_microseconds": messages,
        "messages_on_one_core_microseconds": on_one,
        "decoding_microseconds": decoding,
        "processes_microseconds": {n: statistics.median(entry[n] for entry in processes) for n in names},
        "rounds": processes,
        "beyond_decoding_microseconds": beyond,
        "inline_gigabytes_per_second": inline,
        "plain_gigabytes_per_second": copy,
    }
    write_figures(arguments.json, told)


if __name__ == "__main__":
    main()
