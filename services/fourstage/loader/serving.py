"""What the loader serves: its streams, and who makes their batches."""

import logging
import time
from itertools import islice

from fourstage.errors import FourstageError, SettingsError
from fourstage.loader.book import Worker
from fourstage.loader.clients import Client, Clients
from fourstage.loader.entrances import Entrances
from fourstage.loader.leases import Grant, Leases, Timing
from fourstage.loader.readahead import ReadAhead
from fourstage.loader.streams import LoaderStream, open_stream
from fourstage.settings import LoaderSettings
from fourstage.store import Store
from fourstage.telemetry import Telemetry
from fourstage.views import colour_matrix
from fourstage.wire import side
from fourstage.wire.codes import equal, lease_code
from fourstage.wire.door import Door
from fourstage.wire.messages import (
    Beat,
    Failed,
    Gone,
    Lease,
    Open,
    Opened,
    Progress,
    Refused,
    Stream,
    Times,
    Tried,
    Who,
)

log = logging.getLogger(__name__)

_LEASES_OF_A_TURN = 64
"""Some 10 ms: whoever gives thousands at once hears nobody meanwhile, and takes the world for silent."""
_LONGEST_REASON = 1024
_MOST_STREAMS = 64
"""Of one trainer; each has an arena."""
FORGET_AFTER = 10
"""Silence limits after which a client without a side connection is forgotten; one with it is known to be dead. So a
loader that was started so long ago knows every stream there is."""
_GONE_OF_A_BEAT = 16
"""Streams that a worker is told of at one time that they are no more."""


