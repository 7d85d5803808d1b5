"""Microseconds of CPU that one image costs, and for what.

Each round runs ``fourstage run --recipe drain`` with one augmenter per core and reads what its processes have used
between two steps (from schedstat, children and threads included), then decodes the same images in as many threads:
what is left beyond decoding is the price of order, leases, carriers, stages and proofs. Both keep every core busy, so
both have the same half of whatever cores share.

The second table takes the parts one by one, alone in one thread of this process:

- ``read``: from the page cache into a slot, with checksums
- ``draw``: offsets, reflections and colour shifts
- ``decode``: whole images, nothing else
- ``crop``: the transform of a batch less its decoding: crop or reflection into a slot
- ``messages``: all that is said of a batch, over Unix sockets, written and read on one core (``benchmarks.carriers``)
- ``unpack``: what the trainer checks of a batch that came: samples against the order, labels, draws
- ``digest``: the receipt's, of keys, labels and draws

    python -m benchmarks.cost --store STORE [--rounds 5] [--json FILE]
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bench import next_step, run_command, spread, thread_seconds, write_figures
from benchmarks.carriers import messages_cost
from benchmarks.machine import machine
from benchmarks.pipeline import Images, decode_all
from fourstage import rundir
from fourstage.arena import Arena, slot_bytes_for
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import Draws as Drawn
from fourstage.augmenter.draws import draw
from fourstage.augmenter.transform import scratch_for, transform
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.loader.streams import largest_batch_bytes
from fourstage.order import BatchPlan, Order
from fourstage.store import open_store
from fourstage.trainer.inbox import Draws, FeedBatch, Inbox
from fourstage.trainer.receipt import sample_digests
from fourstage.views import View
from fourstage.wire.codec import encode_body
from fourstage.wire.messages import Batch, Open, Opened, Samples, Times

TARGET_MICROSECONDS = 30.0
ROWS, CROP = 128, 224
_WARM_UP_STEPS = 100
_MESSAGE_BATCHES = 1000
_VIEW = View("random", CROP, colour_std=0.1)


def processes_cost(store: Path, augmenters: int, seconds: float) -> dict[str, float]:
    """Microseconds per image of each process of a run, by the kind of its threads."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        # Every batch has as many images.
        command = run_command(store, run_dir, augmenters, {"remainder": "drop"}, "--epochs", "1000000")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            try:
                before_step, before = _reading(run, run_dir, after=_WARM_UP_STEPS)
                time.sleep(seconds)
                after_step, after = _reading(run, run_dir, after=before_step)
            finally:
                run.terminate()
    images = (after_step - before_step) * ROWS
    return {name: (after[name] - before[name]) / images * 1e6 for name in after}


def _reading(run: "subprocess.Popen[str]", run_dir: Path, *, after: int) -> tuple[int, dict[str, float]]:
    """The next step above ``after``, and the CPU seconds of the run's processes at that moment."""
    step = next_step(run, run_dir, after=after)
    found: dict[str, float] = {"run": sum(thread_seconds(run.pid).values())}
    for name, entry in rundir.read_json(run_dir / "processes.json").items():
        role = name.partition("-")[0]
        for kind, spent in thread_seconds(entry["pid"]).items():
            key = f"{role}, {kind}"
            found[key] = found.get(key, 0.0) + spent
    return step, found


