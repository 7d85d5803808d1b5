"""The trainer's end of its augmenters: what they send is checked and put into the inboxes, what is held of theirs is
told to them, and their arenas are mapped as long as anything of them is held.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

import fourstage
from fourstage.arena import Arena
from fourstage.errors import PeerError
from fourstage.telemetry import Telemetry
from fourstage.trace import Passage
from fourstage.trainer.closed import Closed
from fourstage.trainer.inbox import Inbox
from fourstage.trainer.senders import Senders
from fourstage.wire import side
from fourstage.wire.codes import equal, lease_code
from fourstage.wire.door import Door, Introduced
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import (
    MOST_REFUSED,
    Batch,
    Hello,
    Holds,
    Message,
    Refused,
    Times,
    Welcome,
    Who,
)
from fourstage.wire.refusals import Quiet
from fourstage.wire.sockets import Arrival, Bound, Payload, Peer

log = logging.getLogger(__name__)

_MESSAGES_OF_A_TURN = 1024
"""Nobody who speaks without end keeps this thread from all else."""
_MOST_EARLY = 256
"""Batches of streams whose OPENED has not come."""
_MOST_CONNECTIONS = 4096
"""Augmenters' connections that are known; each reconnect is another one."""
_SILENCE_SECONDS = 5.0
"""What augmenters are told before the loader has said it."""

Key = tuple[bytes, bytes]
"""A worker and a stream."""


@dataclass(slots=True)
class _Source:
    """One augmenter's share in one stream."""

    name: str
    peer: Peer = b""
    session: int = 0
    """Nothing is taken of older ones."""
    seen: int = 0
    arena: Arena | None = None
    buried: bool = False
    """Its worker has hung up on the arena; what it had sent before may still be on the way."""
    held: dict[int, int] = field(default_factory=dict)
    """Batches that lie here, and their slots; -1: inline."""

    @property
    def idle(self) -> bool:
        """Whether nothing but a connection keeps it."""
        return not self.held and (self.arena is None or self.buried)


