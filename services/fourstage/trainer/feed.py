"""Where batches come in: a thread that owns the trainer's sockets and fills the inboxes of its streams.

Stages 3 and 4 never touch a socket; they take from inboxes and give back. Anyone's training loop can do the same
(``fourstage.BatchStream``).
"""

import dataclasses
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import fourstage
from fourstage.arena import Arena
from fourstage.errors import CorruptSampleError, FourstageError, PeerError, PeerLostError
from fourstage.process import socket_path
from fourstage.telemetry import Telemetry
from fourstage.trace import Passage
from fourstage.trainer.addresses import receiver_addresses
from fourstage.trainer.encoded import Decoding
from fourstage.trainer.inbox import Inbox
from fourstage.wire import side
from fourstage.wire.codes import SECRET_BYTES, is_code
from fourstage.wire.door import Door, Introduced
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import (
    Batch,
    Close,
    Failed,
    Hello,
    Holds,
    Message,
    Open,
    Opened,
    Progress,
    Stages,
    Times,
    Welcome,
    Who,
)  # fmt: skip
from fourstage.wire.security import Security
from fourstage.wire.sockets import Bound, Payload, Peer, Waiter

log = logging.getLogger(__name__)

LOADER_PATIENCE_SECONDS = 60.0
"""A loader that stays away for this long ends the run; restarting one takes seconds."""
_LARGEST_BATCH = 1 << 31
_TURN_SECONDS = 0.2
_LONGEST_SETTLE_SECONDS = 0.008
_SETTLES_OF_A_BATCH = 4
"""Peers are told of a change a quarter of the time later that one augmenter takes for a batch: one that comes, gives
its slot back and is used by then costs one waking and one message to each of them, not three. The augmenter has
another slot meanwhile."""
_AWAY_SECONDS = 2.0
"""A loader that is restarted at once is found again sooner."""


@dataclass(slots=True)
class _Source:
    """One augmenter's share in one stream."""

    name: str
    peer: Peer = b""
    session: int = 0
    seen: int = 0
    came: float = 0.0
    """When its last batch came, in monotonic seconds."""
    arena: Arena | None = None
    held: set[int] = field(default_factory=set)