def raw_cost(images: Images, threads: int, count: int) -> float:
    """Microseconds per image of decoding alone, with all threads at it."""
    spent = [0.0] * threads

    def work(number: int) -> None:
        began = time.thread_time()
        decode_all(images, count // threads)
        spent[number] = time.thread_time() - began

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(spent) / (count // threads * threads) * 1e6


class Parts:
    """One batch after another of a store, each part for itself."""

    def __init__(self, path: Path) -> None:
        store = open_store(path)
        split = store.split("train")
        self._size, self._split = store.size, split
        plan = BatchPlan(len(split), ROWS, "drop")
        self._order = Order(plan, seed=0, shuffle=True)
        self._batches = plan.batches_per_epoch
        self._files = ShardFiles()
        self._arena = Arena.create(1, slot_bytes_for(largest_batch_bytes(split, ROWS)))
        self._pixels = Arena.create(3, slot_bytes_for(ROWS * CROP * CROP * 3))
        self._scratch, self._decoder = scratch_for(store.size), make_decoder("auto")
        spec = Open(
            stream=bytes(16), split="train", view=_VIEW, batch_size=ROWS, remainder="drop", shuffle=True, seed=0,
            rank=0, world=1, start=0, epochs=1 << 20, end=0, window=0, fingerprint="", identity=b"", worker=b"",
            on_corrupt="fail", secret=bytes(16),
            transport="arena", receiver="", side="",
        )  # fmt: skip
        self._inbox = Inbox(spec, wake=lambda: None)
        opened = Opened(bytes(16), len(split), self._batches, 1 << 30, ROWS, store.size, store.fingerprint,
                        store.classes, ("train",))  # fmt: skip
        self._inbox.open(opened, store.statistics.mean)
        self._kept: list[FeedBatch] = []

    def __call__(self, seq: int) -> dict[str, float]:
        """CPU seconds of each part for batch ``seq``."""
        indices = self._order.indices(seq)
        sizes = self._split.records["size"][indices].astype("<u4")
        jpeg = self._arena.slot(0, int(sizes.sum()))
        found = {"read": _spent(lambda: read_batch(self._files, ReadJob((b"", seq, 0), self._split, indices, jpeg)))}
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        images = [jpeg[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        first = self._order.plan.place(seq).first

        def draws_of_batch() -> Drawn:
            return draw(_VIEW, size=self._size, seed=0, epoch=0, first=first, rows=ROWS, colours=np.eye(3))

        found["draw"] = _spent(draws_of_batch)
        draws = draws_of_batch()

        def decode() -> None:
            for image in images:
                self._decoder(image, self._scratch)

        out = np.frombuffer(self._pixels.slot(seq % 3, ROWS * CROP * CROP * 3), np.uint8).reshape(ROWS, CROP, CROP, 3)
        found["decode"] = _spent(decode)
        whole = _spent(lambda: transform(images, draws, self._decoder, scratch=self._scratch, out=out))
        found["crop"] = whole - found["decode"]
        samples = encode_body(
            Samples(
                indices.astype("<i8").tobytes(),
                self._split.labels(indices).astype("<i4").tobytes(),
                tuple(self._split.keys(indices)),
            )
        )
        packed = memoryview(Draws(draws.offsets, draws.reflections, draws.shifts).pack())
        message = Batch(bytes(16), seq, 1, seq + 1, seq % 3, ROWS, bytes(16), bytes(16), Times())

        def unpack() -> None:
            payload = [memoryview(samples), packed]
            self._kept = [self._inbox.unpack(message, payload, self._pixels, worker=b"")]

        found["unpack"] = _spent(unpack)
        found["digest"] = _spent(lambda: sample_digests(self._kept[0], b""))
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._kept.clear()
        self._files.close()


def _spent(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def parts_cost(store: Path, batches: int) -> dict[str, dict[str, float]]:
    """Microseconds per image of each part alone."""
    parts = Parts(store)
    found = [parts(seq) for seq in range(batches)]
    parts.close()
    figures = {name: spread([entry[name] / ROWS * 1e6 for entry in found]) for name in found[0]}
    return figures | {"messages": spread([messages_cost(_MESSAGE_BATCHES, one_core=True) / ROWS for _ in range(3)])}


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of 256x256 images")
    parser.add_argument("--augmenters", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one round of the pipeline")
    parser.add_argument("--images", type=int, default=24_000, help="of one round of decoding alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    images = Images(arguments.store)
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        spent = processes_cost(arguments.store, arguments.augmenters, arguments.seconds)
        raw = raw_cost(images, arguments.augmenters, arguments.images)
        whole = sum(spent.values())
        rounds.append(spent | {"all processes": whole, "decoding alone": raw, "beyond decoding": whole - raw})
    parts = parts_cost(arguments.store, batches=60)
    figures = {name: spread([entry[name] for entry in rounds]) for name in rounds[0]}
    print(f"{'µs of CPU per image':<28}{'median':>9}{'least':>9}{'most':>9}")
    for name, values in (figures | {f"{part}, alone": values for part, values in parts.items()}).items():
        print(f"{name:<28}" + "".join(f"{values[key]:>9.1f}" for key in ("median", "least", "most")))
    beyond = statistics.median(entry["beyond decoding"] for entry in rounds)
    verdict = "within" if beyond <= TARGET_MICROSECONDS else "above"
    print(f"beyond decoding {beyond:.1f} µs an image, {verdict} {TARGET_MICROSECONDS:g}")
    write_figures(arguments.json, {"machine": before, "rounds": rounds, "figures": figures, "parts": parts})


if __name__ == "__main__":
    main()
