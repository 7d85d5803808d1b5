"""The trainer's own worker: what a loader leases to it goes into an inbox, or is a counted fault."""

from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from fourstage.augmenter.decode import make_decoder
from fourstage.decoding.host import HostDecoder
from fourstage.decoding.taker import JpegTaker
from fourstage.errors import CorruptSampleError, FourstageError, RefusedError
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trace import Passage
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.wire.messages import Gone, Lease, Opened, Stream, Welcome
from fourstage.wire.sockets import Waiter
from tests.fuzz import wires
from tests.fuzz.campaign import Cases
from tests.fuzz.faults import Faults
from tests.fuzz.mutation import Frames, damaged, frames_of, mutated
from tests.fuzz.samples import VIEW, Sayings, drawn, examples, images, made, payload_of, small_store
from tests.fuzz.targets.feed import BATCH, an_open
from tests.pipeline.harness import CROP, SIZE

_BATCHES = 200
_SLOT_BYTES = 1 << 14


class TakerTarget:
    """``JpegTaker.turn``, and the decoder behind it."""

    name: ClassVar[str] = "taker"
    most: ClassVar[int] = 1024

    def __init__(self, folder: Path, dice: Random) -> None:
        self._stack = ExitStack()
        self._store = small_store(folder)
        self._jpegs = images(self._store)
        _, self._clock = self._stack.enter_context(wires.laid(dice))
        telemetry = Telemetry("trainer", MetricsSettings(), "fuzz")
        self._waiter = Waiter()
        self._taker = JpegTaker(
            "ipc://loader", name="decoder", identity=b"i" * 16, slots=3, memory=1 << 20,
            allocate=lambda size: np.empty(size, np.uint8), waiter=self._waiter, telemetry=telemetry,
            trainers="ipc://trainers", security=None,
        )  # fmt: skip
        self._inboxes: dict[bytes, Inbox] = {}
        self._open()
        self._turn()
        self._faults = Faults(telemetry)
        self._decode = HostDecoder(make_decoder("auto"))
        self._out = np.empty((BATCH, CROP, CROP, 3), np.uint8)
        self._payloads: dict[int, list[bytes]] = {}
        self._lent: list[FeedBatch] = []
        self._trained = self._numbers = 0
        self._loader_says: Sayings = [
            (self._lease, 60), (self._stream, 10), (lambda dice, _: (Gone(self._uuid(dice)), ()), 1),
            (lambda _dice, _: (made(Welcome, session=self._taker._link.session, side="/nowhere/at/all"), ()), 2),
            (lambda dice, _: (dice.choice(examples()), ()), 2),
        ]  # fmt: skip

    @property
    def _wire(self) -> wires.Wire:
        return wires.to_loader(self._taker._link)

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            frames = self._message(dice)
            cases.show(frames)
            self._wire.give(frames)
            self._faults.expect(frames)
            if dice.random() < 0.6:
                self._clock.now += dice.choice((0.001, 0.01, 0.3))
                self._turn()
                self._faults.check()
                self._train(dice)

    def worked(self) -> int:
        """Batches that were decoded."""
        return self._trained

    def root(self) -> object:
        return self._taker

    def close(self) -> None:
        self._taker.close()
        self._waiter.close()
        self._stack.close()

    def _turn(self) -> None:
        """Hear everything. A REFUSED instead of the first WELCOME ends a trainer, in words; here it goes on."""
        while True:
            try:
                self._taker.turn(self._clock.now, self._inboxes, lambda _name, times: Passage(times=times))
            except RefusedError:
                continue
            return

    def _open(self) -> None:
        inbox = Inbox(an_open(), lambda: None)
        samples = len(self._store.split("train"))
        opened = made(
            Opened, samples=samples, batches_per_epoch=samples // BATCH, end=_BATCHES, largest_rows=BATCH, size=SIZE,
            classes=self._store.classes,
        )  # fmt: skip
        inbox.open(opened, self._store.statistics.mean)
        self._inboxes = {inbox.spec.stream: inbox}
        self._inbox = inbox

    def _train(self, dice: Random) -> None:
        try:
            batch = self._inbox.next(0.0)
        except FourstageError:
            batch = None
            self._open()
        if batch is not None:
            self._decoded(batch)
            self._inbox.train_on(batch.seq)
            self._lent.append(batch)
        if self._lent and dice.random() < 0.7:
            self._lent.pop(0).release()
            self._inbox.progress()
            self._inbox.released()
        if self._inbox.done:
            self._open()

    def _decoded(self, batch: FeedBatch) -> None:
        from torch import from_numpy

        try:
            self._decode(batch, from_numpy(self._out[: len(batch.keys)]))
        except CorruptSampleError:
            return
        self._trained += 1

    def _uuid(self, dice: Random) -> bytes:
        return self._inbox.spec.stream if dice.random() < 0.98 else dice.randbytes(16)

    def _message(self, dice: Random) -> Frames:
        link = self._taker._link
        if link.welcome is None:
            return frames_of(made(Welcome, session=link.session, side="/nowhere/at/all"))
        message, payload = drawn(dice, self._loader_says)(dice, None)
        return frames_of(message, payload) if dice.random() < 0.7 else mutated(dice, message, payload)

    def _stream(self, dice: Random, _: object) -> tuple[Stream, tuple[bytes, ...]]:
        message: Stream = made(
            Stream, stream=self._uuid(dice), view=VIEW, size=SIZE, seed=5, largest_rows=BATCH, transport="inline",
            slot_bytes=_SLOT_BYTES if dice.random() < 0.98 else dice.choice((0, 1, 2**53)), side="/nowhere/at/all",
        )  # fmt: skip
        return message, ()

    def _lease(self, dice: Random, _: object) -> tuple[Lease, list[bytes]]:
        self._numbers += 1
        info = self._inbox.info
        seq = min(_BATCHES - 1, self._inbox._next + dice.choice((0, 0, 0, 1, 2, 5)))
        if info is None:
            return made(Lease, stream=self._uuid(dice)), []
        if seq not in self._payloads:
            self._payloads[seq] = payload_of(self._store, info, self._inbox.spec, seq)
        place = info.plan.place(seq)
        jpegs = [self._jpegs[index] for index in info.order.indices(seq)]
        payload = [self._payloads[seq][0], b"".join(jpegs)]
        if dice.random() < 0.05:
            payload[1] = damaged(dice, payload[1])
        fields: dict[str, Any] = {
            "skip": () if dice.random() < 0.97 else (dice.randrange(5),),
            "trial": (0, 0) if dice.random() < 0.97 else (0, 2),
        }
        message: Lease = made(
            Lease, stream=self._uuid(dice), seq=seq, session=self._taker._link.session, number=self._numbers,
            epoch=place.epoch, first=place.first, rows=place.rows, slot=-1,
            sizes=np.array([len(jpeg) for jpeg in jpegs], "<u4").tobytes(), **fields,
        )  # fmt: skip
        return message, payload
