"""Stage 2 as a service: decodes and transforms one batch at a time straight into one of its own slots.

One process, one core, one thread. It holds no state that matters: kill it at any moment.
"""

import contextlib
import itertools
import logging
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import draw
from fourstage.augmenter.outbox import Outbox, Work
from fourstage.augmenter.transform import identity, scratch_for, transform_decodable
from fourstage.errors import CorruptSampleError, PeerError, SettingsError
from fourstage.process import StopFlag
from fourstage.settings import AugmenterSettings
from fourstage.telemetry import Telemetry
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Beat, Failed, Gone, Lease, Message, Stream, Tried, Welcome
from fourstage.wire.security import Security
from fourstage.wire.sockets import Payload, Waiter
from fourstage.wire.sources import JpegSources

log = logging.getLogger(__name__)

_ROWS_BETWEEN_TURNS = 64
"""Images made between two looks at the sockets: some 20 ms, well within any heartbeat."""
_IDLE_SECONDS = 0.1
_MOST_STREAMS = 256
"""Each has an arena and a connection."""


class AugmenterService:
    """``run`` until the stop flag is set."""

    def __init__(
        self,
        address: str,
        settings: AugmenterSettings,
        *,
        name: str,
        telemetry: Telemetry,
        stop: StopFlag,
        security: Security | None = None,
    ) -> None:
        cv2.setNumThreads(1)
        self._settings = settings
        self._name = name
        self._telemetry = telemetry
        self._meter = telemetry.meter("transform")
        self._stop = stop
        self._decode = make_decoder(settings.decoder)
        self._identity = identity(self._decode)
        self._security = security
        self._waiter = Waiter()
        self._waiter.add(stop.reader)
        self._faults = telemetry.counter("fourstage_peer_errors_total")
        self._link = LoaderLink(
            address, role="augmenter", name=name, waiter=self._waiter, identity=self._identity, security=security,
            on_fault=self._faults.inc,
        )  # fmt: skip
        self._outboxes: dict[bytes, Outbox] = {}
        self._sessions = itertools.count(1)
        self._sources = JpegSources()
        self._scratch: dict[int, NDArray[np.uint8]] = {}
        self._seen = 0
        self._next_beat = 0.0
        self._changed = False
        log.info("decoder %s, identity %s", settings.decoder, self._identity.hex())

    def run(self) -> None:
        """Serve until the stop flag is set; the batch in work is finished and told."""
        mark = time.monotonic()
        while not self._stop:
            self._turn()
            work = self._next()
            if work is not None:
                (self._make if work[1].lease.trial == (0, 0) else self._try)(*work)
                mark = time.monotonic()
                continue
            self._waiter.wait(min(_IDLE_SECONDS, self._link.patience))
            now = time.monotonic()
            full = self._outboxes and all(outbox.slots[1] <= 1 for outbox in self._outboxes.values())
            self._meter.waited(now - mark, "downstream" if full else "upstream")
            mark = now

    def close(self) -> None:
        """Say goodbye. Batches that the trainer has mapped stay whole for it."""
        self._link.close()
        for outbox in self._outboxes.values():
            outbox.close()
        self._sources.close()
        self._waiter.close()

    def _turn(self) -> None:
        """Look at every socket; send the heartbeat when it is due or something has changed."""
        now = time.monotonic()
        self._telemetry.turn()
        for message, payload in self._link.turn(now):
            self._on_loader(message, payload, now)
        for uuid, outbox in list(self._outboxes.items()):
            self._changed |= outbox.turn(now)
            if outbox.trainer_died():
                log.warning("the trainer of stream %s is gone", uuid.hex()[:8])
                self._drop(uuid)
        if self._changed or now >= self._next_beat:
            self._beat(now)

    def _beat(self, now: float) -> None:
        sent = self._link.send(
            Beat(
                seen=self._seen,
                held=tuple(entry for outbox in self._outboxes.values() for entry in outbox.held),
                slots=tuple(outbox.slots for outbox in self._outboxes.values()),
                usage=self._meter.usage,
            )
        )
        self._changed = self._changed and not sent
        self._next_beat = now + self._link.heartbeat
        free = sum(outbox.slots[1] for outbox in self._outboxes.values())
        used = sum(outbox.arena.slots for outbox in self._outboxes.values()) - free
        arenas = [outbox.arena for outbox in self._outboxes.values()]
        self._telemetry.gauge("fourstage_arena_bytes").set(sum(arena.slots * arena.slot_bytes for arena in arenas))
        self._telemetry.gauge("fourstage_slots", "free").set(free)
        self._telemetry.gauge("fourstage_slots", "used").set(used)

    def _on_loader(self, message: Message, payload: list[Payload], now: float) -> None:
        match message:
            case Welcome():
                self._seen = 0
                self._changed = True
                self._sources.follow(self._link.side)
            case Stream():
                self._on_stream(message)
            case Lease():
                self._on_lease(message, payload, now)
            case Gone():
                self._drop(message.stream)
            case _:
                self._faults.inc()
                log.warning("the loader sent %s, which is not for it to send", type(message).__name__)

    def _on_stream(self, spec: Stream) -> None:
        self._sources.attach(spec)
        self._changed = True
        if spec.stream in self._outboxes:
            return
        try:
            if spec.view.crop > spec.size:
                raise SettingsError(f"a crop of {spec.view.crop} of images of {spec.size}x{spec.size}")
            if (image := 3 * spec.size * spec.size) > (memory := self._settings.memory):
                raise SettingsError(
                    f"augmenter.memory = {memory} is too small for one image of {image} bytes",
                    hint="raise it or lower batch_size",
                )
            if len(self._outboxes) >= _MOST_STREAMS:
                raise SettingsError(f"this worker serves {_MOST_STREAMS} streams, and has as many")
            self._outboxes[spec.stream] = Outbox(
                spec,
                peer=self._link.peer,
                name=self._name,
                identity=self._identity,
                slots=self._settings.slots,
                memory=self._settings.memory,
                waiter=self._waiter,
                sessions=self._sessions,
                security=self._security,
                on_fault=self._faults.inc,
            )
        except SettingsError as error:
            log.error("cannot serve a stream: %s", error)
            self._link.send(Failed(stream=spec.stream, seq=0, row=-1, reason=str(error)[:1024]))

    def _on_lease(self, lease: Lease, payload: list[Payload], now: float) -> None:
        if lease.session != self._link.session:
            return
        self._seen = max(self._seen, lease.number)
        if (outbox := self._outboxes.get(lease.stream)) is None:
            return
        try:
            if lease.rows > outbox.spec.largest_rows or not lease.trial[0] <= lease.trial[1] <= lease.rows:
                raise PeerError(f"{lease.rows} rows and a trial of {lease.trial}")
            jpeg = self._sources.jpeg(lease, payload)
        except PeerError as error:
            self._faults.inc()
            log.warning("dropped a lease of the loader: %s", error)
            return
        outbox.accept(lease, payload[0], jpeg, now)

    def _next(self) -> tuple[Outbox, Work] | None:
        """The lease to make now: a head first, else the one that came first."""
        waiting = [(outbox, outbox.leased[0]) for outbox in self._outboxes.values() if outbox.leased]
        return min(waiting, key=lambda entry: (not entry[1].lease.head, entry[1].received), default=None)

    def _make(self, outbox: Outbox, work: Work) -> None:
        lease, spec = work.lease, outbox.spec
        began = time.monotonic()
        draws = draw(
            spec.view,
            size=spec.size,
            seed=spec.seed,
            epoch=lease.epoch,
            first=lease.first,
            rows=lease.rows,
            colours=np.array(spec.colours).reshape(3, 3),
        )
        ends = np.cumsum(np.frombuffer(lease.sizes, "<u4"), dtype=np.int64).tolist()
        images = [work.jpeg[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
        pixels = outbox.pixels(work)
        scratch = self._scratch_of(spec.size)
        skipped: list[int] = []
        for first in range(0, lease.rows, _ROWS_BETWEEN_TURNS):
            rows = slice(first, first + _ROWS_BETWEEN_TURNS)
            left_out = transform_decodable(
                images[rows], draws.rows(rows), self._decode, scratch=scratch, out=pixels[first - len(skipped) :],
                skip=[row - first for row in lease.skip if rows.start <= row < rows.stop],
            )  # fmt: skip
            # Whoever has lost its lease may find other bytes here, and leave out what is whole. The loader fills a slot
            # anew only once the batch has arrived at the trainer, which drops this worker's as a second copy.
            for row, why in left_out.items():
                log.error("batch %d row %d: %s", lease.seq, first + row, why)
                if spec.on_corrupt == "fail":
                    failed = Failed(stream=lease.stream, seq=lease.seq, row=first + row, reason=why[:1024])
                    self._link.send(failed)
                    outbox.abandon(work)
                    return
                skipped.append(first + row)
            self._turn()
            if self._outboxes.get(lease.stream) is not outbox:
                return
        while (left := began + self._settings.batch_seconds - time.monotonic()) > 0 and not self._stop:
            self._waiter.wait(min(left, _IDLE_SECONDS))
            self._turn()
        if self._outboxes.get(lease.stream) is not outbox:
            return
        now = time.monotonic()
        made = pixels[: lease.rows - len(skipped)]
        self._meter.done(now - began, items=len(made), size=made.nbytes)
        outbox.finish(work, draws, tuple(skipped), made_from=began, now=now, clock_offset=self._link.clock_offset)

    def _scratch_of(self, size: int) -> NDArray[np.uint8]:
        if size not in self._scratch:
            self._scratch[size] = scratch_for(size)
        return self._scratch[size]

    def _try(self, outbox: Outbox, work: Work) -> None:
        """Decode the rows of a trial, for nothing: whether they kill this process is all that it is for."""
        lease, size = work.lease, outbox.spec.size
        ends = np.cumsum(np.frombuffer(lease.sizes, "<u4"), dtype=np.int64).tolist()
        for row in sorted({*range(*lease.trial)} - {*lease.skip}):
            with contextlib.suppress(CorruptSampleError):
                self._decode(work.jpeg[ends[row - 1] if row else 0 : ends[row]], self._scratch_of(size))
        outbox.abandon(work)
        self._link.send(Tried(stream=lease.stream, seq=lease.seq, trial=lease.trial))
        self._changed = True

    def _drop(self, uuid: bytes) -> None:
        if outbox := self._outboxes.pop(uuid, None):
            outbox.close()
        self._sources.drop(uuid)
