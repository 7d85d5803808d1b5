"""The trainer's feed: augmenters that lie, a loader that does, and a loop that trains on what comes."""

import contextlib
import os
import socket
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from fourstage.arena import Arena, slot_bytes_for
from fourstage.errors import FourstageError, RefusedError
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.wire import side
from fourstage.wire.messages import Batch, Failed, Hello, Open, Opened, Stages, Welcome
from tests.fuzz import wires
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.faults import Faults
from tests.fuzz.mutation import Frames, damaged, frames_of, mutated
from tests.fuzz.samples import VIEW, Sayings, code_of, drawn, examples, made, payload_of, small_store
from tests.pipeline.harness import CROP

BATCH = 4
_BATCHES = 400
"""Of a stream, then another is opened."""
_CONNECTIONS = 10
_SIDES = 5
_SLOTS = 4
_SLOT_BYTES = slot_bytes_for(BATCH * CROP * CROP * 3)
_REPLAYED = 64


def an_open(**fields: Any) -> Open:
    """A stream of batches of four, of many epochs."""
    spec: Open = made(
        Open, split="train", view=VIEW, batch_size=BATCH, remainder="keep", shuffle=True, seed=5, rank=0, world=1,
        start=0, epochs=100, end=_BATCHES, window=0, fingerprint="", identity=b"", transport="arena", **fields,
    )  # fmt: skip
    return spec