class Serving:
    """Streams, their leases, and what is read ahead for them. Everything is called from the loader's one thread."""

    def __init__(
        self,
        store: Store,
        settings: LoaderSettings,
        *,
        peer: bytes,
        clients: Clients,
        socket: Entrances,
        door: Door[bytes],
        telemetry: Telemetry,
    ) -> None:
        """peer: the loader's own 16 bytes."""
        self._store = store
        self._settings = settings
        self._peer = peer
        self._clients = clients
        self._socket = socket
        self._door = door
        self._telemetry = telemetry
        self.leases = Leases(
            Timing(
                silence=settings.silence_seconds,
                hedge=settings.hedge_seconds,
                missing=2 * settings.heartbeat_seconds,
            )
        )
        self.streams: dict[bytes, LoaderStream] = {}
        self._knows_all_at = time.monotonic() + FORGET_AFTER * settings.silence_seconds
        repeated = telemetry.counter("fourstage_reads_repeated_total")
        self.read_ahead = ReadAhead(settings.threads, telemetry.meter("load"), settings.batch_seconds, repeated.inc)

    def join(self, client: Client, now: float) -> None:
        """An augmenter said HELLO: it hears of every stream."""
        self.leases.join(client.uuid, client.hello.identity, now)
        for stream in self.streams.values():
            self._announce(client, stream)

    def introduce(self, client: Client) -> None:
        """An augmenter's side connection stands: the arenas go over it."""
        for stream in self.streams.values():
            self._hand_over(client, stream)

    def leave(self, client: Client, *, died: bool) -> None:
        """A client is gone, and with it its streams and its leases."""
        for uuid, stream in list(self.streams.items()):
            if stream.client == client.uuid:
                self._close_stream(uuid)
        for uuid, seq, row in self.leases.leave(client.uuid, died=died):
            self._on_guilty(self.streams[uuid], seq, row)

    def turn(self, now: float) -> bool:
        """Take in what was read, read on, and lease; whether there may be more to lease, once everybody was heard."""
        for loaded in self.read_ahead.loaded(self.streams):
            if loaded.error is None:
                self.leases.loaded(loaded.stream, loaded.seq)
            else:
                self._fail(self.streams[loaded.stream], loaded.seq, -1, str(loaded.error))
        self.read_ahead.load(self.streams, self.leases, now)
        return self._lease(now)

    def tick(self, now: float) -> list[Worker]:
        """Time has passed; the workers that have fallen silent."""
        silent = self.leases.tick(now)
        for uuid, worker in self.leases.careless():
            self._refuse(self.streams[uuid], worker, "it loses what it is given")
        return silent

    def close(self) -> None:
        """Stop reading, give everything back."""
        self.read_ahead.close()
        for stream in self.streams.values():
            stream.arena.close()

    # Of trainers

    def on_open(self, client: Client, spec: Open) -> None:
        """A trainer opens a stream, or says so again."""
        stream = self.streams.get(spec.stream)
        if stream is None:
            try:
                others = sum(other.client == client.uuid for other in self.streams.values())
                if others >= _MOST_STREAMS:
                    raise SettingsError(f"a trainer has more than {_MOST_STREAMS} streams open", hint="close some")
                # So 64 streams may take less than five times as much as one.
                memory = self._settings.memory // (1 + others)
                stream = open_stream(self._store, spec, client.uuid, memory, client.user)
            except FourstageError as error:
                log.error("refused a stream of %s: %s", client.name, error)
                reason = str(error)[:_LONGEST_REASON]
                self._socket.send(client.peer, Failed(stream=spec.stream, seq=0, row=-1, reason=reason))
                return
            self.streams[spec.stream] = stream
            self.leases.open(
                spec.stream, start=spec.start, end=stream.end, window=spec.window, identity=spec.identity,
                only=spec.worker or None, rows=lambda seq: stream.order.plan.place(seq).rows,
            )  # fmt: skip
            log.info("%s opened %s: %s, batches %d to %d", client.name, stream.name, spec.split, spec.start, stream.end)
            for augmenter in self._clients.having("augmenter"):
                self._announce(augmenter, stream)
        elif stream.client != client.uuid:
            self.fault(client, "opened a stream of somebody else's")
            return
        self._send_opened(client, stream)
        self._say_failure(client, stream)

    def on_progress(self, client: Client, message: Progress, now: float) -> None:
        """How far a stream is."""
        stream = self.streams.get(message.stream)
        if stream is None:
            self._socket.send(client.peer, Who())
            return
        if stream.client != client.uuid:
            self.fault(client, "told how far it is with a stream of somebody else's")
            return
        for seq in self.leases.progress(message.stream, message.consumed, message.arrived, now=now):
            stream.release(seq)
        self._say_failure(client, stream)
        for worker in message.refused:
            self._refuse(stream, worker, f"{client.name} takes nothing more from it: its log says why")

    def on_close(self, client: Client, uuid: bytes) -> None:
        """A stream is over."""
        if (stream := self.streams.get(uuid)) is not None and stream.client != client.uuid:
            self.fault(client, "closed a stream of somebody else's")
            return
        self._close_stream(uuid)

    # Of augmenters

    def on_beat(self, client: Client, beat: Beat, now: float) -> None:
        """All that a worker holds."""
        client.usage = beat.usage
        slots = [entry for entry in beat.slots if self._may_serve(client, entry[0])]
        held = [(uuid, seq) for uuid, seq, code in beat.held if self._is_held(client, uuid, seq, code)]
        self.leases.beat(client.uuid, seen=beat.seen, held=held, slots=slots, now=now)
        if now >= self._knows_all_at:
            gone = (uuid for uuid, _, _ in beat.slots if uuid not in self.streams)
            for uuid in islice(gone, _GONE_OF_A_BEAT):
                self._socket.send(client.peer, Gone(uuid))

    def on_failed(self, client: Client, failed: Failed) -> None:
        """A worker cannot make a batch, or serve a stream."""
        stream = self.streams.get(failed.stream)
        if stream is None:
            return
        reason = f"{failed.reason} (reported by {client.name})"
        if failed.row < 0:
            self._refuse(stream, client.uuid, reason)
            others = [each for each in self._clients.having("augmenter") if self._clients.may_serve(each, stream)]
            if not any(self.leases.serves(other.uuid, failed.stream) for other in others):
                self._fail(stream, failed.seq, -1, reason)
        # A worker whose lease has ended may find other bytes in the slot: the batch has arrived from somebody else.
        elif not self.leases.holds(client.uuid, failed.stream, failed.seq):
            if self.leases.is_open(failed.stream, failed.seq):
                self.fault(client, f"failed at batch {failed.seq}, which it does not hold")
        elif failed.row >= stream.order.plan.place(failed.seq).rows or stream.spec.on_corrupt == "skip":
            self.fault(client, f"failed at row {failed.row} of batch {failed.seq}, where none may fail")
            self._refuse(stream, client.uuid, "it fails where none may")
        else:
            self._fail(stream, failed.seq, failed.row, reason)

    def on_tried(self, client: Client, tried: Tried) -> None:
        """A worker has lived through a trial."""
        self.leases.tried(client.uuid, tried.stream, tried.seq, tried.trial)

    def _may_serve(self, client: Client, stream: bytes) -> bool:
        return (known := self.streams.get(stream)) is not None and self._clients.may_serve(client, known)

    def _is_held(self, client: Client, uuid: bytes, seq: int, code: bytes) -> bool:
        """Whether a worker may say that it holds a batch: by the books, or by its code where the lease was given before
        a silence, or by a loader before this one."""
        if self.leases.holds(client.uuid, uuid, seq):
            return True
        if not self._may_serve(client, uuid) or not self.leases.is_open(uuid, seq):
            return False
        if self.leases.refuses(client.uuid, uuid):
            return False
        stream = self.streams[uuid]
        if equal(code, _code(client, stream, seq, stream.samples(seq))):
            return True
        self.fault(client, f"says that it holds batch {seq}, which it was not given")
        self._refuse(stream, client.uuid, "it claims what it was not given")
        return False

    def fault(self, client: Client, what: str) -> None:
        """Somebody has said what is not for it to say: dropped, counted, named."""
        self._telemetry.counter("fourstage_peer_errors_total").inc()
        log.warning("%s %s", client.name, what)

    # Streams

    def _send_opened(self, client: Client, stream: LoaderStream) -> None:
        plan = stream.order.plan
        opened = Opened(
            stream=stream.spec.stream,
            samples=plan.samples,
            batches_per_epoch=plan.batches_per_epoch,
            end=stream.end,
            largest_rows=plan.largest_rows,
            size=self._store.size,
            fingerprint=self._store.fingerprint,
            classes=self._store.classes,
            splits=tuple(sorted(self._store.splits)),
        )
        self._socket.send(client.peer, opened, [self._store.statistics.mean.astype("<f4").tobytes()])

    def _announce(self, client: Client, stream: LoaderStream) -> None:
        """Tell an augmenter of a stream that may be for it; the arena goes over the side connection, first."""
        spec = stream.spec
        if not self._clients.may_serve(client, stream) or self.leases.refuses(client.uuid, spec.stream):
            return
        if not self.leases.serves(client.uuid, spec.stream):
            wanted = self.leases.identity(spec.stream).hex()
            reason = f"makes other pixels ({client.hello.identity.hex()}) than the stream wants ({wanted})"
            log.warning("%s gets no lease: it %s", client.name, reason)
            self._socket.send(client.peer, Refused(f"this worker {reason}"))
        self._hand_over(client, stream)
        statistics = self._store.statistics
        colours = colour_matrix(statistics.eigenvectors, statistics.eigenvalues, spec.view.colour_scale)
        announcement = Stream(
            stream=spec.stream,
            split=spec.split,
            view=spec.view,
            size=self._store.size,
            seed=spec.seed,
            largest_rows=stream.order.plan.largest_rows,
            colours=tuple(colours.reshape(-1).tolist()),
            transport=spec.transport,
            slots=stream.arena.slots,
            slot_bytes=stream.arena.slot_bytes,
            receiver=spec.receiver,
            side=spec.side,
            on_corrupt=spec.on_corrupt,
            receiver_key=spec.receiver_key,
        )
        self._socket.send(client.peer, announcement)

    def _hand_over(self, client: Client, stream: LoaderStream) -> None:
        connection = self._door.connection(client.uuid)
        if connection is not None and stream.spec.transport == "arena" and self._clients.may_serve(client, stream):
            arena = stream.arena
            packet = side.Packet(self._peer, stream.spec.stream, arena.slots, arena.slot_bytes)
            side.send(connection, packet, arena.descriptor)

    def _refuse(self, stream: LoaderStream, worker: Worker, why: str) -> None:
        """A worker has no part in a stream any more; others make its batches."""
        if not self.leases.refuse(stream.spec.stream, worker):
            return
        self._telemetry.counter("fourstage_workers_refused_total").inc()
        client = self._clients.get(worker)
        log.warning(
            "%s gets no lease of stream %s: %s", client.name if client else "one that has left", stream.name, why
        )
        if client is not None:
            self._socket.send(client.peer, Gone(stream.spec.stream))

    def _on_guilty(self, stream: LoaderStream, seq: int, row: int) -> None:
        """A sample kills whoever decodes it."""
        if stream.spec.on_corrupt == "fail":
            self._fail(stream, seq, row, "it kills every worker that decodes it")
            return
        key = stream.split.keys(stream.order.indices(seq)[row : row + 1])[0]
        log.error("batch %d of stream %s is made without sample %r: it kills every worker", seq, stream.name, key)
        self.leases.skip(stream.spec.stream, seq, row)

    def _fail(self, stream: LoaderStream, seq: int, row: int, reason: str) -> None:
        if row >= 0:
            self._telemetry.counter("fourstage_corrupt_samples_total").inc()
            key = stream.split.keys(stream.order.indices(seq)[row : row + 1])[0]
            reason = f"sample {key!r} cannot be decoded: {reason}"
        log.error("stream %s failed at batch %d: %s", stream.name, seq, reason)
        stream.failure = Failed(stream=stream.spec.stream, seq=seq, row=row, reason=reason[:_LONGEST_REASON])
        if client := self._clients.get(stream.client):
            self._say_failure(client, stream)

    def _say_failure(self, client: Client, stream: LoaderStream) -> None:
        """Again with all that the trainer says: it may have been away when the stream failed."""
        if stream.failure is not None:
            self._socket.send(client.peer, stream.failure)

    def _close_stream(self, uuid: bytes) -> None:
        stream = self.streams.pop(uuid, None)
        if stream is None:
            return
        log.info("closed %s", stream.name)
        self.leases.close(uuid)
        for augmenter in self._clients.having("augmenter"):
            self._socket.send(augmenter.peer, Gone(uuid))
        stream.arena.close()

    # Leases

    def _lease(self, now: float) -> bool:
        """Give leases; whether there may be more, once everybody was heard again."""
        plan, left = self.leases.plan(now), _LEASES_OF_A_TURN
        while left and (grant := next(plan, None)) is not None:
            if not self._send_lease(grant):
                self.leases.revoke(grant)
            left -= 1
        return not left

    def _send_lease(self, grant: Grant) -> bool:
        client, stream = self._clients.get(grant.worker), self.streams[grant.stream]
        if client is None:
            return False
        slotted = stream.slotted[grant.seq]
        place = stream.order.plan.place(grant.seq)
        payload: list[bytes | memoryview] = [slotted.samples]
        inline = self._door.connection(client.uuid) is None or stream.spec.transport == "inline"
        if inline:
            payload.append(stream.arena.slot(slotted.slot, slotted.size))
        lease = Lease(
            stream=grant.stream,
            seq=grant.seq,
            session=client.hello.session,
            number=grant.number,
            head=grant.head,
            epoch=place.epoch,
            first=place.first,
            rows=place.rows,
            slot=-1 if inline else slotted.slot,
            sizes=slotted.sizes,
            code=_code(client, stream, grant.seq, slotted.samples),
            times=Times(read_from=slotted.read_from, read_to=slotted.read_to, leased=time.monotonic()),
            skip=grant.skip,
            trial=grant.trial,
        )
        sent = self._socket.send(client.peer, lease, payload)
        if sent and grant.again:
            self._telemetry.counter("fourstage_redispatched_total").inc()
        return sent


def _code(client: Client, stream: LoaderStream, seq: int, samples: bytes) -> bytes:
    """What proves that this worker was given this batch."""
    spec = stream.spec
    return lease_code(
        spec.secret, stream=spec.stream, seq=seq, worker=client.uuid, identity=client.hello.identity, samples=samples
    )
