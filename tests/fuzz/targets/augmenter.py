"""An augmenter between a loader and trainers that talk nonsense: it makes what can be made, and goes on."""

import contextlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from fourstage.arena import Arena, slot_bytes_for
from fourstage.augmenter.service import AugmenterService
from fourstage.errors import RefusedError
from fourstage.process import StopFlag
from fourstage.settings import AugmenterSettings, MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.wire.messages import Gone, Holds, Lease, Stream, Welcome, Who
from tests.fuzz import wires
from tests.fuzz.campaign import Cases
from tests.fuzz.faults import Faults
from tests.fuzz.mutation import Frames, damaged, frames_of, mutated
from tests.fuzz.samples import VIEW, Sayings, drawn, examples, images, made, small_store
from tests.pipeline.harness import SIZE

_ROWS = 3
_STREAMS = 3
_MEMORY = 8 << 20
_REPLAYED = 64


class LoaderMessages:
    """What a loader says to a worker: STREAM, LEASE, GONE of a few streams, valid or nearly so."""

    def __init__(self, folder: Path, streams: list[bytes]) -> None:
        self.jpegs = images(small_store(folder))
        self.streams = streams
        self.arenas: dict[bytes, tuple[Arena, list[bytes]]] = {}
        """By stream: its JPEG arena, whose slots hold three images each."""
        self._numbers = 0

    def stream(self, dice: Random, **fields: Any) -> Stream:
        message: Stream = made(
            Stream, stream=dice.choice(self.streams), view=VIEW,
            size=SIZE if dice.random() < 0.98 else dice.choice((8, 65_500)),
            largest_rows=_ROWS if dice.random() < 0.98 else dice.choice((0, 65_536)), transport="inline",
            receiver="ipc://trainer" if dice.random() < 0.98 else dice.choice(("", "tcp://", "nowhere", "ipc://x\0y")),
            side="/nowhere/at/all", **fields,
        )  # fmt: skip
        return message

    def lease(self, dice: Random, session: int, seq: int) -> tuple[Lease, list[bytes]]:
        """A lease of three images: inline, or by the slot of an arena."""
        self._numbers += 1
        stream = dice.choice(self.streams)
        jpegs = [dice.choice(self.jpegs) for _ in range(_ROWS)]
        slot, payload = -1, [b"samples", b"".join(jpegs)]
        if stream in self.arenas and dice.random() < 0.6:
            slot, payload, jpegs = (
                0 if dice.random() < 0.9 else dice.choice((1, 2, 65_536)),
                payload[:1],
                self.arenas[stream][1],
            )
        elif dice.random() < 0.1:
            payload[1] = damaged(dice, payload[1])
        sizes = [len(jpeg) for jpeg in jpegs]
        if dice.random() < 0.03:
            sizes[dice.randrange(_ROWS)] = dice.choice((0, 1, 2**31, 2**32 - 1))
        message: Lease = made(
            Lease,
            stream=stream,
            seq=seq,
            session=session if dice.random() < 0.98 else session + 1,
            number=self._numbers,
            head=dice.random() < 0.2,
            epoch=0 if dice.random() < 0.98 else 2**53,
            first=dice.randrange(30) if dice.random() < 0.98 else 2**53,
            rows=_ROWS,
            slot=slot,
            sizes=np.array(sizes, "<u4").tobytes(),
            skip=() if dice.random() < 0.95 else (dice.randrange(4),),
            trial=(0, 0) if dice.random() < 0.95 else (dice.randrange(3), dice.randrange(5)),
        )
        return message, payload

    def gone(self, dice: Random) -> Gone:
        return Gone(dice.choice(self.streams))

    def hand_over(self, dice: Random) -> tuple[bytes, Arena]:
        """A stream's arena, as it lies mapped at the worker."""
        stream = dice.choice(self.streams)
        if stream not in self.arenas:
            jpegs = [dice.choice(self.jpegs) for _ in range(_ROWS)]
            arena = Arena.create(2, slot_bytes_for(sum(map(len, jpegs))))
            data = b"".join(jpegs)
            arena.slot(0, len(data))[:] = data
            self.arenas[stream] = arena, jpegs
        arena, _ = self.arenas[stream]
        return stream, Arena.attach(arena.duplicate(), arena.slots, arena.slot_bytes)

    def close(self) -> None:
        for arena, _ in self.arenas.values():
            arena.close()


