"""The trainer's own augmenter, which only takes: leases come in, draws are made, JPEG bytes go into the inbox.

Towards the loader it is an augmenter like any other, so order, leases, restarts and deaths are the loader's as ever.
Its slots hold JPEG bytes. They are copied out of the loader's slot at once, because that is used again as soon as the
batch has arrived: some 3 MB a batch, which with the draws takes a fortieth of the time that a core takes to decode them
(docs/performance.md).
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.draws import draw
from fourstage.errors import PeerError, SettingsError
from fourstage.telemetry import Telemetry
from fourstage.trace import Passage
from fourstage.trainer.encoded import Encoded
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.wire.codec import decode_body
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Batch, Beat, Gone, Lease, Message, Samples, Stream, Times, Usage, Welcome
from fourstage.wire.security import Security
from fourstage.wire.sockets import Payload, Waiter
from fourstage.wire.sources import JpegSources

log = logging.getLogger(__name__)

Allocate = Callable[[int], NDArray[np.uint8]]
"""So many bytes of the host's memory, page-locked where a GPU reads them."""
_NO_PIXELS = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(slots=True)
class _Taken:
    """A lease whose bytes lie in a slot here."""

    lease: Lease
    samples: Payload
    slot: int
    size: int
    received: float


@dataclass(slots=True)
class _Ring:
    """The slots of one stream. Another thread adds to ``released``; all else belongs to the feed's."""

    spec: Stream
    slots: list[NDArray[np.uint8]]
    colours: NDArray[np.float64]
    free: list[int]
    taken: list[_Taken] = field(default_factory=list)
    """Not put into the inbox: the loader's OPENED has not come yet."""
    released: deque[int] = field(default_factory=deque)


