"""Stage 1 as a service: reads ahead what the streams will want and leases it to augmenters.

One thread owns the socket and the books; reading threads fill slots and wake it. Nothing here outlives the process
that its peers could not tell it again: restarted, also on another address, it goes on.
"""

import logging
import os
import secrets
import time
from pathlib import Path

import fourstage
from fourstage.errors import FourstageError, PeerError, SettingsError
from fourstage.loader.book import Worker
from fourstage.loader.clients import Client, Clients
from fourstage.loader.entrances import Arrival, Entrances
from fourstage.loader.leases import Grant, Leases, Timing
from fourstage.loader.readahead import ReadAhead
from fourstage.loader.report import Report
from fourstage.loader.streams import LoaderStream, open_stream
from fourstage.process import StopFlag, socket_path
from fourstage.settings import LoaderSettings
from fourstage.store import Store
from fourstage.telemetry import Telemetry
from fourstage.views import colour_matrix
from fourstage.wire import side
from fourstage.wire.codes import equal, lease_code
from fourstage.wire.door import Door, Introduced
from fourstage.wire.messages import (
    Beat,
    Bye,
    Close,
    Failed,
    Gone,
    Hello,
    Lease,
    Open,
    Opened,
    Ping,
    Pong,
    Progress,
    Refused,
    Stream,
    Times,
    Tried,
    Welcome,
    Who,
)
from fourstage.wire.refusals import Quiet
from fourstage.wire.security import Security
from fourstage.wire.sockets import Waiter

log = logging.getLogger(__name__)

_TURN_SECONDS = 0.2
_LONGEST_PACE_SECONDS = 0.008
_PACES_OF_A_LEASE = 8
"""Whatever wakes a process whose code the decoders have pushed out of the caches costs it 300 microseconds. So a
message waits for those that follow it, an eighth of what a batch takes from lease to arrival: nobody runs dry
meanwhile."""
_LEASES_OF_A_TURN = 64
"""Some 10 ms: whoever gives thousands at once hears nobody meanwhile, and takes the world for silent."""
_MESSAGES_OF_A_TURN = 4096
"""Nobody who speaks without end keeps the loader from all else."""
_GOODBYE_SECONDS = 0.05
"""After a side connection has hung up: a goodbye that was said before may still be in ZeroMQ's own thread."""
_FORGET_AFTER = 10
"""Silence limits after which a client without a side connection is forgotten; one with it is known to be dead."""
_LONGEST_REASON = 1024
_MOST_CLIENTS = 4096
_MOST_STREAMS = 64
"""Of one trainer; each has an arena."""