class AugmenterTarget:
    """``AugmenterService.run`` as it is: it decodes, cuts and sends."""

    name: ClassVar[str] = "augmenter"
    most: ClassVar[int] = 1024

    def __init__(self, folder: Path, dice: Random) -> None:
        self._stack = ExitStack()
        self._says = LoaderMessages(folder, [dice.randbytes(16) for _ in range(_STREAMS)])
        _, self._clock = self._stack.enter_context(wires.laid(dice))
        self._telemetry = Telemetry("augmenter", MetricsSettings(), "fuzz")
        self._stop = wires.Turns(StopFlag())
        self._service = AugmenterService(
            "ipc://loader",
            AugmenterSettings(memory=_MEMORY),
            name="augmenter",
            telemetry=self._telemetry,
            stop=self._stop,  # type: ignore[arg-type]  # A stop flag that lets the loop go round case by case.
        )
        self._service._turn()
        self._faults = Faults(self._telemetry)
        self._said: deque[Frames] = deque(maxlen=_REPLAYED)
        self._seq = 0
        self._loader_says: Sayings = [(self._lease, 60), (self._stream, 8), (self._gone, 2), (self._welcome, 2)]

    @property
    def _loader(self) -> wires.Wire:
        return wires.to_loader(self._service._link)

    def play(self, cases: Cases) -> None:
        self._stop.turns = self._turns(cases)
        self._over = False
        while not self._over:
            # A REFUSED instead of the first WELCOME ends an augmenter, in words; here it goes on.
            with contextlib.suppress(RefusedError):
                self._service.run()

    def worked(self) -> int:
        """Batches that were made."""
        return int(self._telemetry.meter("transform")._batches_total._value.get())

    def root(self) -> object:
        return self._service

    def close(self) -> None:
        self._service.close()
        self._says.close()
        self._stack.close()

    def _turns(self, cases: Cases) -> Iterator[object]:
        while (dice := cases.next()) is not None:
            wire, frames = self._message(dice)
            cases.show(frames)
            wire.give(frames)
            if wire is self._loader:
                # What a trainer has said may be lost with its stream, which GONE ends.
                self._faults.expect(frames)
            if dice.random() < 0.01:
                stream, arena = self._says.hand_over(dice)
                self._service._sources.drop(stream)
                self._service._sources._arenas[stream] = arena
            if dice.random() < 0.6:
                self._clock.now += dice.choice((0.001, 0.01, 0.3))
                self._loader.full = dice.random() < 0.02
                yield self
                self._faults.check()
        self._over = True

    def _message(self, dice: Random) -> tuple[wires.Wire, Frames]:
        link = self._service._link
        if link.welcome is None:
            return self._loader, frames_of(made(Welcome, session=link.session, side="/nowhere/at/all"))
        outboxes = list(self._service._outboxes.values())
        if outboxes and dice.random() < 0.3:
            outbox = dice.choice(outboxes)
            return outbox._socket.socket, self._of_trainer(dice, outbox)  # type: ignore[return-value]  # It is a Wire.
        luck = dice.random()
        if luck < 0.04 and self._said:
            return self._loader, dice.choice(self._said)
        if luck < 0.07:
            return self._loader, mutated(dice, dice.choice(examples()))
        message, payload = drawn(dice, self._loader_says)(dice, None)
        frames = frames_of(message, payload) if dice.random() < 0.65 else mutated(dice, message, payload)
        self._said.append(frames)
        return self._loader, frames

    def _of_trainer(self, dice: Random, outbox: Any) -> Frames:
        luck = dice.random()
        if luck < 0.15:
            message: Any = made(Welcome, session=outbox._session)
        elif luck < 0.17:
            message = Who()
        elif luck < 0.25:
            message = dice.choice(examples())
        else:
            finished = list(outbox._finished)
            seen = outbox._sent + dice.choice((0, 0, 0, -1, 5, 2**53 - outbox._sent))
            seqs = tuple(seq for seq in finished if dice.random() < 0.2)
            message = Holds(outbox.spec.stream, outbox._session, max(0, seen), seqs)
        return frames_of(message) if dice.random() < 0.7 else mutated(dice, message)

    def _lease(self, dice: Random, _: object) -> tuple[Lease, list[bytes]]:
        self._seq += dice.choice((0, 1, 1, 1))
        return self._says.lease(dice, self._service._link.session, self._seq)

    def _stream(self, dice: Random, _: object) -> tuple[Stream, tuple[bytes, ...]]:
        return self._says.stream(dice), ()

    def _gone(self, dice: Random, _: object) -> tuple[Gone, tuple[bytes, ...]]:
        return self._says.gone(dice), ()

    def _welcome(self, dice: Random, _: object) -> tuple[Welcome, tuple[bytes, ...]]:
        session = self._service._link.session - (dice.random() < 0.3)
        return made(Welcome, peer=dice.randbytes(16), session=max(0, session), side="/nowhere/at/all"), ()
