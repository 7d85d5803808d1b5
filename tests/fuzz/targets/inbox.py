"""A stream's books at the trainer: batches that are right, nearly right and wrong, in any order."""

from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from fourstage.arena import Arena, slot_bytes_for
from fourstage.errors import FourstageError, PeerError
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.wire.codec import decode
from fourstage.wire.messages import Batch, Opened
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.mutation import frames_of, mutated
from tests.fuzz.samples import made, payload_of, small_store
from tests.fuzz.targets.feed import an_open, check
from tests.pipeline.harness import CROP

_BATCHES = 300
_SLOTS = 2


class InboxTarget:
    """``Inbox.unpack`` and its order: each batch once, in order, or PeerError."""

    name: ClassVar[str] = "inbox"
    most: ClassVar[int] = 512

    def __init__(self, folder: Path, _dice: Random) -> None:
        self._store = small_store(folder)
        self._theirs = Arena.create(_SLOTS, slot_bytes_for(4 * CROP * CROP * 3))
        self._arena = Arena.attach(self._theirs.duplicate(), _SLOTS, self._theirs.slot_bytes)
        self._payloads: dict[int, list[bytes]] = {}
        self._trained = 0
        self._begin()

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            inbox = self._inbox
            seq = min(_BATCHES - 1, max(0, inbox._next + dice.choice((0, 0, 0, 1, 2, -1, 7))))
            payload = self._payload(dice, seq)
            message: Batch = made(
                Batch, stream=inbox.spec.stream, seq=seq, slot=-1 if len(payload) == 3 else dice.choice((0, 1, 1, 2)),
                rows=len(payload[1]) // 21, identity=b"i" * 16, skipped=(),
            )  # fmt: skip
            frames = frames_of(message, payload) if dice.random() < 0.5 else mutated(dice, message, payload)
            cases.show(frames)
            try:
                self._hear(decode([memoryview(frame) for frame in frames]), [memoryview(frame) for frame in frames[2:]])
            except PeerError:
                continue
            self._take(dice)

    def worked(self) -> int:
        """Batches that were trained on."""
        return self._trained

    def root(self) -> object:
        return self._inbox

    def close(self) -> None:
        self._arena.close()
        self._theirs.close()

    def _begin(self) -> None:
        self._inbox = Inbox(an_open(), lambda: None)
        samples = len(self._store.split("train"))
        opened = made(
            Opened, samples=samples, batches_per_epoch=samples // 4, end=_BATCHES, largest_rows=4,
            size=self._store.size, classes=self._store.classes,
        )  # fmt: skip
        self._inbox.open(opened, self._store.statistics.mean)
        self._expected = 0

    def _hear(self, message: Any, payload: list[memoryview]) -> None:
        if not isinstance(message, Batch) or not self._inbox.is_new(message.seq):
            return
        batch = self._inbox.unpack(message, payload, self._arena, worker=b"w" * 16)
        self._inbox.put(batch)

    def _take(self, dice: Random) -> None:
        inbox = self._inbox
        try:
            batch: FeedBatch | None = inbox.next(0.0)
        except FourstageError:
            return
        if batch is not None:
            if batch.seq != self._expected:
                raise BrokenError(f"batch {batch.seq} came, {self._expected} was next")
            check(batch)
            self._expected += 1
            self._trained += 1
            inbox.train_on(batch.seq)
            batch.release()
        if dice.random() < 0.3:
            inbox.progress()
            inbox.released()
        if inbox.done:
            self._begin()

    def _payload(self, dice: Random, seq: int) -> list[bytes]:
        if self._inbox.info is None:
            return [b"", b""]
        if seq not in self._payloads:
            self._payloads[seq] = payload_of(self._store, self._inbox.info, self._inbox.spec, seq)
        payload = list(self._payloads[seq])
        if dice.random() < 0.05:
            payload[1] = payload[1][:-4] + np.float32(dice.choice((np.nan, -np.inf))).tobytes()
        if dice.random() < 0.5:
            payload.append(bytes(len(payload[1]) // 21 * CROP * CROP * 3))
        return payload