class LoaderService:
    """``run`` until the stop flag is set."""

    def __init__(
        self,
        store: Store,
        settings: LoaderSettings,
        *,
        sockets: Path,
        telemetry: Telemetry,
        stop: StopFlag,
        security: Security | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._meter = telemetry.meter("load")
        self._stop = stop
        self._uuid = secrets.token_bytes(16)
        self._waiter = Waiter()
        self._socket = Entrances(settings, sockets, security, telemetry.refused)
        faults = telemetry.counter("fourstage_peer_errors_total")
        self._door: Door[bytes] = Door(socket_path(sockets, "loader"), self._waiter, faults.inc)
        repeated = telemetry.counter("fourstage_reads_repeated_total")
        self._read_ahead = ReadAhead(settings.threads, self._meter, settings.batch_seconds, repeated.inc)
        self._leases = Leases(
            Timing(
                silence=settings.silence_seconds,
                hedge=settings.hedge_seconds,
                missing=2 * settings.heartbeat_seconds,
            )
        )
        self._streams: dict[bytes, LoaderStream] = {}
        self._clients = Clients()
        self._hung_up: dict[bytes, float] = {}
        """Clients whose side connection has hung up, and when they are taken for dead."""
        self._report = Report(telemetry, self._meter, self._leases, self._streams, self._clients)
        telemetry.gauge("fourstage_augmenters_expected").set(settings.expect_augmenters)
        self._quiet = Quiet()
        self._socket.wake(self._waiter)
        for source in (self._read_ahead.wake, stop.reader):
            self._waiter.add(source)

    @property
    def address(self) -> str:
        """Where the loader listens for augmenters."""
        return self._socket.augmenters

    @property
    def trainers(self) -> str:
        """Where it listens for trainers."""
        return self._socket.trainers

    def run(self) -> None:
        """Serve until the stop flag is set."""
        next_beat = time.monotonic()
        more = False
        while not self._stop:
            patience = min(_TURN_SECONDS, _GOODBYE_SECONDS) if self._hung_up else _TURN_SECONDS
            if not self._read_ahead.rest(awaited=self._leases.starving()):
                patience = 0.0
            readable = self._waiter.wait(0.0 if more else max(0.0, min(patience, next_beat - time.monotonic())))
            pace = min(_LONGEST_PACE_SECONDS, self._leases.shortest() / _PACES_OF_A_LEASE)
            if pace and not more and not readable:
                self._stop.wait(pace)
            now = time.monotonic()
            self._telemetry.turn()
            for arrival in self._socket.arrivals(_MESSAGES_OF_A_TURN):
                self._on_message(arrival, now)
            self._forget_revoked()
            for event in self._door.events(readable):
                if isinstance(event, Introduced):
                    self._on_introduced(event)
                else:
                    self._hung_up[event.key] = now + _GOODBYE_SECONDS
            for uuid in [uuid for uuid, at in self._hung_up.items() if at <= now]:
                del self._hung_up[uuid]
                self._on_death(uuid)
            if self._read_ahead.wake in readable:
                os.eventfd_read(self._read_ahead.wake)
            self._take_loaded()
            self._read_ahead.load(self._streams, self._leases, now)
            more = self._lease(now)
            if now >= next_beat:
                self._beat(now)
                next_beat = now + self._settings.heartbeat_seconds

    def close(self) -> None:
        """Say goodbye, stop reading, give everything back."""
        for client in self._clients:
            self._socket.send(client.peer, Bye())
        self._door.close()
        self._socket.close()
        self._waiter.close()
        self._read_ahead.close()
        for stream in self._streams.values():
            stream.arena.close()

    # Who is there

    def _on_message(self, arrival: Arrival, now: float) -> None:
        peer, message = arrival.peer, arrival.message
        if isinstance(message, PeerError):
            self._telemetry.counter("fourstage_peer_errors_total").inc()
            log.warning("dropped a message: %s", message)
            self._socket.send(peer, Refused(str(message)[:_LONGEST_REASON]))
            return
        if isinstance(message, Hello):
            self._on_hello(arrival, message, now)
            return
        client = self._clients.behind(peer)
        if client is None:
            self._socket.send(peer, Who())
            return
        client.heard = now
        match message:
            case Ping():
                self._socket.send(peer, Pong(sent=message.sent, clock=time.monotonic()))
            case Open() if client.hello.role == "trainer":
                self._on_open(client, message)
            case Progress() if client.hello.role == "trainer":
                self._on_progress(client, message, now)
            case Close() if client.hello.role == "trainer":
                self._on_close(client, message.stream)
            case Beat() if client.hello.role == "augmenter":
                self._on_beat(client, message, now)
            case Tried() if client.hello.role == "augmenter":
                self._leases.tried(client.uuid, message.stream, message.seq, message.trial)
            case Failed() if client.hello.role == "augmenter":
                self._on_failed(client, message)
            case Bye():
                log.info("%s left", client.name)
                self._forget(client, died=False)
            case _:
                self._fault(client, f"sent {type(message).__name__}, which is not for it to send")

    def _may_serve(self, client: Client, stream: bytes) -> bool:
        return (known := self._streams.get(stream)) is not None and self._clients.may_serve(client, known)

    def _fault(self, client: Client, what: str) -> None:
        self._telemetry.counter("fourstage_peer_errors_total").inc()
        log.warning("%s %s", client.name, what)

    def _forget_revoked(self) -> None:
        """Whose key was taken away is as good as dead, and is sent nothing more."""
        for client in self._clients.of(self._socket.revoked()):
            log.warning("%s is forgotten: its key is let in no more", client.name)
            self._forget(client, died=False)

    def _on_hello(self, arrival: Arrival, hello: Hello, now: float) -> None:
        peer = arrival.peer
        if (objection := self._clients.objection(hello, user=arrival.user, place=arrival.role)) is not None:
            reason, words = objection
            self._telemetry.refused("messages", reason, 1)
            if self._quiet.may_say((arrival.user, reason), now):
                who = " ".join(filter(None, (hello.role, hello.name, self._socket.name(arrival.user))))
                log.warning("refused %s: %s", who, words)
            self._socket.send(peer, Refused(words))
            return
        # A connection is one process's, and a process has one role: ever new ones would fill the books.
        if (same := self._clients.get(hello.peer)) is not None and same.hello.role != hello.role:
            self._forget(same, died=False)
        if (before := self._clients.behind(peer)) is not None and before.uuid != hello.peer:
            self._forget(before, died=False)
        if self._clients.get(hello.peer) is None and len(self._clients) >= _MOST_CLIENTS:
            self._socket.send(peer, Refused(f"this loader serves {_MOST_CLIENTS} peers, and has as many"))
            return
        client, new = self._clients.greet(peer, hello, now, user=arrival.user, place=arrival.role)
        if new:
            key = self._socket.name(client.user)
            log.info("%s %s joined (build %s%s)", hello.role, hello.name, hello.build, f", key {key}" if key else "")
        self._socket.send(peer, self._welcome(client))
        self._clients.trainers_lost.discard(hello.name)
        if hello.role == "augmenter":
            self._leases.join(hello.peer, hello.identity, now)
            for stream in self._streams.values():
                self._announce(client, stream)
        self._report.peers()

    def _welcome(self, client: Client) -> Welcome:
        """The answer to HELLO, and to augmenters the heartbeat as well: complete, like all state here."""
        return Welcome(
            peer=self._uuid,
            session=client.hello.session,
            build=fourstage.__version__,
            side=os.fspath(self._door.path),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            silence_seconds=self._settings.silence_seconds,
        )

    def _on_introduced(self, event: Introduced) -> None:
        if event.descriptor is not None:
            os.close(event.descriptor)
        client = self._clients.get(event.packet.peer)
        if client is None or self._door.connection(client.uuid) is not None:
            self._door.refuse(event.connection)
            return
        self._hung_up.pop(client.uuid, None)
        self._door.adopt(event.connection, client.uuid)
        side.send(event.connection, side.Packet(self._uuid, b""))
        if client.hello.role == "augmenter":
            for stream in self._streams.values():
                self._hand_over(client, stream)

    def _on_death(self, uuid: bytes) -> None:
        if (client := self._clients.get(uuid)) is None:
            return
        log.warning("%s is gone", client.name)
        if client.hello.role == "augmenter" and not client.owned:
            self._telemetry.counter("fourstage_workers_died_total").inc()
        self._forget(client, died=True)

    def _forget(self, client: Client, *, died: bool) -> None:
        if died and client.hello.role == "trainer":
            self._clients.lose(client)
        self._clients.forget(client)
        self._door.drop(client.uuid)
        for uuid, stream in list(self._streams.items()):
            if stream.client == client.uuid:
                self._close_stream(uuid)
        for uuid, seq, row in self._leases.leave(client.uuid, died=died):
            self._on_guilty(self._streams[uuid], seq, row)
        self._report.peers()

    # Streams

    def _on_open(self, client: Client, spec: Open) -> None:
        stream = self._streams.get(spec.stream)
        if stream is None:
            try:
                if sum(other.client == client.uuid for other in self._streams.values()) >= _MOST_STREAMS:
                    raise SettingsError(f"a trainer has more than {_MOST_STREAMS} streams open", hint="close some")
                stream = open_stream(self._store, spec, client.uuid, self._settings.memory, client.user)
            except FourstageError as error:
                log.error("refused a stream of %s: %s", client.name, error)
                reason = str(error)[:_LONGEST_REASON]
                self._socket.send(client.peer, Failed(stream=spec.stream, seq=0, row=-1, reason=reason))
                return
            self._streams[spec.stream] = stream
            self._leases.open(
                spec.stream, start=spec.start, end=stream.end, window=spec.window, identity=spec.identity,
                only=spec.worker or None, rows=lambda seq: stream.order.plan.place(seq).rows,
            )  # fmt: skip
            log.info("%s opened %s: %s, batches %d to %d", client.name, stream.name, spec.split, spec.start, stream.end)
            for augmenter in self._clients.having("augmenter"):
                self._announce(augmenter, stream)
        elif stream.client != client.uuid:
            self._fault(client, "opened a stream of somebody else's")
            return
        self._send_opened(client, stream)

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
        if not self._clients.may_serve(client, stream) or self._leases.refuses(client.uuid, spec.stream):
            return
        if not self._leases.serves(client.uuid, spec.stream):
            wanted = self._leases.identity(spec.stream).hex()
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
            packet = side.Packet(self._uuid, stream.spec.stream, arena.slots, arena.slot_bytes)
            side.send(connection, packet, arena.descriptor)

    def _on_progress(self, client: Client, message: Progress, now: float) -> None:
        stream = self._streams.get(message.stream)
        if stream is None:
            self._socket.send(client.peer, Who())
            return
        if stream.client != client.uuid:
            self._fault(client, "told how far it is with a stream of somebody else's")
            return
        for seq in self._leases.progress(message.stream, message.consumed, message.arrived, now=now):
            stream.release(seq)
        for worker in message.refused:
            self._refuse(stream, worker, f"{client.name} takes nothing more from it: its log says why")

    def _on_beat(self, client: Client, beat: Beat, now: float) -> None:
        client.usage = beat.usage
        slots = [entry for entry in beat.slots if self._may_serve(client, entry[0])]
        held = [(uuid, seq) for uuid, seq, code in beat.held if self._is_held(client, uuid, seq, code)]
        self._leases.beat(client.uuid, seen=beat.seen, held=held, slots=slots, now=now)

    def _is_held(self, client: Client, uuid: bytes, seq: int, code: bytes) -> bool:
        """Whether a worker may say that it holds a batch: by the books, or by its code where the lease was given before
        a silence, or by a loader before this one."""
        if self._leases.holds(client.uuid, uuid, seq):
            return True
        if not self._may_serve(client, uuid) or not self._leases.is_open(uuid, seq):
            return False
        if self._leases.refuses(client.uuid, uuid):
            return False
        stream = self._streams[uuid]
        if equal(code, _code(client, stream, seq, stream.samples(seq))):
            return True
        self._fault(client, f"says that it holds batch {seq}, which it was not given")
        self._refuse(stream, client.uuid, "it claims what it was not given")
        return False

    def _on_failed(self, client: Client, failed: Failed) -> None:
        stream = self._streams.get(failed.stream)
        if stream is None:
            return
        reason = f"{failed.reason} (reported by {client.name})"
        if failed.row < 0:
            self._refuse(stream, client.uuid, reason)
            if not any(self._leases.serves(other.uuid, failed.stream) for other in self._clients.having("augmenter")):
                self._fail(stream, failed.seq, -1, reason)
        # A worker whose lease has ended may find other bytes in the slot: the batch has arrived from somebody else.
        elif self._leases.holds(client.uuid, failed.stream, failed.seq):
            self._fail(stream, failed.seq, failed.row, reason)
        elif self._leases.is_open(failed.stream, failed.seq):
            self._fault(client, f"failed at batch {failed.seq}, which it does not hold")

    def _refuse(self, stream: LoaderStream, worker: Worker, why: str) -> None:
        """A worker has no part in a stream any more; others make its batches."""
        if not self._leases.refuse(stream.spec.stream, worker):
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
        self._leases.skip(stream.spec.stream, seq, row)

    def _fail(self, stream: LoaderStream, seq: int, row: int, reason: str) -> None:
        if 0 <= row < stream.order.plan.place(seq).rows:
            self._telemetry.counter("fourstage_corrupt_samples_total").inc()
            key = stream.split.keys(stream.order.indices(seq)[row : row + 1])[0]
            reason = f"sample {key!r} cannot be decoded: {reason}"
        log.error("stream %s failed at batch %d: %s", stream.name, seq, reason)
        if client := self._clients.get(stream.client):
            failed = Failed(stream=stream.spec.stream, seq=seq, row=row, reason=reason[:_LONGEST_REASON])
            self._socket.send(client.peer, failed)

    def _on_close(self, client: Client, uuid: bytes) -> None:
        if (stream := self._streams.get(uuid)) is not None and stream.client != client.uuid:
            self._fault(client, "closed a stream of somebody else's")
            return
        self._close_stream(uuid)

    def _close_stream(self, uuid: bytes) -> None:
        stream = self._streams.pop(uuid, None)
        if stream is None:
            return
        log.info("closed %s", stream.name)
        self._leases.close(uuid)
        for augmenter in self._clients.having("augmenter"):
            self._socket.send(augmenter.peer, Gone(uuid))
        stream.arena.close()

    # Leases

    def _take_loaded(self) -> None:
        for loaded in self._read_ahead.loaded(self._streams):
            if loaded.error is None:
                self._leases.loaded(loaded.stream, loaded.seq)
            else:
                self._fail(self._streams[loaded.stream], loaded.seq, -1, str(loaded.error))

    def _lease(self, now: float) -> bool:
        """Give leases; whether there may be more, once everybody was heard again."""
        plan, left = self._leases.plan(now), _LEASES_OF_A_TURN
        while left and (grant := next(plan, None)) is not None:
            if not self._send_lease(grant):
                self._leases.revoke(grant)
            left -= 1
        return not left

    def _send_lease(self, grant: Grant) -> bool:
        client, stream = self._clients.get(grant.worker), self._streams[grant.stream]
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

    # Heartbeat

    def _beat(self, now: float) -> None:
        for worker in self._leases.tick(now):
            if (client := self._clients.get(worker)) is not None:
                self._telemetry.counter("fourstage_leases_expired_total").inc()
                log.warning("%s is silent for %.1f s: others get its leases", client.name, now - client.heard)
        for client in self._clients:
            silent = now - client.heard
            if silent > _FORGET_AFTER * self._settings.silence_seconds and self._door.connection(client.uuid) is None:
                log.warning("%s was silent for %.0f s: forgotten", client.name, silent)
                self._forget(client, died=True)
        for uuid, worker in self._leases.careless():
            self._refuse(self._streams[uuid], worker, "it loses what it is given")
        self._read_ahead.account(now)
        self._report.gauges()
        for client in self._clients:
            beat = self._report.stages(client) if client.hello.role == "trainer" else self._welcome(client)
            self._socket.send(client.peer, beat)


def _code(client: Client, stream: LoaderStream, seq: int, samples: bytes) -> bytes:
    """What proves that this worker was given this batch."""
    spec = stream.spec
    return lease_code(
        spec.secret, stream=spec.stream, seq=seq, worker=client.uuid, identity=client.hello.identity, samples=samples
    )