class FeedTarget:
    """``Feed._turn``, without the thread that turns it."""

    name: ClassVar[str] = "feed"
    most: ClassVar[int] = 1 << 13

    def __init__(self, folder: Path, dice: Random) -> None:
        self._stack = ExitStack()
        self._store = small_store(folder)
        laid, self._clock = self._stack.enter_context(wires.laid(dice))
        telemetry = Telemetry("trainer", MetricsSettings(), "fuzz")
        (folder / "sockets").mkdir()
        with patch.object(threading.Thread, "start"):
            self._feed = Feed(
                "ipc://loader", name="trainer", sockets=folder / "sockets", telemetry=telemetry, patience=1e9
            )
        self._wire = laid.open[0]
        self._feed._turn()
        self._faults = Faults(telemetry)
        self._inboxes = [self._feed.open(an_open()) for _ in range(2)]
        self._uuids = [dice.randbytes(16) for _ in range(64)]
        self._sides: list[tuple[socket.socket, Arena]] = []
        self._said: deque[Frames] = deque(maxlen=_REPLAYED)
        self._lent: deque[FeedBatch] = deque()
        self._payloads: dict[int, list[bytes]] = {}
        """By batch: every stream here has the same ones."""
        self._numbers = 0
        self._trained = 0
        self._augmenters_say: Sayings = [(self._batch, 90), (self._hello, 4)]
        self._loader_says: Sayings = [
            (self._opened, 20), (self._stages, 5), (self._welcome, 3), (self._failed, 1),
            (lambda dice, _: (dice.choice(examples()), ()), 5),
        ]  # fmt: skip

    @property
    def _loader(self) -> wires.Wire:
        return wires.to_loader(self._feed._link)

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            loader = dice.random() < 0.1
            wire, frames = (
                (self._loader, self._from_loader(dice)) if loader else (self._wire, self._from_augmenter(dice))
            )
            cases.show(frames)
            wire.give(frames)
            self._faults.expect(frames if loader else frames[1:])
            if dice.random() < 0.6:
                self._clock.now += dice.choice((0.001, 0.01, 0.05))
                wire.full = dice.random() < 0.01
                if dice.random() < 0.01:
                    self._side(dice)
                with contextlib.suppress(RefusedError):
                    # A REFUSED instead of the first WELCOME ends a trainer, in words; here it goes on.
                    self._feed._turn()
                self._faults.check()
                self._train(dice)

    def worked(self) -> int:
        """Batches that were trained on."""
        return self._trained

    def root(self) -> object:
        return self._feed

    def close(self) -> None:
        for connection, arena in self._sides:
            connection.close()
            arena.close()
        self._feed._shut()
        self._stack.close()

    def _train(self, dice: Random) -> None:
        """Take what comes, hold a few, give them back; open another stream where one has ended."""
        if len(refused := self._feed._workers._refused) > 100:
            # As if the run had begun again: PROGRESS names all of them every time.
            refused.clear()
        for number, inbox in enumerate(self._inboxes):
            try:
                batch = inbox.next(0.0) if len(self._lent) < 6 else None
            except FourstageError:
                batch = None
            if batch is not None:
                self._trained += 1
                check(batch)
                inbox.train_on(batch.seq)
                self._lent.append(batch)
            if inbox.done or inbox.error is not None:
                self._feed.end(inbox)
                self._inboxes[number] = self._feed.open(an_open())
        if self._lent and dice.random() < 0.7:
            self._lent.popleft().release()

    # What is said

    def _from_loader(self, dice: Random) -> Frames:
        if self._feed._link.welcome is None:
            # A REFUSED instead of the first WELCOME ends a trainer, as it should.
            return frames_of(made(Welcome, session=self._feed._link.session, side="/nowhere/at/all"))
        message, payload = drawn(dice, self._loader_says)(dice, None)
        return frames_of(message, payload) if dice.random() < 0.6 else mutated(dice, message, payload)

    def _from_augmenter(self, dice: Random) -> Frames:
        connection = dice.randrange(_CONNECTIONS)
        peer = b"connection-%d" % connection if dice.random() < 0.99 else dice.randbytes(5)
        luck = dice.random()
        if luck < 0.05 and self._said:
            return [peer, *dice.choice(self._said)]
        if luck < 0.08:
            return [peer, *mutated(dice, dice.choice(examples()))]
        hello = self._feed._workers._known.get(peer)
        if hello is not None and hello.peer in self._feed._workers._refused:
            # Caught lying: it is started again.
            self._uuids[connection] = dice.randbytes(16)
            hello = None
        if hello is None or luck < 0.1:
            message, payload = self._hello(dice, self._uuids[connection])
        else:
            message, payload = drawn(dice, self._augmenters_say)(dice, hello)
        frames = frames_of(message, payload) if dice.random() < 0.6 else mutated(dice, message, payload)
        self._said.append(frames)
        return [peer, *frames]

    def _hello(self, dice: Random, whose: Any) -> tuple[Hello, tuple[bytes, ...]]:
        uuid = (
            whose
            if isinstance(whose, bytes)
            else dice.choice((whose.peer, dice.choice(self._uuids), dice.randbytes(16)))
        )
        return made(Hello, role="augmenter", peer=uuid, session=dice.randrange(1, 4), identity=b"i" * 16), ()

    def _batch(self, dice: Random, hello: Any) -> tuple[Batch, list[bytes]]:
        inbox = dice.choice(self._inboxes)
        seq = dice.choice(
            (inbox._next, inbox._next, inbox._next + 1, inbox._next + dice.randrange(9), _BATCHES - 1, 2**53)
        )
        seq = min(seq, _BATCHES - 1) if dice.random() < 0.98 else seq
        payload = self._payload(dice, inbox, seq)
        rows = len(payload[1]) // 21
        slot = (
            -1
            if len(payload) == 3
            else dice.choice((0, 1, _SLOTS - 1, _SLOTS, 65_536) if dice.random() < 0.2 else (0, 3))
        )
        self._numbers += 1
        message: Batch = made(
            Batch,
            stream=inbox.spec.stream if dice.random() < 0.99 else dice.randbytes(16),
            seq=seq,
            session=hello.session,
            number=self._numbers,
            slot=slot,
            rows=rows,
            identity=b"i" * 16 if dice.random() < 0.99 else b"j" * 16,
            code=code_of(inbox.spec, seq, hello.peer, payload[0]) if dice.random() < 0.97 else bytes(16),
            skipped=() if dice.random() < 0.97 else tuple(dice.randrange(6) for _ in range(dice.randrange(4))),
        )
        return message, payload

    def _payload(self, dice: Random, inbox: Inbox, seq: int) -> list[bytes]:
        # An OPENED that was bent may be believed: then the stream is of a split that this store does not have.
        if inbox.info is None or inbox.info.opened.samples != len(self._store.split(inbox.spec.split)):
            return [b"", b""]
        seq = seq if dice.random() < 0.97 else seq + 1
        if seq not in self._payloads:
            self._payloads[seq] = payload_of(self._store, inbox.info, inbox.spec, seq)
        payload = list(self._payloads[seq])
        luck = dice.random()
        if luck < 0.03:
            payload[1] = payload[1][:-4] + np.float32(dice.choice((np.nan, np.inf, 1e38))).tobytes()
        elif luck < 0.06:
            payload[0] = damaged(dice, payload[0])
        if dice.random() < 0.6:
            payload.append(bytes(len(payload[1]) // 21 * CROP * CROP * 3 + (0 if dice.random() < 0.97 else 1)))
        return payload

    def _opened(self, dice: Random, _: object) -> tuple[Opened, tuple[bytes, ...]]:
        size = self._store.size
        opened: Opened = made(
            Opened,
            stream=dice.choice(self._inboxes).spec.stream if dice.random() < 0.95 else dice.randbytes(16),
            samples=len(self._store.split("train")),
            batches_per_epoch=9,
            end=_BATCHES,
            largest_rows=BATCH,
            size=size,
            fingerprint=self._store.fingerprint if dice.random() < 0.99 else "",
            classes=self._store.classes,
            splits=("train",),
        )
        return opened, (self._store.statistics.mean.astype("<f4").tobytes(),)

    def _stages(self, _dice: Random, _: object) -> tuple[Stages, tuple[bytes, ...]]:
        return made(Stages), ()

    def _welcome(self, dice: Random, _: object) -> tuple[Welcome, tuple[bytes, ...]]:
        session = self._feed._link.session - (dice.random() < 0.1)
        return made(Welcome, peer=dice.choice(self._uuids[:2]), session=max(0, session), side="/nowhere/at/all"), ()

    def _failed(self, dice: Random, _: object) -> tuple[Failed, tuple[bytes, ...]]:
        return Failed(dice.choice(self._inboxes).spec.stream, 0, dice.choice((-1, 0, 65_536)), "no\nmore"), ()

    def _side(self, dice: Random) -> None:
        """An augmenter hands an arena over, or one dies."""
        if len(self._sides) >= _SIDES:
            connection, arena = self._sides.pop(dice.randrange(_SIDES))
            connection.close()
            arena.close()
            return
        introduced = side.connect(os.fspath(self._feed._door.path), 0.0)
        if introduced is None:
            return
        arena = Arena.create(_SLOTS, _SLOT_BYTES)
        packet = side.Packet(
            dice.choice(self._uuids[:_CONNECTIONS]), dice.choice(self._inboxes).spec.stream, _SLOTS, _SLOT_BYTES
        )
        side.send(introduced, packet, arena.descriptor)
        self._sides.append((introduced, arena))


def check(batch: FeedBatch) -> None:
    """BrokenError for a batch that training could not use, whoever has sent it."""
    rows = len(batch.keys)
    if (
        batch.pixels.shape[1:] != (CROP, CROP, 3)
        or len(batch.pixels) > rows
        or (batch.arena and batch.pixels.flags.writeable)
    ):
        raise BrokenError(f"pixels {batch.pixels.shape} for {rows} rows")
    if len(batch.labels) and not 0 <= batch.labels.min() <= batch.labels.max() < 3:
        raise BrokenError(f"labels {batch.labels}")
    if not np.isfinite(batch.shifts).all():
        raise BrokenError(f"colour shifts {batch.shifts}")
    batch.pixels.sum()