class Workers:
    """Augmenters by connection, and each one's share in each stream. Everything is called from the feed's thread."""

    def __init__(
        self,
        socket: Bound,
        door: Door[Key],
        link: LoaderLink,
        inboxes: Mapping[bytes, Inbox],
        closed: Closed,
        *,
        peer: bytes,
        passage: Callable[[str, Times], Passage],
        telemetry: Telemetry | None,
    ) -> None:
        """inboxes: the open streams'. closed: those that are over. peer: the trainer's own 16 bytes. passage: of
        a batch, by its worker's name."""
        self._socket = socket
        self._door = door
        self._link = link
        self._inboxes = inboxes
        self._closed = closed
        self._peer = peer
        self._passage = passage
        self._telemetry = telemetry
        self._sources: dict[Key, _Source] = {}
        self._left: dict[Arena, tuple[bytes, set[int]]] = {}
        """Arenas whose workers have come again with the same stream: that, and the batches that lie in them."""
        self._known: dict[Peer, Hello] = {}
        self._senders = Senders()
        self._quiet = Quiet()
        self._refused: dict[bytes, None] = {}
        """Workers of which nothing is taken any more, in the order of their faults."""
        self._early: list[Arrival] = []
        self._dirty: set[Key] = set()
        """Sources of whose holdings something is to be told."""

    @property
    def refused(self) -> tuple[bytes, ...]:
        """Workers of which nothing is taken any more."""
        return tuple(self._refused)

    def hear(self) -> bool:
        """Hear the augmenters; whether anything came."""
        early, self._early = self._early, []
        came = False
        for arrival in chain(early, islice(iter(self._socket.receive, None), _MESSAGES_OF_A_TURN)):
            came = True
            if (touched := self._on_augmenter(arrival)) is not None:
                self._dirty.add(touched)
        for worker in self._senders.forget(self._socket.revoked()):
            log.warning("worker %s is forgotten: its key is let in no more", worker.hex()[:8])
            self._known = {peer: hello for peer, hello in self._known.items() if hello.peer != worker}
            for key in [key for key in self._sources if key[0] == worker]:
                self._door.drop(key)
                self._sources[key].peer = b""
                self.bury(key)
        return came

    def introduce(self, event: Introduced) -> None:
        """An augmenter hands its arena of one stream over."""
        packet = event.packet
        key = (packet.peer, packet.stream)
        known = self._sources.get(key)
        has_one = known is not None and known.arena is not None and not known.buried
        if event.descriptor is None or packet.stream not in self._inboxes or has_one:
            if event.descriptor is not None:
                os.close(event.descriptor)
            self._door.refuse(event.connection)
            return
        try:
            arena = Arena.attach(event.descriptor, packet.slots, packet.slot_bytes)
        except PeerError as error:
            self._count_fault()
            log.warning("dropped an arena: %s", error)
            self._door.refuse(event.connection)
            return
        if known is None:
            known = self._sources[key] = _Source(packet.peer.hex()[:8])
        elif known.buried:
            known = self._succeed(key, known)
        known.arena = arena
        self._door.adopt(event.connection, key)
        side.send(event.connection, side.Packet(self._peer, packet.stream))

    def bury(self, key: Key) -> None:
        """The owner of an arena is gone; what it finished stays whole as long as it is held."""
        self._sources[key].buried = True
        self._dirty.add(key)

    def tell(self, beat: bool) -> None:
        """Say to whom something has changed, or with the heartbeat to everybody, what is held of theirs."""
        for uuid, inbox in self._inboxes.items():
            for batch in inbox.released():
                if batch.arena is not None and batch.arena in self._left:
                    self._release_left(batch.arena, batch.seq)
                elif source := self._sources.get((batch.source, uuid)):
                    source.held.pop(batch.seq, None)
                    self._dirty.add((batch.source, uuid))
        dirty, self._dirty = self._dirty, set()
        for key in list(self._sources) if beat else dirty:
            source = self._sources.get(key)
            # One without an arena tells by nothing else that its worker has gone. A live one is made anew by its BATCH.
            if source is not None and not self._send_holds(key, source) and source.idle:
                self._drop(key)

    def drop(self, stream: bytes) -> None:
        """The stream is over."""
        for key in [key for key in self._sources if key[1] == stream]:
            self._drop(key)
        for arena in [arena for arena, (left, _) in self._left.items() if left == stream]:
            del self._left[arena]
            arena.close()

    def close(self) -> None:
        """Give every arena back."""
        for stream in {stream for _, stream in self._sources} | {stream for stream, _ in self._left.values()}:
            self.drop(stream)

    def _on_augmenter(self, arrival: Arrival) -> Key | None:
        """Handle one message; the source whose holdings changed."""
        peer, message, payload, user = arrival
        try:
            if isinstance(message, PeerError):
                raise message
            if isinstance(message, Hello):
                self._on_hello(peer, message, user)
                return None
            hello = self._known.get(peer)
            if hello is None:
                self._socket.send(peer, Who())
                return None
            if not isinstance(message, Batch):
                raise PeerError(f"{hello.name} sent {type(message).__name__}, which is not for it to send")
            return self._on_batch(peer, hello, message, payload)
        except PeerError as error:
            self._count_fault()
            log.warning("dropped a message of an augmenter: %s", error)
            return self._refuse(peer, message)

    def _on_hello(self, peer: Peer, hello: Hello, user: str) -> None:
        if (objection := self._senders.objection(hello, user)) is None:
            self._senders.greet(hello, user)
            self._know(peer, hello)
            self._socket.send(peer, self._welcome(hello))
            return
        reason, words = objection
        self._count_refused("messages", reason, 1)
        if self._quiet.may_say((user, reason), time.monotonic()):
            who = " ".join(filter(None, (hello.role, hello.name, self._socket.name(user))))
            log.warning("refused %s: %s", who, words)
        self._socket.send(peer, Refused(words))

    def _on_batch(self, peer: Peer, hello: Hello, message: Batch, payload: list[Payload]) -> Key | None:
        if message.session != hello.session:
            return None
        key = (hello.peer, message.stream)
        inbox = self._inboxes.get(message.stream)
        if inbox is None:
            gone = Holds(stream=message.stream, session=message.session, seen=message.number, seqs=())
            self._socket.send(peer, gone)
            self._closed.remind(message.stream)
            return None
        if inbox.info is None:
            # It overtook the loader's OPENED, which comes on another connection. What has no room here is sent again.
            if len(self._early) < _MOST_EARLY:
                self._early.append(Arrival(peer, message, payload))
            return None
        source = self._sources.setdefault(key, _Source(hello.name))
        if source.buried and message.slot < 0:
            # It has come again, and its new arena could not be handed over.
            source = self._succeed(key, source)
        if message.session < source.session:
            return None
        if (source.session, source.peer) != (message.session, peer):
            source.session, source.peer, source.seen = message.session, peer, 0
        source.seen = max(source.seen, message.number)
        if hello.peer in self._refused:
            return key
        if not inbox.is_new(message.seq):
            if message.seq not in source.held and inbox.arrived.get(message.seq) != hello.peer:
                inbox.duplicates += 1
                if self._telemetry:
                    self._telemetry.counter("fourstage_duplicates_dropped_total").inc()
            return key
        code = lease_code(
            inbox.spec.secret, stream=message.stream, seq=message.seq, worker=hello.peer, identity=message.identity,
            samples=payload[0] if payload else b"",
        )  # fmt: skip
        if not equal(message.code, code):
            raise PeerError(f"{hello.name} sent batch {message.seq}, which it was not given, or with other samples")
        if message.slot >= 0 and message.slot in source.held.values():
            raise PeerError(f"{hello.name} sent batch {message.seq} in slot {message.slot}, which is not free")
        passage = self._passage(hello.name, message.times)
        batch = inbox.unpack(message, payload, source.arena, worker=hello.peer, passage=passage)
        source.held[message.seq] = message.slot
        inbox.put(batch)
        # Its release, or the next heartbeat, acknowledges it as well: one message less a batch.
        return None

    def _refuse(self, peer: Peer, message: Message | PeerError) -> Key | None:
        """Take nothing more from a worker that has sent what cannot be right; its source where it is known."""
        if (hello := self._known.get(peer)) is None:
            return None
        if hello.peer not in self._refused:
            log.warning("nothing more is taken from %s: others make its batches", hello.name)
            if len(self._refused) >= MOST_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[hello.peer] = None
        return (hello.peer, message.stream) if isinstance(message, Batch) else None

    def _know(self, peer: Peer, hello: Hello) -> None:
        """A connection says whose it is. One of too many is asked again when it next says something."""
        before = self._known.pop(peer, None)
        self._known[peer] = hello
        if before is not None and before.peer != hello.peer:
            self._forget_sources(peer, but=hello.peer)
        if len(self._known) > _MOST_CONNECTIONS:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._forget_sources(oldest)

    def _forget_sources(self, peer: Peer, *, but: bytes = b"") -> None:
        """Of this connection, those that hold nothing."""
        for key, source in list(self._sources.items()):
            if source.peer == peer and key[0] != but and source.idle:
                self._drop(key)

    def _welcome(self, hello: Hello) -> Welcome:
        return Welcome(
            peer=self._peer,
            session=hello.session,
            build=fourstage.__version__,
            side=os.fspath(self._door.path),
            heartbeat_seconds=self._link.heartbeat,
            silence_seconds=self._link.welcome.silence_seconds if self._link.welcome else _SILENCE_SECONDS,
        )

    def _send_holds(self, key: Key, source: _Source) -> bool:
        if not source.peer:
            return False
        holds = Holds(stream=key[1], session=source.session, seen=source.seen, seqs=tuple(sorted(source.held)))
        return self._socket.send(source.peer, holds)

    def _succeed(self, key: Key, before: _Source) -> _Source:
        """A worker that has hung up on an arena comes again: what comes late of its old sessions lies in no new one."""
        hello = self._known.get(before.peer)
        newest = before.session if hello is None else max(before.session, hello.session)
        source = self._sources[key] = _Source(before.name, session=newest + 1)
        if before.arena is not None:
            self._left[before.arena] = key[1], {seq for seq, slot in before.held.items() if slot >= 0}
            self._release_left(before.arena)
        return source

    def _release_left(self, arena: Arena, seq: int = -1) -> None:
        _, held = self._left[arena]
        held.discard(seq)
        if not held:
            del self._left[arena]
            arena.close()

    def _drop(self, key: Key) -> None:
        source = self._sources.pop(key)
        self._door.drop(key)
        if source.arena is not None:
            source.arena.close()

    def _count_refused(self, what: Literal["handshakes", "messages"], reason: str, number: int) -> None:
        if self._telemetry:
            self._telemetry.refused(what, reason, number)

    def _count_fault(self) -> None:
        if self._telemetry:
            self._telemetry.counter("fourstage_peer_errors_total").inc()