class Feed:
    """Streams of batches from a loader's augmenters. Start, open streams, take from their inboxes, close."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        sockets: Path,
        receiver: str = "auto",
        receiver_bind: str = "",
        telemetry: Telemetry | None = None,
        patience: float = LOADER_PATIENCE_SECONDS,
        security: Security | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        """Bind the receiving socket. address: the loader's. patience: seconds that it may be away. decoding: where this
        trainer decodes its streams' images itself."""
        self.stages: Stages | None = None
        """The loader's last heartbeat."""
        self.on_the_way = {"to-augmenter": 0.0, "to-trainer": 0.0}
        """Seconds that batches were between two processes, summed over those that have arrived."""
        self._here = f"@{socket.gethostname()}"
        self._address = address
        self._patience = patience
        self._telemetry = telemetry
        self._uuid = secrets.token_bytes(16)
        bind, self._advertised = receiver_addresses(receiver, address, sockets, receiver_bind)
        self._socket = Bound(bind, max_frame=_LARGEST_BATCH, security=security, on_refused=self._count_refused)
        if self._advertised.endswith(":0"):
            port = urlsplit(self._socket.address).port
            self._advertised = f"{self._advertised[:-2]}:{port}"
        elif not self._advertised:
            self._advertised = self._socket.address
        self._wake_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiter = Waiter()
        for source in (self._socket, self._wake):
            self._waiter.add(source)
        self._door: Door[tuple[bytes, bytes]] = Door(socket_path(sockets, "trainer"), self._waiter)
        self._link = LoaderLink(address, role="trainer", name=name, waiter=self._waiter, security=security)
        self._taker = decoding.taker(self._waiter) if decoding else None
        self._lock = threading.Lock()
        self._to_open: list[Inbox] = []
        self._to_close: list[Inbox] = []
        self._inboxes: dict[bytes, Inbox] = {}
        self._sources: dict[tuple[bytes, bytes], _Source] = {}
        """By worker and stream."""
        self._known: dict[Peer, Hello] = {}
        self._told: dict[bytes, tuple[int, tuple[int, ...]]] = {}
        self._early: list[tuple[Peer, Message | PeerError, list[Payload]]] = []
        self._dirty: set[tuple[bytes, bytes]] = set()
        """Sources of whose holdings something is to be told."""
        self._next_beat = 0.0
        self._settle = 0.0
        self._tell_at: float | None = None
        """When changes are told; None: there are none."""
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    # For other threads

    @property
    def waiting(self) -> str:
        """Why no batches can come, in words; empty while they may."""
        since = self._link.lost_since
        if since is not None and (away := time.monotonic() - since) > _AWAY_SECONDS:
            return f"the loader has not answered for {away:.0f} s"
        return self.stages.waiting if self.stages else ""

    def open(self, spec: Open) -> Inbox:
        """Open a stream; receiver, side, worker and secret are filled in here."""
        spec = dataclasses.replace(
            spec, stream=secrets.token_bytes(16), receiver=self._advertised, side=os.fspath(self._door.path),
            worker=self._taker.peer if self._taker else b"", secret=secrets.token_bytes(SECRET_BYTES),
        )  # fmt: skip
        inbox = Inbox(spec, self._poke_soon)
        with self._lock:
            if self._failure is not None:
                inbox.fail(_as_error(self._failure))
            self._to_open.append(inbox)
        self._poke()
        return inbox

    def end(self, inbox: Inbox) -> None:
        """Close one stream."""
        inbox.close()
        with self._lock:
            self._to_close.append(inbox)
        self._poke()

    def close(self) -> None:
        """Close every stream, say goodbye, give everything back."""
        self._stopping = True
        self._poke()
        self._thread.join()

    def _poke(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _poke_soon(self) -> None:
        """Something is to be told: by the next telling, if one is due anyway."""
        if self._tell_at is None:
            self._poke()

    # The feed's thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except Exception as error:
            if not isinstance(error, FourstageError):
                log.exception("the feed failed")
            with self._lock:
                self._failure = error
                inboxes = [*self._inboxes.values(), *self._to_open]
            for inbox in inboxes:
                inbox.fail(_as_error(error))
        finally:
            self._shut()

    def _turn(self) -> None:
        patience = min(_TURN_SECONDS, self._link.patience)
        if self._tell_at is not None:
            patience = min(patience, max(0.0, self._tell_at - time.monotonic()))
        readable = self._waiter.wait(patience)
        now = time.monotonic()
        if self._wake in readable:
            os.eventfd_read(self._wake)
        for event in self._door.events(readable):
            if isinstance(event, Introduced):
                self._on_introduced(event)
            else:
                self._on_death(event.key)
        self._take_orders()
        for message, payload in self._link.turn(now):
            self._on_loader(message, payload)
        if self._link.lost_since is not None and now - self._link.lost_since > self._patience:
            raise PeerLostError(
                f"no loader answers at {self._address} since {now - self._link.lost_since:.0f} s",
                hint=self._link.trouble or "start one with fourstage loader, or correct loader.address",
            )
        came = self._take_batches()
        if self._taker is not None:
            came |= self._taker.turn(now, self._inboxes, self._passage)
        beat = now >= self._next_beat
        if beat or (self._tell_at is not None and now >= self._tell_at):
            # Before anything is looked at: what changes from here on asks for the next telling.
            self._tell_at = None
            self._tell(beat)
            if beat:
                self._next_beat = now + self._link.heartbeat
        elif self._tell_at is None and (came or self._wake in readable):
            self._tell_at = now + self._settle

    def _take_batches(self) -> bool:
        """Hear the augmenters; whether anything came."""
        early, self._early = self._early, []
        came = False
        for peer, arrival, payload in chain(early, iter(self._socket.receive, None)):
            came = True
            if (touched := self._on_augmenter(peer, arrival, payload)) is not None:
                self._dirty.add(touched)
        return came

    def _tell(self, beat: bool) -> None:
        """Say what has changed, or with the heartbeat everything: to augmenters what is held of theirs, to the loader
        how far each stream is."""
        for uuid, inbox in self._inboxes.items():
            for batch in inbox.released():
                if source := self._sources.get((batch.source, uuid)):
                    source.held.discard(batch.seq)
                    if source.held or source.peer:
                        self._dirty.add((batch.source, uuid))
                    else:
                        self._drop_source((batch.source, uuid))
        dirty, self._dirty = self._dirty, set()
        for key in list(self._sources) if beat else dirty:
            if source := self._sources.get(key):
                self._send_holds(key, source)
        for inbox in self._inboxes.values():
            self._send_progress(inbox, beat)

    def _take_orders(self) -> None:
        with self._lock:
            to_open, self._to_open = self._to_open, []
            to_close, self._to_close = self._to_close, []
        for inbox in to_open:
            self._inboxes[inbox.spec.stream] = inbox
            self._link.send(inbox.spec)
        for inbox in to_close:
            uuid = inbox.spec.stream
            if self._inboxes.pop(uuid, None) is None:
                continue
            self._told.pop(uuid, None)
            self._link.send(Close(uuid))
            for key in [key for key in self._sources if key[1] == uuid]:
                self._drop_source(key)

    def _on_loader(self, message: Message, payload: list[Payload]) -> None:
        match message:
            case Welcome():
                for inbox in self._inboxes.values():
                    consumed, _ = inbox.progress()
                    self._link.send(dataclasses.replace(inbox.spec, start=consumed, identity=inbox.identity))
                self._told.clear()
            case Opened():
                if inbox_opened := self._inboxes.get(message.stream):
                    expected = 12 * message.size * message.size
                    if len(payload) != 1 or len(payload[0]) != expected:
                        raise PeerError(f"the loader's mean image is not of {expected} bytes")
                    mean = np.frombuffer(payload[0], "<f4").reshape(message.size, message.size, 3)
                    inbox_opened.open(message, mean.copy())
            case Failed():
                if inbox_failed := self._inboxes.get(message.stream):
                    kind = CorruptSampleError if message.row >= 0 else FourstageError
                    inbox_failed.fail(kind(message.reason))
            case Stages():
                self.stages = message
            case _:
                log.warning("the loader sent %s, which is not for it to send", type(message).__name__)

    def _on_augmenter(
        self, peer: Peer, message: Message | PeerError, payload: list[Payload]
    ) -> tuple[bytes, bytes] | None:
        """Handle one message; the source whose holdings changed."""
        try:
            if isinstance(message, PeerError):
                raise message
            if isinstance(message, Hello):
                self._known[peer] = message
                self._socket.send(peer, self._welcome(message))
                return None
            hello = self._known.get(peer)
            if hello is None:
                self._socket.send(peer, Who())
                return None
            if not isinstance(message, Batch):
                raise PeerError(f"{hello.name} sent {type(message).__name__}, which is not for it to send")
            return self._on_batch(peer, hello, message, payload)
        except PeerError as error:
            if self._telemetry:
                self._telemetry.counter("fourstage_peer_errors_total").inc()
            log.warning("dropped a message of an augmenter: %s", error)
            return None

    def _on_batch(self, peer: Peer, hello: Hello, message: Batch, payload: list[Payload]) -> tuple[bytes, bytes] | None:
        if message.session != hello.session:
            return None
        key = (hello.peer, message.stream)
        inbox = self._inboxes.get(message.stream)
        if inbox is None:
            gone = Holds(stream=message.stream, session=message.session, seen=message.number, seqs=())
            self._socket.send(peer, gone)
            return None
        if inbox.info is None:
            # It overtook the loader's OPENED, which comes on another connection.
            self._early.append((peer, message, payload))
            return None
        source = self._sources.setdefault(key, _Source(hello.name))
        source.peer = peer
        if source.session != message.session:
            source.session, source.seen = message.session, 0
        source.seen = max(source.seen, message.number)
        if not inbox.is_new(message.seq):
            if message.seq not in source.held and inbox.arrived.get(message.seq) != hello.peer:
                inbox.duplicates += 1
                if self._telemetry:
                    self._telemetry.counter("fourstage_duplicates_dropped_total").inc()
            return key
        if not is_code(message.code, inbox.spec.secret, message.stream, message.seq, hello.peer):
            raise PeerError(f"{hello.name} sent batch {message.seq}, which it was not given")
        passage = self._passage(hello.name, message.times)
        batch = inbox.unpack(message, payload, source.arena, worker=hello.peer, passage=passage)
        source.held.add(message.seq)
        inbox.put(batch)
        # Its release, or the next heartbeat, acknowledges it as well: one message less a batch.
        return None

    def _passage(self, worker: str, times: Times) -> Passage:
        """A batch's way to here, and the seconds that it was between two processes."""
        now, offset = time.monotonic(), self._link.clock_offset
        passage = Passage(worker.removesuffix(self._here), times, offset, arrived=now)
        if times.leased and times.received:
            self._took("to-augmenter", times.received - times.leased)
        if times.sent:
            self._took("to-trainer", now + offset - times.sent)
        if self._telemetry:
            for stage, moment in (("load", times.read_to), ("transform", times.made_to)):
                if (age := passage.age(moment - offset)) is not None:
                    self._telemetry.histogram("fourstage_batch_age_seconds", stage).observe(max(0.0, age))
        return passage

    def _count_refused(self, number: int) -> None:
        if self._telemetry:
            self._telemetry.counter("fourstage_refused_handshakes_total").inc(number)

    def _took(self, hop: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self.on_the_way[hop] += seconds
        if self._telemetry:
            self._telemetry.counter("fourstage_wire_seconds_total", hop).inc(seconds)

    def _welcome(self, hello: Hello) -> Welcome:
        return Welcome(
            peer=self._uuid,
            session=hello.session,
            build=fourstage.__version__,
            side=os.fspath(self._door.path),
            heartbeat_seconds=self._link.heartbeat,
            silence_seconds=self._link.welcome.silence_seconds if self._link.welcome else 5.0,
        )

    def _send_holds(self, key: tuple[bytes, bytes], source: _Source) -> None:
        if source.peer:
            self._socket.send(
                source.peer,
                Holds(stream=key[1], session=source.session, seen=source.seen, seqs=tuple(sorted(source.held))),
            )

    def _send_progress(self, inbox: Inbox, beat: bool) -> None:
        if inbox.info is None:
            return
        consumed, arrived = inbox.progress()
        state = (consumed, arrived)
        if not beat and self._told.get(inbox.spec.stream) == state:
            return
        if self._link.send(Progress(stream=inbox.spec.stream, consumed=consumed, arrived=arrived)):
            self._told[inbox.spec.stream] = state

    # Side connections

    def _on_introduced(self, event: Introduced) -> None:
        """An augmenter hands its arena of one stream over."""
        packet = event.packet
        key = (packet.peer, packet.stream)
        known = self._sources.get(key)
        if event.descriptor is None or packet.stream not in self._inboxes or (known and known.arena):
            if event.descriptor is not None:
                os.close(event.descriptor)
            self._door.refuse(event.connection)
            return
        try:
            arena = Arena.attach(event.descriptor, packet.slots, packet.slot_bytes)
        except PeerError as error:
            log.warning("dropped an arena: %s", error)
            self._door.refuse(event.connection)
            return
        self._sources.setdefault(key, _Source(packet.peer.hex()[:8])).arena = arena
        self._door.adopt(event.connection, key)
        side.send(event.connection, side.Packet(self._uuid, packet.stream))

    def _on_death(self, key: tuple[bytes, bytes]) -> None:
        """The owner of an arena is gone; what it finished stays whole as long as it is held."""
        source = self._sources[key]
        source.peer = b""
        if not source.held:
            self._drop_source(key)

    def _drop_source(self, key: tuple[bytes, bytes]) -> None:
        source = self._sources.pop(key)
        self._door.drop(key)
        if source.arena is not None:
            source.arena.close()

    def _shut(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
            self._link.send(Close(inbox.spec.stream))
        self._link.close()
        if self._taker is not None:
            self._taker.close()
        for key in list(self._sources):
            self._drop_source(key)
        self._door.close()
        self._socket.close(linger=False)
        self._waiter.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1


def _as_error(error: BaseException) -> FourstageError:
    return error if isinstance(error, FourstageError) else FourstageError(f"the feed failed: {error!r}")
