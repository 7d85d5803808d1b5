"""Augmenters and trainers that only speak, for the scheduler's benchmark: ``python -m benchmarks.players``.

Each augmenter is a DEALER connection of its own and says HELLO, BEAT and PING as a real one on another host does;
each trainer opens one stream and says PROGRESS. A lease is done after about ``--work`` seconds, one at a time for each
augmenter, and its batch arrives at the trainer in this process and is used in order at once. Nothing is decoded.

A line on standard input is answered with one on standard output: what was done so far. ``work SECONDS`` in it
changes the time that a batch takes.
"""

import argparse
import heapq
import json
import os
import random
import secrets
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq

from fourstage.errors import PeerError
from fourstage.views import View
from fourstage.wire.addresses import beside
from fourstage.wire.codec import decode, encode
from fourstage.wire.messages import (
    PROTOCOL,
    Beat,
    Hello,
    Lease,
    Message,
    Open,
    Opened,
    Ping,
    Progress,
    Stream,
    Usage,
    Welcome,
)

SLOTS = 3
"""Of each stream: augmenter.slots and the spare one."""
HEARTBEAT = 0.5
_BEATS_BETWEEN_PINGS = 4
_GREETING_SECONDS = 10.0
"""Until HELLO is said again: five hundred at once are answered later than one."""
IDENTITY = bytes(16)


class Connection:
    """One peer's connection to the loader."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self.peer = secrets.token_bytes(16)
        self.welcomed = False
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def say(self, message: Message) -> bool:
        """Queue a message; False where nobody is connected."""
        try:
            self.socket.send_multipart(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def heard(self) -> Iterator[Message]:
        """Everything that has come."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = decode(frames)
            if isinstance(message, Welcome):
                self.welcomed = True
            yield message

    def greet(self, role: str, name: str) -> bool:
        """HELLO of the only session; whether it could be said."""
        return self.say(
            Hello(
                protocol=PROTOCOL,
                role="trainer" if role == "trainer" else "augmenter",
                peer=self.peer,
                session=1,
                name=name,
                build="played",
                identity=IDENTITY if role == "augmenter" else b"",
            )
        )


@dataclass(slots=True)
class Trainer:
    """One stream's receiver."""

    connection: Connection
    spec: Open
    opened: bool = False
    consumed: int = 0
    arrived: dict[int, "Augmenter"] = field(default_factory=dict)
    changed: bool = False

    def take(self, seq: int, augmenter: "Augmenter") -> list["Augmenter"]:
        """A batch arrives; whose slots are free because everything up to there is used."""
        if seq >= self.consumed:
            self.arrived.setdefault(seq, augmenter)
        self.changed = True
        freed = []
        while self.consumed in self.arrived:
            freed.append(self.arrived.pop(self.consumed))
            self.consumed += 1
        return freed

    def tell(self) -> None:
        """PROGRESS."""
        progress = Progress(stream=self.spec.stream, consumed=self.consumed, arrived=tuple(sorted(self.arrived)))
        self.changed = not self.connection.say(progress)


@dataclass(slots=True)
class Augmenter:
    """One worker. free: slots by stream."""

    connection: Connection
    name: str
    seen: int = 0
    batches: int = 0
    free: dict[bytes, int] = field(default_factory=dict)
    waiting: deque[tuple[bytes, int, bytes]] = field(default_factory=deque)
    busy: bool = False
    changed: bool = False
    beat_at: float = 0.0
    beats: int = 0

    def take(self, lease: Lease) -> None:
        """A lease comes: it waits for its turn, a head before all others."""
        self.seen = max(self.seen, lease.number)
        if self.free.get(lease.stream, 0) < 1:
            return
        self.free[lease.stream] -= 1
        entry = (lease.stream, lease.seq, lease.code)
        if lease.head:
            self.waiting.appendleft(entry)
        else:
            self.waiting.append(entry)

    def beat(self, now: float, working: tuple[bytes, int, bytes] | None) -> None:
        """BEAT, and now and then PING."""
        held = (*([working] if working else []), *self.waiting)
        slots = tuple((stream, free, SLOTS) for stream, free in self.free.items())
        self.changed = not self.connection.say(Beat(seen=self.seen, held=held, slots=slots, usage=Usage(self.batches)))
        self.beat_at = now + HEARTBEAT
        self.beats += 1
        if self.beats % _BEATS_BETWEEN_PINGS == 0:
            self.connection.say(Ping(now))


