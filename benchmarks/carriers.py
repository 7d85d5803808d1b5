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
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.bench import cpu_seconds, make_store, run_command, spread, write_figures
from benchmarks.machine import machine
from fourstage import rundir
from fourstage.arena import Arena, slot_bytes_for
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import draw
from fourstage.augmenter.transform import transform
from fourstage.store import open_store
from fourstage.views import View
from fourstage.wire.codec import decode_body, encode_body
from fourstage.wire.messages import Batch, Beat, Hello, Holds, Lease, Message, Progress, Samples, Times, Usage
from fourstage.wire.sockets import Bound, Dialled, Payload, Waiter

ROWS, CROP = 128, 224
PIXEL_BYTES = ROWS * CROP * CROP * 3
TARGET_GIGABYTES = 1.5
TINY = 8
_STREAM = bytes(16)
_IDENTITY = bytes(16)
_TIMES = Times(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
_DRAWS = bytes(21 * ROWS)
_ON_THE_WAY = 2
_WARM_UP = 5
_LARGEST = 1 << 31


def samples() -> Samples:
    """Of one batch, with keys as long as ImageNet's."""
    keys = tuple(f"n01440764/n01440764_{number:05d}.JPEG" for number in range(ROWS))
    return Samples(indices=bytes(8 * ROWS), labels=bytes(4 * ROWS), keys=keys)


def batch_message(seq: int, slot: int) -> Batch:
    """The BATCH of one batch."""
    return Batch(_STREAM, seq, session=1, number=seq + 1, slot=slot, rows=ROWS, identity=_IDENTITY, times=_TIMES)


class Ends:
    """A ROUTER and a DEALER over a Unix socket, both in this process."""

    def __init__(self, folder: Path) -> None:
        self.bound = Bound(f"ipc://{folder / 'ends'}")
        self.dialled = Dialled(self.bound.address)
        self._at_bound, self._at_dialled = Waiter(), Waiter()
        self._at_bound.add(self.bound)
        self._at_dialled.add(self.dialled)
        hello = Hello(1, "augmenter", bytes(16), 1, "carriers", "0", _IDENTITY)
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
    lease = Lease(_STREAM, seq, 1, seq + 1, head=False, epoch=0, first=0, rows=ROWS, slot=1, sizes=sizes, times=_TIMES)
    passed_on = bytes(ends.down(lease, (packed,))[0])
    arrived = ends.up(batch_message(seq, slot=1), (passed_on, _DRAWS))
    decode_body(Samples, arrived[0])
    ends.up(Progress(_STREAM, seq, (seq,)))
    ends.down(Holds(_STREAM, 1, seq + 1, ()))
    ends.up(Progress(_STREAM, seq + 1, ()))
    ends.up(Beat(seq + 1, ((_STREAM, seq + 1), (_STREAM, seq + 2)), ((_STREAM, 1, 3),), Usage(seq, 1.0, 1.0, 1.0)))


def messages_cost(batches: int) -> float:
    """CPU microseconds of all messages of one batch."""
    with tempfile.TemporaryDirectory() as folder:
        ends = Ends(Path(folder))
        for seq in range(_WARM_UP):
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
    """The next step above ``after`` that the run tells of, and the CPU seconds of its processes at that moment."""
    seen = None
    while run.poll() is None:
        time.sleep(0.005)
        if not (run_dir / rundir.STATUS).is_file():
            continue
        step = int(rundir.read_json(run_dir / rundir.STATUS)["step"])
        if seen is not None and step > max(seen, after):
            listed = rundir.read_json(run_dir / "processes.json")
            cpu = {name.partition("-")[0]: cpu_seconds(entry["pid"]) for name, entry in listed.items()}
            return step, cpu | {"run": cpu_seconds(run.pid)}
        seen = step
    sys.exit(run.communicate()[1])


def send_batches(address: str, batches: int) -> None:
    """The sending process: ``batches`` whole BATCHes, never more than two without a HOLDS."""
    arena = Arena.create(_ON_THE_WAY + 1, slot_bytes_for(PIXEL_BYTES))
    for slot in range(arena.slots):
        arena.slot(slot, PIXEL_BYTES)[:] = bytes([slot]) * PIXEL_BYTES
    packed = encode_body(samples())
    with Dialled(address, server="trainer") as socket:
        waiter = Waiter()
        waiter.add(socket)
        sent = acknowledged = 0
        while acknowledged < batches:
            if sent < min(batches, acknowledged + _ON_THE_WAY):
                pixels = arena.slot(sent % arena.slots, PIXEL_BYTES)
                if socket.send(batch_message(sent, slot=-1), (packed, _DRAWS, pixels)):
                    sent += 1
                    continue
            waiter.wait(0.05)
            while (received := socket.receive()) is not None:
                if isinstance(received[0], Holds):
                    acknowledged = received[0].seen


def inline_rate(batches: int) -> float:
    """10^9 bytes of pixels a second over loopback, from the first batches on."""
    with Bound("tcp://127.0.0.1:0", max_frame=_LARGEST) as bound:
        waiter = Waiter()
        waiter.add(bound)
        sender = multiprocessing.get_context("spawn").Process(
            target=send_batches, args=(bound.address, batches + _WARM_UP)
        )
        sender.start()
        arrived, began = 0, 0.0
        while arrived < batches + _WARM_UP:
            waiter.wait(0.1)
            if not sender.is_alive() and arrived == 0:
                sys.exit("the sending process has ended")
            while (received := bound.receive()) is not None:
                peer, message, payload = received
                if not isinstance(message, Batch) or len(payload[2]) != PIXEL_BYTES:
                    sys.exit(f"no batch: {message}")
                decode_body(Samples, payload[0])
                arrived += 1
                if arrived == _WARM_UP:
                    began = time.perf_counter()
                bound.send(peer, Holds(_STREAM, 1, message.number, ()))
        seconds = time.perf_counter() - began
        sender.join()
    return batches * PIXEL_BYTES / seconds / 1e9


def copy_batches(address: str, batches: int) -> None:
    """The sending process of the bare copy: the pixels of ``batches`` from one memory, two of them on the way."""
    pixels = np.ones(PIXEL_BYTES, np.uint8).data
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as socket:
        socket.connect(address)
        for sent in range(batches + _ON_THE_WAY):
            if sent < batches:
                socket.send(pixels, copy=False)
            if sent >= _ON_THE_WAY:
                socket.recv()
    context.term()


def copy_rate(batches: int) -> float:
    """10^9 bytes a second of the same pixels by plain ZeroMQ over loopback, from the first batches on."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        sender = multiprocessing.get_context("spawn").Process(
            target=copy_batches, args=(f"tcp://127.0.0.1:{port}", batches + _WARM_UP)
        )
        sender.start()
        began = 0.0
        for number in range(1, batches + _WARM_UP + 1):
            while not socket.poll(1000):
                if not sender.is_alive():
                    sys.exit("the sending process has ended")
            if len(socket.recv(copy=False).buffer) != PIXEL_BYTES:
                sys.exit("not the pixels of a batch")
            if number == _WARM_UP:
                began = time.perf_counter()
            socket.send(b"")
        seconds = time.perf_counter() - began
        sender.join()
    context.term()
    return batches * PIXEL_BYTES / seconds / 1e9


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
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), images=20 * ROWS, size=TINY)
        decoding = spread([transform_cost(store, max(1, arguments.batches // 10)) for _ in range(arguments.rounds)])
        processes = processes_cost(store, arguments.rounds, arguments.seconds)
    beyond = spread([sum(entry.values()) - decoding["median"] for entry in processes])
    sent = max(_WARM_UP, arguments.batches // 10)
    copies, inlines = zip(*((copy_rate(sent), inline_rate(sent)) for _ in range(arguments.rounds)), strict=True)
    copy, inline = spread(copies), spread(inlines)
    print(f"{'µs of CPU for a batch of 128':<44}{'median':>9}{'least':>9}{'most':>9}")
    lines = {"messages alone": messages, "draws and decoding of tiny images alone": decoding}
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
