"""One measurement after another, each for its share of the time."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from fourstage.arena import slot_bytes_for
from fourstage.engine.cores import Cores
from fourstage.errors import FourstageError, SettingsError
from fourstage.probe.measure_memory import available_bytes, copies
from fourstage.probe.measure_reading import ReadingBench
from fourstage.probe.plan import Measured, Work
from fourstage.probe.team import Team, Worker
from fourstage.probe.windows import spread
from fourstage.settings import Settings
from fourstage.store import Store, open_store
from fourstage.wire.codec import MAX_BODY

ProgressCallback = Callable[[int, str], None]
"""Told the number of a measurement, from 0, and what it is."""

_STEPS = (
    ("transform on one core", 0.30),
    ("transform on all cores", 0.25),
    ("reading, cold", 0.15),
    ("reading, from the page cache", 0.10),
    ("copying memory", 0.05),
    ("loopback, inline", 0.15),
)
"""What is measured, and its share of the time."""
STEPS = len(_STEPS) + 1
_LEAST_SECONDS = 0.1
_SLOT_BYTES = 64 << 20
"""Larger slots are measured in part: a batch of the largest would not fit into small machines several times."""


def probe(path: Path, settings: Settings, seconds: float, progress: ProgressCallback) -> Measured:
    """Measure this machine with a store for about ``seconds``.

    Raises SettingsError for a crop larger than the images, StoreError for what is wrong with the store, FourstageError
    where a measuring process ends.
    """
    until = time.monotonic() + seconds
    store = open_store(path)
    cores, work = Cores(), _work(store, settings)
    available = available_bytes()
    rows = _rows(work, available // cores.usable)
    pace = _Pace(until, progress)
    pace.say(0, f"starting {cores.usable + 1} processes")
    with Team(cores.usable + 1) as team:
        *transformers, receiver = team.workers
        for number, worker in enumerate(transformers):
            plain = settings.model_dump(mode="json", exclude_none=True)
            worker.tell("prepare", store=os.fspath(path), settings=plain, rows=rows, number=number)
        for worker in transformers:
            worker.answer()
        others = _Others(cores)
        one = _transform(transformers[:1], pace.next(), others, decode=True)[0]
        all_cores = _transform(transformers, pace.next(), others, decode=False)
        others_used = others.cores()
        with closing(ReadingBench(store.split(settings.train_split), settings)) as bench:
            cold = bench.cold(pace.next())
            warm = bench.warm(pace.next())
        first_touch, copy = copies(work.slots, slot_bytes_for(rows * work.pixel_bytes), pace.next())
        loopback = _loopback(transformers[0], receiver, work, rows, pace.next())
    windows = zip(*(answer["image_seconds"] for answer in all_cores), strict=True)
    return Measured(
        work=work,
        cores=cores.usable,
        image_seconds=spread(one["image_seconds"]),
        image_cpu_seconds=one["image_cpu_seconds"],
        decode_seconds=spread(one["decode_seconds"]),
        together=spread([sum(1.0 / image for image in window) for window in windows]),
        cold=cold,
        warm=warm,
        first_touch=first_touch,
        copy=copy,
        loopback=spread(loopback),
        available_bytes=available,
        others=others_used,
        machine_cores=len(os.sched_getaffinity(0)),
    )


class _Pace:
    """Hands out what is left of the time by the shares of what is left to do."""

    def __init__(self, until: float, progress: ProgressCallback) -> None:
        self._until = until
        self._progress = progress
        self._step = 0

    def next(self) -> float:
        """Begin the next measurement: its seconds."""
        name, share = _STEPS[self._step]
        left = sum(later for _, later in _STEPS[self._step :])
        self._step += 1
        self.say(self._step, name)
        return max(_LEAST_SECONDS, (self._until - time.monotonic()) * share / left)

    def say(self, number: int, what: str) -> None:
        self._progress(number, what)


class _Others:
    """Cores that were neither idle nor used by the measurement."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._count = len(os.sched_getaffinity(0))
        self._began = time.monotonic()
        self._idle = cores.idle_seconds(self._began)[0]
        self._own = time.process_time()
        self.of_workers = 0.0

    def cores(self) -> float:
        """On average since the beginning."""
        now = time.monotonic()
        elapsed = now - self._began
        idle = self._cores.idle_seconds(now)[0] - self._idle
        own = time.process_time() - self._own + self.of_workers
        return max(0.0, self._count - (idle + own) / elapsed)


def _transform(workers: list[Worker], seconds: float, others: _Others, *, decode: bool) -> list[dict[str, Any]]:
    for worker in workers:
        worker.tell("transform", seconds=seconds, decode=decode)
    answers = [worker.answer(seconds) for worker in workers]
    others.of_workers += sum(answer["cpu_seconds"] for answer in answers)
    return answers


def _loopback(sender: Worker, receiver: Worker, work: Work, rows: int, seconds: float) -> list[float]:
    """The last measurement: the sender goes on until its end."""
    receiver.tell("receive", seconds=seconds, largest=max(MAX_BODY, rows * work.pixel_bytes))
    address = receiver.answer()["address"]
    sender.tell("send", address=address, rows=rows, pixel_bytes=work.pixel_bytes, slots=work.slots)
    rates: list[float] = receiver.answer(seconds)["rates"]
    if not rates:
        raise FourstageError("no batch came through TCP on 127.0.0.1", hint="is loopback up, and open to processes?")
    return rates


def _work(store: Store, settings: Settings) -> Work:
    crop = settings.augmenter.crop
    if crop > store.size:
        raise SettingsError(
            f"augmenter.crop = {crop} is larger than the store's images of {store.size}x{store.size}",
            hint=f"--set augmenter.crop={store.size} or less",
        )
    split = store.split(settings.train_split)
    streams = [settings.batch_size]
    if settings.validation_split in store.splits:
        streams.append(settings.validation_batch or settings.batch_size)
    slot_bytes = [slot_bytes_for(3 * crop * crop * rows) for rows in streams]
    slots = [min(settings.augmenter.slots + 1, settings.augmenter.memory // size) for size in slot_bytes]
    if not all(slots):
        raise SettingsError(
            f"augmenter.memory = {settings.augmenter.memory} is too small for one batch of {max(slot_bytes)} bytes",
            hint="raise it or lower batch_size",
        )
    return Work(
        batch_size=settings.batch_size,
        crop=crop,
        stored_size=store.size,
        images=len(split),
        jpeg_bytes=float(split.records["size"].mean()),
        arena_bytes=sum(count * size for count, size in zip(slots, slot_bytes, strict=True)),
        slots=slots[0],
        threads=settings.loader.threads,
        inline=settings.transport == "inline",
    )


def _rows(work: Work, memory: int) -> int:
    """Rows of the slots that are measured with: those of a batch, where a process has memory enough for them."""
    most = min(_SLOT_BYTES, memory // (4 * work.slots))
    return max(1, min(work.batch_size, most // work.pixel_bytes))
