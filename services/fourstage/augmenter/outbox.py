"""The augmenter's side of one stream: its slots, and the connection that carries them to the trainer.

A slot is free; leased (its lease waits or is in work); finished (told to the trainer); free again once the trainer,
which says all that it holds, no longer names it. Losing a message therefore only delays.
"""

import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import fourstage
from fourstage.arena import Arena, slot_bytes_for
from fourstage.augmenter.draws import Draws
from fourstage.errors import FourstageError, PeerError, SettingsError
from fourstage.wire import side
from fourstage.wire.greetings import Greetings
from fourstage.wire.messages import PROTOCOL, Batch, Hello, Holds, Lease, Refused, Stream, Times, Welcome, Who
from fourstage.wire.security import Security
from fourstage.wire.sockets import Dialled, Payload, Waiter

log = logging.getLogger(__name__)

_SIDE_SECONDS = 10.0
"""Time that the trainer has to map and register an arena."""
_RESEND_SECONDS = 2.0
_LONGEST_RESEND_SECONDS = 60.0
"""Each time that nothing was heard the next wait is twice as long: on a slow network sending again only fills it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A lease that this worker has accepted, and the JPEG bytes and slot that belong to it."""

    lease: Lease
    samples: Payload
    jpeg: memoryview
    slot: int
    received: float


@dataclass(slots=True)
class _Finished:
    work: Work
    draws: bytes
    skipped: tuple[int, ...]
    number: int
    times: Times
    """All but ``sent``."""
    clock_offset: float


