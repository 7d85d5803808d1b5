"""The relay between two columns: frames of a byte stream, arenas beside them, and the inbox that they fill."""

import contextlib
import itertools
import socket
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fourstage.arena import Arena, slot_bytes_for
from fourstage.errors import CorruptSampleError, FourstageError
from fourstage.trainer.inbox import FeedBatch, StreamInfo
from fourstage.trainer.relay.channel import _HEAD, ARENA, Channel
from fourstage.trainer.relay.relayed import RelayedInbox
from fourstage.wire.messages import Batch, Close, Failed, Opened
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.mutation import Frames, damaged, frames_of, mutated
from tests.fuzz.samples import examples, made, payload_of, small_store
from tests.fuzz.targets.feed import an_open, check
from tests.fuzz.targets.side import descriptors, open_descriptors
from tests.pipeline.harness import CROP

_BATCHES = 100
_MOST_PARTS = 6


class RelayTarget:
    """``Channel.receive`` and ``RelayedInbox``: batches, or an error that ends the run in words."""

    name: ClassVar[str] = "relay"
    most: ClassVar[int] = 512

    def __init__(self, folder: Path, _dice: Random) -> None:
        self._store = small_store(folder)
        self._payloads: dict[int, list[bytes]] = {}
        self._info: StreamInfo | None = None
        self._arena = Arena.create(2, slot_bytes_for(4 * CROP * CROP * 3))
        self._trained = 0
        self._count = open_descriptors()
        self._begin()

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            frames, wanted = self._frames(dice)
            cases.show(frames)
            data = self._packed(dice, frames)
            with self._descriptors(dice, wanted) as sent, contextlib.suppress(OSError):
                socket.send_fds(self._theirs, [data], sent)
            self._take(dice)

    def worked(self) -> int:
        """Batches that were trained on."""
        return self._trained

    def root(self) -> object:
        return self._inbox

    def close(self) -> None:
        self._end()
        self._arena.close()

    def _begin(self) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._theirs.setblocking(False)
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._inbox = RelayedInbox(Channel(ours, "the other trainer", descriptors=True), an_open())
        self._opened = False
        self._known = False
        self._lent: list[FeedBatch] = []

    def _end(self) -> None:
        for batch in self._lent:
            batch.release()
        self._theirs.close()
        self._inbox.close()
        if (now := open_descriptors()) != self._count:
            raise BrokenError(f"{now} descriptors are open, there were {self._count}")

    def _take(self, dice: Random) -> None:
        try:
            if not self._opened:
                with contextlib.suppress(TimeoutError):
                    self._info = self._inbox.opened(0.0)
                    self._opened = True
            elif (batch := self._inbox.next(0.0)) is not None:
                check(batch)
                self._trained += 1
                self._inbox.train_on(batch.seq)
                self._lent.append(batch)
        except (FourstageError, CorruptSampleError):
            self._end()
            self._begin()
            return
        if self._lent and dice.random() < 0.7:
            self._lent.pop(0).release()
        with contextlib.suppress(OSError):
            self._theirs.recv(1 << 16)
        if dice.random() < 0.01 or self._inbox.done:
            self._end()
            self._begin()

    def _frames(self, dice: Random) -> tuple[Frames, bool]:
        """A message, and whether an arena's descriptor comes along."""
        wanted = False
        luck = dice.random()
        if luck < 0.02:
            message: Any = dice.choice(
                (*examples(), Close(bytes(16)), Failed(bytes(16), 0, dice.choice((-1, 0)), "no"))
            )
            payload: list[bytes] = []
        elif not self._opened or self._info is None or luck < 0.04:
            samples = len(self._store.split("train"))
            message = made(
                Opened, samples=samples, batches_per_epoch=samples // 4, end=_BATCHES, largest_rows=4,
                size=self._store.size, classes=self._store.classes,
            )  # fmt: skip
            payload = [self._store.statistics.mean.astype("<f4").tobytes()]
        else:
            seq = min(_BATCHES - 1, self._inbox._expected)
            if seq not in self._payloads:
                self._payloads[seq] = payload_of(self._store, self._info, self._inbox.spec, seq)
            samples_part, draws = self._payloads[seq]
            inline = dice.random() < 0.5
            wanted = not inline and not self._known
            self._known = self._known or wanted
            arenas = ARENA.pack(1, self._arena.slots, self._arena.slot_bytes) if self._known else b""
            payload = [samples_part, draws, arenas]
            if inline:
                payload.append(bytes(len(draws) // 21 * CROP * CROP * 3))
            message = made(
                Batch, seq=seq, session=1 if self._known else 0, slot=-1 if inline else dice.choice((0, 1)),
                rows=len(draws) // 21, identity=b"i" * 16, skipped=(),
            )  # fmt: skip
        return (frames_of(message, payload) if dice.random() < 0.85 else mutated(dice, message, payload)), wanted

    def _packed(self, dice: Random, frames: Frames) -> bytes:
        frames = frames[: _MOST_PARTS + 1]
        sizes = [len(frame) for frame in frames][:_MOST_PARTS]
        number = len(frames)
        luck = dice.random()
        if luck < 0.02:
            number = dice.choice((0, 1, 7, 2**32 - 1))
        elif luck < 0.04:
            sizes[dice.randrange(len(sizes))] = dice.choice((0, 1, 2**31, 2**32 - 1, 1000))
        data = _HEAD.pack(number, *sizes, *itertools.repeat(0, _MOST_PARTS - len(sizes))) + b"".join(frames)
        return damaged(dice, data) if luck > 0.97 else data

    @contextlib.contextmanager
    def _descriptors(self, dice: Random, wanted: bool) -> Any:
        if wanted and dice.random() < 0.95:
            yield [self._arena.descriptor]
        elif dice.random() < 0.03:
            with descriptors(dice, 1, 4096) as sent:
                yield sent
        else:
            yield []