class Players:
    """All of them, in one loop."""

    def __init__(self, address: str, augmenters: int, streams: int, rows: int, work: float) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4096)
        self.work = work
        self.leases = 0
        self._random = random.Random(0)
        self._trainers = {
            spec.stream: Trainer(Connection(context, beside(address)), spec) for spec in map(open_, [rows] * streams)
        }
        self._augmenters = [Augmenter(Connection(context, address), f"played-{n}") for n in range(augmenters)]
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Augmenter | Trainer] = {}
        everybody: list[Augmenter | Trainer] = [*self._trainers.values(), *self._augmenters]
        for player in everybody:
            descriptor = int(player.connection.socket.getsockopt(zmq.FD))
            self._by_descriptor[descriptor] = player
            self._poll.register(descriptor, select.EPOLLIN)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._working: dict[int, tuple[bytes, int, bytes]] = {}
        """By the augmenter's place."""
        self._done: list[tuple[float, int]] = []
        now = time.monotonic()
        # Spread over the first heartbeat: they did not all start in one moment.
        self._beats = [(now + HEARTBEAT * n / augmenters, n) for n in range(augmenters)]
        heapq.heapify(self._beats)
        self._places = {id(augmenter): place for place, augmenter in enumerate(self._augmenters)}
        self._trainers_beat_at = now

    @property
    def ready(self) -> bool:
        """Everybody is welcome, every stream is open and known to all."""
        return all(trainer.opened for trainer in self._trainers.values()) and all(
            len(augmenter.free) == len(self._trainers) for augmenter in self._augmenters
        )

    def turn(self) -> bool:
        """Wait for something and do it; whether a line has come on standard input."""
        now = time.monotonic()
        due = min(self._beats[0][0], self._trainers_beat_at, self._done[0][0] if self._done else float("inf"))
        events = self._poll.poll(max(0.0, due - now))
        asked = False
        for descriptor, _ in events:
            if descriptor == sys.stdin.fileno():
                asked = True
            else:
                self._hear(self._by_descriptor[descriptor])
        now = time.monotonic()
        while self._done and self._done[0][0] <= now:
            self._finish(heapq.heappop(self._done)[1])
        while self._beats[0][0] <= now:
            _, place = heapq.heappop(self._beats)
            augmenter = self._augmenters[place]
            if not augmenter.connection.welcomed:
                said = augmenter.connection.greet("augmenter", augmenter.name)
                augmenter.beat_at = now + (_GREETING_SECONDS if said else HEARTBEAT)
                self._hear(augmenter)
            elif augmenter.beat_at <= now:
                augmenter.changed = True
            heapq.heappush(self._beats, (max(augmenter.beat_at, now + 0.01), place))
        beat = now >= self._trainers_beat_at
        if beat:
            self._trainers_beat_at = now + HEARTBEAT
        # A socket's descriptor tells of news once: what a send has read on the way must be taken at once.
        for trainer in self._trainers.values():
            if beat and not trainer.connection.welcomed:
                trainer.connection.greet("trainer", "played")
                self._hear(trainer)
            elif trainer.opened and (beat or trainer.changed):
                trainer.tell()
                self._hear(trainer)
        for place, augmenter in enumerate(self._augmenters):
            if augmenter.changed and augmenter.connection.welcomed:
                augmenter.beat(now, self._working.get(place))
                self._hear(augmenter)
        return asked

    def _hear(self, player: Augmenter | Trainer) -> None:
        for message in player.connection.heard():
            if isinstance(player, Trainer):
                if isinstance(message, Welcome):
                    player.connection.say(player.spec)
                elif isinstance(message, Opened):
                    player.opened = True
            elif isinstance(message, Stream):
                player.free.setdefault(message.stream, SLOTS)
                player.changed = True
            elif isinstance(message, Lease):
                self.leases += 1
                player.take(message)
                self._begin(self._places[id(player)])

    def _begin(self, place: int) -> None:
        augmenter = self._augmenters[place]
        if augmenter.busy or not augmenter.waiting:
            return
        self._working[place] = augmenter.waiting.popleft()
        augmenter.busy = True
        # By way of the heap also where it takes no time, or one augmenter after the other would be served alone; and
        # not all equally long, or all would be done in one moment for ever.
        heapq.heappush(self._done, (time.monotonic() + self.work * self._random.uniform(0.5, 1.5), place))

    def _finish(self, place: int) -> None:
        augmenter = self._augmenters[place]
        stream, seq, _ = self._working.pop(place)
        augmenter.busy = False
        augmenter.batches += 1
        for owner in self._trainers[stream].take(seq, augmenter):
            owner.free[stream] += 1
            owner.changed = True
        self._begin(place)


def open_(rows: int) -> Open:
    """A stream that lasts: a million epochs of whatever the store has."""
    return Open(
        stream=secrets.token_bytes(16), split="train", view=View("random", 8), batch_size=rows, remainder="drop",
        shuffle=True, seed=0, rank=0, world=1, start=0, epochs=1 << 20, end=0, window=0, fingerprint="",
        identity=b"", transport="inline", receiver="ipc:///nobody", side="/nobody", worker=b"",
        on_corrupt="fail", secret=bytes(16),
    )  # fmt: skip


def main() -> None:
    """Play until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loader", required=True)
    parser.add_argument("--augmenters", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--work", type=float, default=0.0, help="seconds that a batch takes")
    arguments = parser.parse_args()
    players = Players(arguments.loader, arguments.augmenters, arguments.streams, arguments.rows, arguments.work)
    while True:
        try:
            asked = players.turn()
        except PeerError as error:
            sys.exit(f"the loader sent {error}")
        if asked:
            line = os.read(sys.stdin.fileno(), 4096).decode()
            if not line:
                # Not a word more: what is left to say nobody hears.
                os._exit(0)
            if line.startswith("work "):
                players.work = float(line.split()[1])
            print(json.dumps({"leases": players.leases, "ready": players.ready}), flush=True)


if __name__ == "__main__":
    main()