class Outbox:
    """Slots and trainer connection of one stream."""

    def __init__(
        self,
        spec: Stream,
        *,
        peer: bytes,
        name: str,
        identity: bytes,
        slots: int,
        memory: int,
        waiter: Waiter,
        sessions: Iterator[int],
        security: Security | None = None,
        on_fault: Callable[[], object] = lambda: None,
    ) -> None:
        """Dial the trainer, make the arena and hand it over.

        sessions: ascending, and shared by all outboxes of ``peer``: a stream that has ended may come again, and what
        was said of its old sessions must not be taken for the new one's. on_fault: called for every message of the
        trainer that is none. Raises SettingsError where ``memory`` takes not one slot, or the trainer's address is
        none.
        """
        self.spec = spec
        self._image_bytes = 3 * spec.view.crop * spec.view.crop
        slot_bytes = slot_bytes_for(spec.largest_rows * self._image_bytes)
        count = min(slots + 1, memory // slot_bytes)
        if count < 1:
            raise SettingsError(
                f"augmenter.memory = {memory} is too small for one batch of {slot_bytes} bytes",
                hint="raise it or lower batch_size",
            )
        self._peer = peer
        self._name = name
        self._identity = identity
        self._waiter = waiter
        self._sessions = sessions
        self._on_fault = on_fault
        self._socket = Dialled(
            spec.receiver, role="augmenter", server="trainer", server_key=spec.receiver_key, security=security
        )
        try:
            self.arena = Arena.create(count, slot_bytes)
        except FourstageError:
            self._socket.close(linger=False)
            raise
        self._free = list(range(count))
        self.leased: list[Work] = []
        self._finished: dict[int, _Finished] = {}
        self._session = 0
        self._sent = self._acknowledged = 0
        self._welcomed = False
        self._greetings = Greetings()
        self._patience = _RESEND_SECONDS
        self._heard_at = float("-inf")
        self._silence = float("inf")
        """Seconds without a word after which the trainer, whose heartbeats come, is not connected any more."""
        self._settled_at = 0.0
        """When the trainer last had acknowledged everything."""
        self._side = self._hand_over() if spec.transport == "arena" else None
        waiter.add(self._socket)

    @property
    def slots(self) -> tuple[bytes, int, int]:
        """Stream, free slots, slots in all."""
        return self.spec.stream, len(self._free), self.arena.slots

    @property
    def held(self) -> list[tuple[bytes, int, bytes]]:
        """Leases that this worker answers for: waiting, in work, or finished and not acknowledged."""
        unheard = [done.work for done in self._finished.values() if not 0 < done.number <= self._acknowledged]
        return [(self.spec.stream, work.lease.seq, work.lease.code) for work in (*self.leased, *unheard)]

    def accept(self, lease: Lease, samples: Payload, jpeg: memoryview, now: float) -> bool:
        """Take a lease on; False where it has no slot, or is already here."""
        if not self._free or lease.seq in self._finished or any(w.lease.seq == lease.seq for w in self.leased):
            return False
        work = Work(lease, samples, jpeg, self._free.pop(), now)
        if lease.head:
            self.leased.insert(0, work)
        else:
            self.leased.append(work)
        return True

    def pixels(self, work: Work) -> NDArray[np.uint8]:
        """The slot of a lease: uint8 (rows, crop, crop, 3)."""
        crop = self.spec.view.crop
        view = self.arena.slot(work.slot, work.lease.rows * self._image_bytes)
        return np.frombuffer(view, np.uint8).reshape(work.lease.rows, crop, crop, 3)

    def finish(
        self, work: Work, draws: Draws, skipped: tuple[int, ...], *, made_from: float, now: float, clock_offset: float
    ) -> None:
        """The slot is filled: tell the trainer. draws: of all rows; skipped: those without pixels. clock_offset: what
        to add to our clock for the loader's."""
        self.leased.remove(work)
        packed = b"".join(
            (
                draws.offsets.astype("<i4").tobytes(),
                draws.reflections.astype(np.uint8).tobytes(),
                draws.shifts.astype("<f4").tobytes(),
            )
        )
        if self._acknowledged == self._sent:
            self._settled_at = now
        received, began, ended = (max(0.0, moment + clock_offset) for moment in (work.received, made_from, now))
        times = dataclasses.replace(work.lease.times, received=received, made_from=began, made_to=ended)
        self._finished[work.lease.seq] = _Finished(work, packed, skipped, 0, times, clock_offset)
        self._tell(self._finished[work.lease.seq])

    def abandon(self, work: Work) -> None:
        """The lease cannot be fulfilled; its slot is free."""
        self.leased.remove(work)
        self._free.append(work.slot)

    def turn(self, now: float) -> bool:
        """Hear the trainer; greet again and tell everything again where it does not answer. Whether a slot came
        free."""
        freed = False
        while (arrival := self._socket.receive()) is not None:
            message = arrival[0]
            if isinstance(message, PeerError):
                self._on_fault()
                log.warning("dropped a message of the trainer: %s", message)
            elif isinstance(message, Holds) and message.session == self._session:
                self._heard_at = now
                freed |= self._on_holds(message, now)
            elif isinstance(message, Welcome) and message.session == self._session:
                self._heard_at, self._silence = now, message.silence_seconds
                self._welcomed = True
                self._greetings.begin_anew()
                for finished in self._finished.values():
                    self._tell(finished)
            elif isinstance(message, Who):
                self._greetings.begin_anew()
                self._welcomed = False
            elif isinstance(message, Refused):
                log.warning("the trainer refused this worker: %s", message.reason)
        untold = any(finished.number == 0 for finished in self._finished.values())
        unheard = (untold or self._acknowledged < self._sent) and now - self._settled_at > self._patience
        # ZeroMQ reconnects silently: whoever has nothing to say is not known there any more, and not told either.
        unheard |= bool(self._finished) and now - self._heard_at > max(self._silence, self._patience)
        if (not self._welcomed or unheard) and self._greetings.is_due(now):
            if unheard and self._welcomed:
                self._patience = min(_LONGEST_RESEND_SECONDS, 2.0 * self._patience)
            self._greet(now)
        return freed

    def trainer_died(self) -> bool:
        """The side connection has hung up."""
        return self._side is not None and side.hung_up(self._side)

    def close(self) -> None:
        """Hang up and give the memory back; what the trainer mapped stays whole for it."""
        self._waiter.remove(self._socket)
        self._socket.close(linger=False)
        if self._side is not None:
            self._side.close()
        self.arena.close()

    def _on_holds(self, holds: Holds, now: float) -> bool:
        named = set(holds.seqs)
        freed = [seq for seq, done in self._finished.items() if 0 < done.number <= holds.seen and seq not in named]
        for seq in freed:
            self._free.append(self._finished.pop(seq).work.slot)
        if holds.seen > self._acknowledged:
            self._acknowledged = holds.seen
            self._settled_at = now
            self._patience = _RESEND_SECONDS
        return bool(freed)

    def _tell(self, finished: _Finished) -> None:
        if not self._welcomed:
            return
        lease = finished.work.lease
        inline = self._side is None
        payload: list[bytes | memoryview] = [finished.work.samples, finished.draws]
        if inline:
            made = lease.rows - len(finished.skipped)
            payload.append(self.arena.slot(finished.work.slot, made * self._image_bytes))
        message = Batch(
            stream=lease.stream,
            seq=lease.seq,
            session=self._session,
            number=self._sent + 1,
            slot=-1 if inline else finished.work.slot,
            rows=lease.rows,
            identity=self._identity,
            code=lease.code,
            skipped=finished.skipped,
            times=dataclasses.replace(finished.times, sent=max(0.0, time.monotonic() + finished.clock_offset)),
        )
        if self._socket.send(message, payload):
            self._sent += 1
            finished.number = self._sent

    def _greet(self, now: float) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            role="augmenter",
            peer=self._peer,
            session=next(self._sessions),
            name=self._name,
            build=fourstage.__version__,
            identity=self._identity,
        )
        # Not sent: the connection is not there yet, and the next turn tries again.
        if self._socket.send(hello):
            self._greetings.said(now)
            self._session = hello.session
            self._sent = self._acknowledged = 0
            self._settled_at = now
            self._welcomed = False
            for finished in self._finished.values():
                finished.number = 0

    def _hand_over(self) -> socket.socket | None:
        """Give the arena to the trainer on this host; None where it is on another."""
        connection = side.connect(self.spec.side, _SIDE_SECONDS)
        if connection is None:
            return None
        packet = side.Packet(self._peer, self.spec.stream, self.arena.slots, self.arena.slot_bytes)
        try:
            taken = side.send(connection, packet, self.arena.descriptor)
            answer = side.receive_answer(connection) if taken else None
        except (PeerError, TimeoutError) as error:
            log.warning("the trainer did not take the arena: %s", error)
            answer = None
        if answer is None or answer.stream != self.spec.stream:
            connection.close()
            return None
        return connection
