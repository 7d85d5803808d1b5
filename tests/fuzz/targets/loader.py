"""The loader: strangers, augmenters and trainers of a real store, who lie, repeat themselves or talk nonsense."""

import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fourstage.loader.reader import Reader, ReadJob
from fourstage.loader.service import LoaderService
from fourstage.process import StopFlag
from fourstage.settings import LoaderSettings, MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.wire import side
from fourstage.wire.messages import Beat, Bye, Close, Failed, Hello, Open, Ping, Progress, Tried
from tests.fuzz import wires
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.faults import Faults
from tests.fuzz.mutation import Frames, frames_of, mutated
from tests.fuzz.samples import IDENTITY, VIEW, Sayings, code_of, drawn, examples, made, small_store

_MEMORY = 4 << 20
_TRAINERS, _AUGMENTERS, _STRANGERS = 3, 8, 4
_SIDES = 6
_UUIDS = 64
"""Processes that may stand behind the connections."""
_REPLAYED = 256


class LoaderTarget:
    """``LoaderService.run`` as it is: books, reading and heartbeat are at work."""

    name: ClassVar[str] = "loader"
    most: ClassVar[int] = 1 << 17

    def __init__(self, folder: Path, dice: Random) -> None:
        self._stack = ExitStack()
        self._store = small_store(folder)
        self._before = sorted(folder.rglob("*"))
        self._folder = folder
        laid, self._clock = self._stack.enter_context(wires.laid(dice))
        telemetry = Telemetry("loader", MetricsSettings(), "fuzz")
        self._stop = wires.Turns(StopFlag())
        (folder / "sockets").mkdir()
        self._service = LoaderService(
            self._store,
            LoaderSettings(address=f"ipc://{folder}/loader", threads=1, memory=_MEMORY),
            sockets=folder / "sockets",
            telemetry=telemetry,
            stop=self._stop,  # type: ignore[arg-type]  # A stop flag that lets the loop go round case by case.
        )
        _read_at_once(self._service._serving.read_ahead._reader)
        augmenters, trainers = laid.open[:2]
        self._wires = trainers, augmenters
        self._faults = Faults(telemetry)
        self._uuids = [dice.randbytes(16) for _ in range(_UUIDS)]
        self._trainers_say: Sayings = [(self._open, 10), (self._progress, 75), (self._close, 4), *_BOTH_SAY]
        self._augmenters_say: Sayings = [(self._beat, 80), (self._failed, 2), (self._tried, 4), *_BOTH_SAY]
        self._said: deque[Frames] = deque(maxlen=_REPLAYED)
        self._numbers = 0
        self._sides: list[socket.socket] = []
        self._sessions: dict[bytes, int] = {}

    def play(self, cases: Cases) -> None:
        self._stop.turns = self._turns(cases)
        self._service.run()

    def worked(self) -> int:
        """Batches that were leased."""
        return self._numbers

    def root(self) -> object:
        return self._service

    def close(self) -> None:
        for connection in self._sides:
            connection.close()
        self._service.close()
        self._stack.close()
        after = sorted(path for path in self._folder.rglob("*") if path.parent.name != "sockets")
        if [path for path in after if path.name != "sockets"] != self._before:
            raise BrokenError(f"files have come or gone: {set(after) ^ set(self._before)}")

    def _turns(self, cases: Cases) -> Iterator[object]:
        """Before each turn of the loop: what comes in."""
        while (dice := cases.next()) is not None:
            door, frames = self._message(dice)
            cases.show(frames)
            self._wires[door].give(frames)
            self._faults.expect(frames[1:])
            if dice.random() < 0.5:
                self._clock.now += 8.0 if dice.random() < 0.004 else dice.choice((0.001, 0.01, 0.05))
                for wire in self._wires:
                    wire.full = dice.random() < 0.01
                if dice.random() < 0.01:
                    self._side(dice)
                yield self
                self._faults.check()
                workers = self._service._serving.leases._workers.values()
                self._numbers = max([self._numbers, *(worker.numbers for worker in workers)])

    def _message(self, dice: Random) -> tuple[int, Frames]:
        """A message and the socket that it comes to: 0, the trainers', or 1."""
        connection = dice.randrange(_TRAINERS + _AUGMENTERS + _STRANGERS)
        peer = b"connection-%d" % connection if dice.random() < 0.995 else dice.randbytes(5)
        role = "trainer" if connection < _TRAINERS else "augmenter"
        door = int(role == "augmenter") if dice.random() < 0.995 else dice.randrange(2)
        luck = dice.random()
        if luck < 0.04 and self._said:
            return door, [peer, *dice.choice(self._said)]
        if luck < 0.08:
            return door, [peer, *mutated(dice, dice.choice(examples()))]
        client = self._service._clients.behind(bytes((door,)) + peer)
        if connection >= _TRAINERS + _AUGMENTERS:
            message: Any = self._hello(dice, dice.choice(self._uuids), dice.choice(("trainer", "augmenter")))
        elif client is None or luck < 0.1:
            message = self._hello(dice, self._uuids[connection], role)
        elif client.hello.role == "trainer":
            message = drawn(dice, self._trainers_say)(dice, client)
        else:
            message = drawn(dice, self._augmenters_say)(dice, client)
        frames = frames_of(message) if dice.random() < 0.65 else mutated(dice, message)
        self._said.append(frames)
        return door, [peer, *frames]

    def _hello(self, dice: Random, uuid: bytes, role: str) -> Hello:
        session = self._sessions[uuid] = self._sessions.get(uuid, 0) + dice.choice((1, 1, 1, 0))
        identity = dice.choice((IDENTITY, IDENTITY, b"j" * 16)) if role == "augmenter" else b""
        hello: Hello = made(Hello, role=role, peer=uuid, session=session, identity=identity)
        return hello

    def _stream(self, dice: Random) -> bytes:
        streams = list(self._service._serving.streams)
        return dice.choice(streams) if streams and dice.random() < 0.97 else dice.randbytes(16)

    def _open(self, dice: Random, _client: object) -> Open:
        stream = self._stream(dice) if dice.random() < 0.3 else dice.choice(self._uuids)
        opened: Open = made(
            Open,
            stream=stream,
            split="train",
            view=VIEW,
            batch_size=dice.choice((1, 4, 8, 36, 40)),
            remainder="keep",
            start=10**6 if dice.random() < 0.03 else dice.choice((0, 3)),
            epochs=dice.choice((1, 3, 2**20)),
            end=dice.choice((0, 0, 7, 2**53)),
            rank=0,
            world=dice.choice((1, 1, 2, 65_536)),
            window=65_536 if dice.random() < 0.01 else dice.choice((0, 0, 4, 9)),
            fingerprint=dice.choice(("", self._store.fingerprint)),
            identity=dice.choice((b"", b"i" * 16)),
            transport=dice.choice(("arena", "inline")),
            worker=dice.choice((b"", b"", b"", self._uuids[_TRAINERS])),
        )
        return opened

    def _progress(self, dice: Random, _client: object) -> Progress:
        stream = self._stream(dice)
        book = self._service._serving.leases._streams.get(stream)
        if book is None:
            return Progress(stream, dice.randrange(100), ())
        consumed = book.consumed + dice.choice((0, 0, 1, 1, 2, 50, -1))
        window = list(book.batches)[:16]
        arrived = tuple(seq for seq in window if dice.random() < 0.4)
        if dice.random() < 0.05:
            arrived += tuple(dice.randrange(2**53) for _ in range(3))
        elif dice.random() < 0.02:
            begin = dice.randrange(2**20)
            arrived = tuple(range(begin, begin + 2000))
        return Progress(stream, min(max(0, consumed), 2**53), arrived)

    def _beat(self, dice: Random, client: Any) -> Beat:
        books = self._service._serving.leases._workers.get(client.uuid)
        streams = list(self._service._serving.streams)
        seen = (books.numbers if books else 0) + dice.choice((0, 0, 0, 0, -1, 1))
        held = tuple((*entry, bytes(16)) for entry in (sorted(books.holds) if books else ()) if dice.random() < 0.8)
        if dice.random() < 0.2:
            held += ((self._stream(dice), dice.randrange(40), bytes(16)),)
        slots = tuple(
            (stream, dice.randrange(4), 3) if dice.random() < 0.9995 else (stream, 65_536, dice.choice((0, 65_536)))
            for stream in streams
        )
        beat: Beat = made(Beat, seen=max(0, seen), held=held, slots=slots)
        return beat

    def _code(self, uuid: bytes, seq: int, worker: bytes) -> bytes:
        """What proves that a worker was given a batch, where there is such a batch."""
        stream = self._service._serving.streams.get(uuid)
        slotted = stream.slotted.get(seq) if stream else None
        return code_of(stream.spec, seq, worker, slotted.samples) if stream and slotted else bytes(16)

    def _batch(self, dice: Random, client: Any) -> tuple[bytes, int]:
        books = self._service._serving.leases._workers.get(client.uuid)
        held = sorted(books.holds) if books else []
        return dice.choice(held) if held and dice.random() < 0.7 else (self._stream(dice), dice.randrange(60))

    def _failed(self, dice: Random, client: Any) -> Failed:
        stream, seq = self._batch(dice, client)
        return Failed(stream, seq, dice.choice((-1, 0, 3, 7, 65_535)), "no\nimage")

    def _tried(self, dice: Random, client: Any) -> Any:
        stream, seq = self._batch(dice, client)
        return made(Tried, stream=stream, seq=seq)

    def _close(self, dice: Random, _client: object) -> Close:
        return Close(self._stream(dice))

    def _side(self, dice: Random) -> None:
        """Somebody introduces himself at the door, or somebody dies."""
        if len(self._sides) < _SIDES:
            connection = side.connect(os.fspath(self._service._door.path), 0.0)
            if connection is not None:
                self._sides.append(connection)
                side.send(connection, side.Packet(dice.choice(self._uuids[: _TRAINERS + _AUGMENTERS]), b""))
        else:
            self._sides.pop(dice.randrange(_SIDES)).close()


def _read_at_once(reader: Reader[Any]) -> None:
    """Let whoever wants a batch read it: when a thread is done is nobody's to repeat."""
    for _ in reader._threads:
        reader._jobs.put(None)
    for thread in reader._threads:
        thread.join()

    def submit(job: ReadJob[Any]) -> None:
        reader._jobs.put(job)
        reader._jobs.put(None)
        reader._work()

    reader.submit = submit  # type: ignore[method-assign]  # Read where it is asked for, not in a thread.


_BOTH_SAY: Sayings = [
    (lambda dice, _: Ping(dice.uniform(0.0, 1e12)), 4),
    (lambda _dice, _client: Bye(), 1),
]