class JpegTaker:
    """Called from the feed's thread alone; starts none."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        identity: bytes,
        slots: int,
        memory: int,
        allocate: Allocate,
        waiter: Waiter,
        telemetry: Telemetry,
        trainers: str,
        security: Security | None,
    ) -> None:
        """address, trainers: the settings ``loader.address`` and ``loader.trainers``.

        slots: batches of one stream that may lie here, besides one for its head. memory: bytes that they may take.

        allocate: makes their memory
        """
        self._name = name
        self._identity = identity
        self._slots = slots
        self._memory = memory
        self._allocate = allocate
        self._telemetry = telemetry
        self._link = LoaderLink(
            address,
            role="augmenter",
            process="trainer",
            trainers=trainers,
            name=name,
            waiter=waiter,
            identity=identity,
            security=security,
            on_fault=telemetry.counter("fourstage_peer_errors_total").inc,
        )
        self._sources = JpegSources()
        self._rings: dict[bytes, _Ring] = {}
        self._seen = 0
        self._changed = False
        self._next_beat = 0.0
        self._usage = Usage()
        self._busy = 0.0
        self._accounted = time.monotonic()

    @property
    def peer(self) -> bytes:
        """The 16 bytes that OPEN names."""
        return self._link.peer

    def turn(self, now: float, inboxes: Mapping[bytes, Inbox], passage: Callable[[str, Times], Passage]) -> bool:
        """As ``Taker``. Raises RefusedError where the loader will not have us."""
        before = self._usage.batches
        for message, payload in self._link.turn(now):
            self._on_loader(message, payload, inboxes, now)
        for uuid, ring in list(self._rings.items()):
            if uuid not in inboxes:
                self._drop(uuid)
                continue
            while ring.released:
                ring.free.append(ring.released.popleft())
                self._changed = True
            while ring.taken and inboxes[uuid].info is not None:
                self._put(ring, ring.taken.pop(0), inboxes[uuid], passage)
        if self._changed or now >= self._next_beat:
            self._beat(now)
        return self._usage.batches > before

    def close(self) -> None:
        """Say goodbye."""
        self._link.close()
        self._rings.clear()
        self._sources.close()

    def _on_loader(self, message: Message, payload: list[Payload], inboxes: Mapping[bytes, Inbox], now: float) -> None:
        match message:
            case Welcome():
                self._seen = 0
                self._changed = True
                self._sources.follow(self._link.side)
            case Stream():
                self._on_stream(message, inboxes)
            case Lease():
                self._on_lease(message, payload, inboxes, now)
            case Gone():
                self._drop(message.stream)
            case _:
                self._fault(PeerError(f"it sent {type(message).__name__}, which is not for it to send"))

    def _on_stream(self, spec: Stream, inboxes: Mapping[bytes, Inbox]) -> None:
        self._sources.attach(spec)
        if spec.stream not in inboxes:
            # Somebody else's: the loader learns whose worker this is only from OPEN.
            self._sources.drop(spec.stream)
            return
        self._changed = True
        if spec.stream in self._rings:
            return
        count = min(self._slots + 1, self._memory // max(1, spec.slot_bytes))
        if count < 1:
            error = f"augmenter.memory = {self._memory} is too small for one batch of {spec.slot_bytes} bytes of JPEG"
            inboxes[spec.stream].fail(SettingsError(error, hint="raise it or lower batch_size"))
            return
        slots = [self._allocate(spec.slot_bytes) for _ in range(count)]
        colours = np.array(spec.colours).reshape(3, 3)
        self._rings[spec.stream] = _Ring(spec, slots, colours, list(range(count)))

    def _on_lease(self, lease: Lease, payload: list[Payload], inboxes: Mapping[bytes, Inbox], now: float) -> None:
        if lease.session != self._link.session:
            return
        self._seen = max(self._seen, lease.number)
        self._changed = True
        ring, inbox = self._rings.get(lease.stream), inboxes.get(lease.stream)
        if ring is None or inbox is None or not ring.free:
            return
        began = time.monotonic()
        try:
            if not payload or len(lease.sizes) != 4 * lease.rows or lease.rows > ring.spec.largest_rows:
                raise PeerError(f"lease of {lease.rows} rows with {len(lease.sizes)} bytes of sizes")
            if any(lease.trial):
                raise PeerError("a trial, which is for augmenters: nothing is decoded here")
            known = inbox.info is not None and not inbox.is_new(lease.seq)
            if known or any(taken.lease.seq == lease.seq for taken in ring.taken):
                return
            jpeg = self._sources.jpeg(lease, payload)
            if len(jpeg) > ring.spec.slot_bytes:
                raise PeerError(f"{len(jpeg)} bytes of images, announced were at most {ring.spec.slot_bytes}")
        except PeerError as error:
            self._fault(error)
            return
        slot = ring.free.pop()
        ring.slots[slot][: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
        ring.taken.append(_Taken(lease, payload[0], slot, len(jpeg), now))
        self._busy += time.monotonic() - began

    def _put(self, ring: _Ring, taken: _Taken, inbox: Inbox, passage: Callable[[str, Times], Passage]) -> None:
        """Make the draws of a lease and put it into the inbox: it has arrived."""
        began = time.monotonic()
        self._changed = True
        try:
            batch = self._batch(ring, taken, inbox, passage) if inbox.is_new(taken.lease.seq) else None
        except PeerError as error:
            self._fault(error)
            batch = None
        if batch is None:
            ring.free.append(taken.slot)
            return
        inbox.put(batch)
        self._busy += time.monotonic() - began
        self._usage = dataclasses.replace(self._usage, batches=self._usage.batches + 1)

    def _batch(self, ring: _Ring, taken: _Taken, inbox: Inbox, passage: Callable[[str, Times], Passage]) -> FeedBatch:
        """Raises PeerError where the lease is not what the order says."""
        if (info := inbox.info) is None:
            raise PeerError("lease before the stream was opened")
        began, lease, spec = time.monotonic(), taken.lease, ring.spec
        samples = decode_body(Samples, taken.samples)
        # What is checked of it is what would be checked of an augmenter's.
        header = Batch(
            stream=lease.stream, seq=lease.seq, session=0, number=0, slot=-1, rows=lease.rows, identity=self._identity,
            code=lease.code, skipped=lease.skip,
        )  # fmt: skip
        indices, labels = inbox.check(header, samples)
        draws = draw(
            spec.view, size=spec.size, seed=spec.seed, epoch=lease.epoch, first=lease.first, rows=lease.rows,
            colours=ring.colours,
        )  # fmt: skip
        offset = self._link.clock_offset
        received, made_from, made_to = (
            max(0.0, moment + offset) for moment in (taken.received, began, time.monotonic())
        )
        times = dataclasses.replace(lease.times, received=received, made_from=made_from, made_to=made_to)
        sizes = np.frombuffer(lease.sizes, "<u4")

        def release(_: FeedBatch) -> None:
            ring.released.append(taken.slot)
            inbox.wake()

        return FeedBatch(
            seq=lease.seq,
            place=info.plan.place(lease.seq),
            keys=samples.keys,
            indices=indices,
            labels=labels,
            offsets=draws.offsets,
            reflections=draws.reflections,
            shifts=draws.shifts,
            pixels=_NO_PIXELS,
            identity=self._identity,
            source=self.peer,
            _release=release,
            passage=passage(self._name, times),
            encoded=Encoded(ring.slots[taken.slot][: taken.size], sizes, spec.size, lease.skip),
        )

    def _beat(self, now: float) -> None:
        self._account(now)
        sent = self._link.send(
            Beat(
                seen=self._seen,
                held=tuple(
                    (uuid, taken.lease.seq, taken.lease.code)
                    for uuid, ring in self._rings.items()
                    for taken in ring.taken
                ),
                slots=tuple((uuid, len(ring.free), len(ring.slots)) for uuid, ring in self._rings.items()),
                usage=self._usage,
            )
        )
        self._changed = self._changed and not sent
        self._next_beat = now + self._link.heartbeat

    def _account(self, now: float) -> None:
        """Time that was no work was waited: for a free slot, or for leases."""
        busy, self._busy = self._busy, 0.0
        waited = max(0.0, now - self._accounted - busy)
        self._accounted = max(now, self._accounted)
        full = self._rings and all(len(ring.free) <= 1 for ring in self._rings.values())
        self._usage = dataclasses.replace(
            self._usage,
            busy=self._usage.busy + busy,
            wait_upstream=self._usage.wait_upstream + (0.0 if full else waited),
            wait_downstream=self._usage.wait_downstream + (waited if full else 0.0),
        )

    def _fault(self, error: PeerError) -> None:
        self._telemetry.counter("fourstage_peer_errors_total").inc()
        log.warning("dropped a message of the loader: %s", error)

    def _drop(self, uuid: bytes) -> None:
        self._rings.pop(uuid, None)
        self._sources.drop(uuid)
