"""Stage 1 as a service: reads ahead what the streams will want and leases it to augmenters.

One thread owns the socket and the books; reading threads fill slots and wake it. Nothing here outlives the process
that its peers could not tell it again: restarted, also on another address, it goes on.
"""

import logging
import os
import queue
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import fourstage
from fourstage.errors import FourstageError, PeerError
from fourstage.loader.leases import Grant, Leases, Timing
from fourstage.loader.reader import Reader, ReadJob, ReadResult
from fourstage.loader.streams import LoaderStream, open_stream
from fourstage.process import StopFlag, socket_path
from fourstage.settings import LoaderSettings
from fourstage.store import Store
from fourstage.telemetry import Telemetry
from fourstage.trace import Trace
from fourstage.views import colour_matrix
from fourstage.wire import side
from fourstage.wire.messages import (
    Beat,
    Bye,
    Close,
    Failed,
    Gone,
    Hello,
    Lease,
    Message,
    Open,
    Opened,
    Progress,
    Refused,
    Stages,
    Stream,
    Usage,
    Welcome,
    Who,
)  # fmt: skip
from fourstage.wire.sockets import Bound, Peer, Waiter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Client:
    """A trainer or an augmenter that said HELLO."""

    hello: Hello
    peer: Peer
    heard: float
    side: socket.socket | None = None
    usage: Usage = field(default_factory=Usage)


class LoaderService:
    """``run`` until the stop flag is set."""

    def __init__(
        self,
        store: Store,
        settings: LoaderSettings,
        *,
        sockets: Path,
        telemetry: Telemetry,
        trace: Trace,
        stop: StopFlag,
    ) -> None:
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._meter = telemetry.meter("load")
        self._trace = trace
        self._stop = stop
        self._uuid = secrets.token_bytes(16)
        self._socket = Bound(_bind_address(settings.address, sockets))
        self._side_path = socket_path(sockets, "loader")
        self._side = side.listen(self._side_path)
        self._leases = Leases(
            Timing(
                silence=settings.silence_seconds,
                hedge=settings.hedge_seconds,
                missing=2 * settings.heartbeat_seconds,
            )
        )
        self._streams: dict[bytes, LoaderStream] = {}
        self._clients: dict[bytes, _Client] = {}
        self._uuid_of: dict[Peer, bytes] = {}
        self._strangers: dict[int, socket.socket] = {}
        """Side connections that have not said who they are."""
        self._owner_of: dict[int, bytes] = {}
        self._past = Usage()
        """What augmenters did that are gone."""
        self._results: queue.SimpleQueue[ReadResult] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reader = Reader(settings.threads, self._read_done)
        self._reads = 0
        self._mark = time.monotonic()
        self._waiting = ""

    @property
    def address(self) -> str:
        """Where the loader listens."""
        return self._socket.address

    def run(self) -> None:
        """Serve until the stop flag is set."""
        waiter = Waiter()
        for source in (self._socket, self._side.fileno(), self._wake, self._stop.reader):
            waiter.add(source)
        self._waiter = waiter
        next_beat = time.monotonic()
        while not self._stop:
            readable = waiter.wait(max(0.0, min(0.2, next_beat - time.monotonic())))
            now = time.monotonic()
            self._telemetry.turn()
            # Messages first: a goodbye must not be taken for the death that the side connection shows.
            while (received := self._socket.receive()) is not None:
                self._on_message(received[0], received[1])
            for descriptor in readable:
                self._on_descriptor(descriptor)
            self._take_results()
            self._load(now)
            self._lease(now)
            if now >= next_beat:
                self._beat(now)
                next_beat = now + self._settings.heartbeat_seconds

    def close(self) -> None:
        """Say goodbye, stop reading, give everything back."""
        for client in self._clients.values():
            self._socket.send(client.peer, Bye())
            if client.side:
                client.side.close()
        for connection in self._strangers.values():
            connection.close()
        self._side.close()
        self._side_path.unlink(missing_ok=True)
        self._socket.close()
        self._reader.close()
        for stream in self._streams.values():
            stream.arena.close()
        os.close(self._wake)

    # Messages

    def _on_message(self, peer: Peer, message: Message | PeerError) -> None:
        if isinstance(message, PeerError):
            self._telemetry.counter("fourstage_peer_errors_total").inc()
            log.warning("dropped a message: %s", message)
            if "protocol" in str(message):
                self._socket.send(peer, Refused(str(message)))
            return
        if isinstance(message, Hello):
            self._on_hello(peer, message)
            return
        uuid = self._uuid_of.get(peer)
        if uuid is None:
            self._socket.send(peer, Who())
            return
        client = self._clients[uuid]
        client.heard = time.monotonic()
        match message:
            case Open() if client.hello.role == "trainer":
                self._on_open(client, message)
            case Progress() if client.hello.role == "trainer":
                self._on_progress(client, message)
            case Close() if client.hello.role == "trainer":
                self._close_stream(message.stream)
            case Beat() if client.hello.role == "augmenter":
                client.usage = message.usage
                self._leases.beat(uuid, seen=message.seen, held=message.held, slots=message.slots, now=client.heard)
            case Failed() if client.hello.role == "augmenter":
                self._on_failed(client, message)
            case Bye():
                log.info("%s left", client.hello.name)
                self._forget(uuid, died=False)
            case _:
                self._telemetry.counter("fourstage_peer_errors_total").inc()
                log.warning("%s sent %s, which is not for it to send", client.hello.name, type(message).__name__)

    def _on_hello(self, peer: Peer, hello: Hello) -> None:
        now = time.monotonic()
        known = self._clients.get(hello.peer)
        if known is None:
            log.info("%s %s joined (build %s)", hello.role, hello.name, hello.build)
            self._clients[hello.peer] = known = _Client(hello, peer, now)
        else:
            self._uuid_of.pop(known.peer, None)
            known.hello, known.peer, known.heard = hello, peer, now
        self._uuid_of[peer] = hello.peer
        self._socket.send(
            peer,
            Welcome(
                peer=self._uuid,
                session=hello.session,
                build=fourstage.__version__,
                side=os.fspath(self._side_path),
                heartbeat_seconds=self._settings.heartbeat_seconds,
                silence_seconds=self._settings.silence_seconds,
            ),
        )
        if hello.role == "augmenter":
            self._leases.join(hello.peer, hello.identity, now)
            for stream in self._streams.values():
                self._announce(known, stream)
        self._count_peers()

    def _on_open(self, client: _Client, spec: Open) -> None:
        stream = self._streams.get(spec.stream)
        if stream is None:
            try:
                stream = open_stream(self._store, spec, client.hello.peer, self._settings.memory)
            except FourstageError as error:
                log.error("refused a stream of %s: %s", client.hello.name, error)
                self._socket.send(client.peer, Failed(stream=spec.stream, seq=0, row=-1, reason=str(error)[:1024]))
                return
            self._streams[spec.stream] = stream
            self._leases.open(spec.stream, start=spec.start, end=stream.end, window=spec.window, identity=spec.identity)
            stream.prefetched = spec.start
            log.info(
                "%s opened %s: %s, batches %d to %d of %d, window %s",
                client.hello.name, spec.stream.hex()[:8], spec.split, spec.start, stream.end, spec.batch_size,
                spec.window or "auto",
            )  # fmt: skip
            for other in self._clients.values():
                if other.hello.role == "augmenter":
                    self._announce(other, stream)
        plan = stream.order.plan
        self._socket.send(
            client.peer,
            Opened(
                stream=spec.stream,
                samples=plan.samples,
                batches_per_epoch=plan.batches_per_epoch,
                end=stream.end,
                largest_rows=plan.largest_rows,
                size=self._store.size,
                fingerprint=self._store.fingerprint,
                classes=self._store.classes,
                splits=tuple(sorted(self._store.splits)),
            ),
            [self._store.statistics.mean.astype("<f4").tobytes()],
        )

    def _on_progress(self, client: _Client, message: Progress) -> None:
        stream = self._streams.get(message.stream)
        if stream is None:
            self._socket.send(client.peer, Who())
            return
        for seq in self._leases.progress(message.stream, message.consumed, message.arrived, now=time.monotonic()):
            stream.release(seq)

    def _on_failed(self, client: _Client, failed: Failed) -> None:
        stream = self._streams.get(failed.stream)
        # A worker whose lease has ended may find other bytes in the slot: the batch has arrived from somebody else.
        if stream is None or (failed.row >= 0 and not self._leases.is_open(failed.stream, failed.seq)):
            return
        self._fail(stream, failed.seq, failed.row, f"{failed.reason} (reported by {client.hello.name})")

    def _fail(self, stream: LoaderStream, seq: int, row: int, reason: str) -> None:
        if row >= 0 and row < stream.order.plan.place(seq).rows:
            key = stream.split.keys(stream.order.indices(seq)[row : row + 1])[0]
            reason = f"sample {key!r} cannot be decoded: {reason}"
        log.error("stream %s failed at batch %d: %s", stream.spec.stream.hex()[:8], seq, reason)
        if client := self._clients.get(stream.client):
            self._socket.send(client.peer, Failed(stream=stream.spec.stream, seq=seq, row=row, reason=reason[:1024]))

    def _announce(self, client: _Client, stream: LoaderStream) -> None:
        """Tell an augmenter of a stream; the arena goes over the side connection, first."""
        spec = stream.spec
        if not self._leases.serves(client.hello.peer, spec.stream):
            wanted = self._leases.identity(spec.stream).hex()
            reason = f"makes other pixels ({client.hello.identity.hex()}) than the stream wants ({wanted})"
            log.warning("%s gets no lease: it %s", client.hello.name, reason)
            self._socket.send(client.peer, Refused(f"this worker {reason}"))
        if client.side is not None and spec.transport == "arena":
            self._hand_over(client.side, stream)
        statistics = self._store.statistics
        colours = colour_matrix(statistics.eigenvectors, statistics.eigenvalues, spec.view.preset)
        self._socket.send(
            client.peer,
            Stream(
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
            ),
        )

    def _close_stream(self, uuid: bytes) -> None:
        stream = self._streams.pop(uuid, None)
        if stream is None:
            return
        log.info("closed %s", uuid.hex()[:8])
        self._leases.close(uuid)
        for client in self._clients.values():
            if client.hello.role == "augmenter":
                self._socket.send(client.peer, Gone(uuid))
        stream.arena.close()

    # Side connections

    def _on_descriptor(self, descriptor: int) -> None:
        if descriptor == self._wake:
            os.eventfd_read(self._wake)
        elif descriptor == self._side.fileno():
            if (connection := side.accept(self._side)) is not None:
                self._strangers[connection.fileno()] = connection
                self._waiter.add(connection.fileno())
        elif descriptor in self._strangers:
            self._on_stranger(descriptor)
        elif descriptor in self._owner_of:
            uuid = self._owner_of[descriptor]
            log.warning("%s is gone", self._clients[uuid].hello.name)
            self._telemetry.counter("fourstage_workers_died_total").inc()
            self._forget(uuid, died=True)

    def _on_stranger(self, descriptor: int) -> None:
        connection = self._strangers.pop(descriptor)
        try:
            received = side.receive(connection)
        except PeerError as error:
            log.warning("dropped a side connection: %s", error)
            self._telemetry.counter("fourstage_peer_errors_total").inc()
            received = None
        client = self._clients.get(received[0].peer) if received else None
        if received and received[1] is not None:
            os.close(received[1])
        if client is None or client.side is not None:
            self._waiter.remove(descriptor)
            connection.close()
            return
        client.side = connection
        self._owner_of[descriptor] = client.hello.peer
        side.send(connection, side.Packet(self._uuid, b""))
        for stream in self._streams.values():
            if client.hello.role == "augmenter" and stream.spec.transport == "arena":
                self._hand_over(connection, stream)

    def _hand_over(self, connection: socket.socket, stream: LoaderStream) -> None:
        arena = stream.arena
        packet = side.Packet(self._uuid, stream.spec.stream, arena.slots, arena.slot_bytes)
        side.send(connection, packet, arena.descriptor)

    def _forget(self, uuid: bytes, *, died: bool) -> None:
        client = self._clients.pop(uuid)
        self._uuid_of.pop(client.peer, None)
        if client.side is not None:
            self._waiter.remove(client.side.fileno())
            self._owner_of.pop(client.side.fileno(), None)
            client.side.close()
        if client.hello.role == "augmenter":
            self._past = _sum([self._past, client.usage])
            for stream, seq in self._leases.leave(uuid, died=died):
                keys = self._streams[stream].split.keys(self._streams[stream].order.indices(seq))
                self._fail(
                    self._streams[stream],
                    seq,
                    -1,
                    f"three workers died over this batch, one of {', '.join(keys)}",
                )
        else:
            for stream in [uid for uid, stream in self._streams.items() if stream.client == uuid]:
                self._close_stream(stream)
        self._count_peers()

    # Loading and leasing

    def _load(self, now: float) -> None:
        for uuid, seq in self._leases.wanted():
            stream = self._streams[uuid]
            if seq in stream.slotted or not stream.free:
                continue
            slotted, indices = stream.claim(seq, now)
            self._account(now)
            self._reads += 1
            self._reader.submit(
                ReadJob(
                    (uuid, seq, slotted.slot),
                    stream.split,
                    indices,
                    stream.arena.slot(slotted.slot, slotted.size),
                )
            )
            ahead = min(stream.end, seq + 1 + self._leases.window(uuid))
            for later in range(max(stream.prefetched, seq + 1), ahead):
                self._reader.prefetch(stream.split, stream.order.indices(later))
            stream.prefetched = max(stream.prefetched, ahead)

    def _read_done(self, result: ReadResult) -> None:
        self._results.put(result)
        os.eventfd_write(self._wake, 1)

    def _take_results(self) -> None:
        while not self._results.empty():
            result = self._results.get()
            self._account(time.monotonic())
            self._reads -= 1
            uuid, seq, slot = result.job.tag
            self._meter.done(0.0, items=len(result.job.indices), size=len(result.job.into))
            stream = self._streams.get(uuid)
            if stream is None:
                continue
            stream.read_done(slot)
            self._trace.work("load", seq, result.began, result.ended, stream.spec.split)
            if result.error is not None:
                self._fail(stream, seq, -1, str(result.error))
            elif seq in stream.slotted:
                self._leases.loaded(uuid, seq)

    def _lease(self, now: float) -> None:
        for grant in self._leases.plan(now):
            if not self._send_lease(grant, now):
                self._leases.revoke(grant)
                break

    def _send_lease(self, grant: Grant, now: float) -> bool:
        client = self._clients[bytes(grant.worker)] if isinstance(grant.worker, bytes) else None
        stream = self._streams[grant.stream]
        slotted = stream.slotted[grant.seq]
        if client is None:
            return False
        place = stream.order.plan.place(grant.seq)
        inline = client.side is None or stream.spec.transport == "inline"
        payload: list[bytes | memoryview] = [slotted.samples]
        if inline:
            payload.append(stream.arena.slot(slotted.slot, slotted.size))
        sent = self._socket.send(
            client.peer,
            Lease(
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
            ),
            payload,
        )
        if sent:
            self._trace.stay("load", grant.seq, slotted.began, now, stream.spec.split)
        return sent

    # Heartbeat

    def _beat(self, now: float) -> None:
        for worker in self._leases.tick(now):
            client = self._clients.get(worker) if isinstance(worker, bytes) else None
            if client is not None:
                self._telemetry.counter("fourstage_leases_expired_total").inc()
                log.warning(
                    "%s is silent for %.1f s: its leases are given to others",
                    client.hello.name,
                    now - client.heard,
                )
        for uuid, client in list(self._clients.items()):
            patience = 10 * self._settings.silence_seconds
            if now - client.heard > patience and client.side is None:
                log.warning("%s %s was silent for %.0f s", client.hello.role, client.hello.name, patience)
                self._forget(uuid, died=True)
        self._account(now)
        self._report()
        for client in self._clients.values():
            message = self._stages(client) if client.hello.role == "trainer" else self._welcome_again(client)
            self._socket.send(client.peer, message)

    def _stages(self, client: _Client) -> Stages:
        """What this trainer's streams look like from here."""
        uuids = [uuid for uuid, stream in self._streams.items() if stream.client == client.hello.peer]
        counts = [self._leases.counts(uuid) for uuid in uuids]
        workers = [other for other in self._clients.values() if other.hello.role == "augmenter"]
        return Stages(
            load=self._meter.usage,
            transform=_sum([self._past, *(worker.usage for worker in workers)]),
            augmenters=len(workers),
            leased=sum(leased for leased, _ in counts),
            loaded=sum(loaded for _, loaded in counts),
            window=max((self._leases.window(uuid) for uuid in uuids), default=0),
            redispatched=sum(self._leases.redispatched(uuid) for uuid in uuids),
            waiting=self._why_waiting(uuids, workers),
        )

    def _why_waiting(self, uuids: list[bytes], workers: list[_Client]) -> str:
        if not workers:
            return "no augmenter is connected"
        for uuid in uuids:
            if not any(self._leases.serves(worker.hello.peer, uuid) for worker in workers):
                pinned = self._leases.identity(uuid).hex()
                return f"no augmenter makes the pixels of this run ({pinned}): another decoder or version"
        return ""

    def _welcome_again(self, client: _Client) -> Welcome:
        """To augmenters the loader's heartbeat is its WELCOME: complete, like all state here."""
        return Welcome(
            peer=self._uuid,
            session=client.hello.session,
            build=fourstage.__version__,
            side=os.fspath(self._side_path),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            silence_seconds=self._settings.silence_seconds,
        )

    def _account(self, now: float) -> None:
        """Charge the time since the last call: some read was under way, or nothing was wanted."""
        seconds, self._mark = now - self._mark, now
        if self._reads:
            self._meter.busy(seconds)
        else:
            self._meter.waited(seconds, "downstream")

    def _report(self) -> None:
        gauge = self._telemetry.gauge
        counts = [self._leases.counts(uuid) for uuid in self._streams]
        gauge("fourstage_queue_items", "leased").set(sum(leased for leased, _ in counts))
        gauge("fourstage_queue_items", "loaded").set(sum(loaded for _, loaded in counts))
        gauge("fourstage_queue_capacity_items", "loaded").set(
            sum(stream.arena.slots for stream in self._streams.values())
        )
        free = sum(len(stream.free) for stream in self._streams.values())
        gauge("fourstage_slots", "free").set(free)
        gauge("fourstage_slots", "used").set(sum(stream.arena.slots for stream in self._streams.values()) - free)

    def _count_peers(self) -> None:
        for role in ("augmenter", "trainer"):
            present = sum(1 for client in self._clients.values() if client.hello.role == role)
            self._telemetry.gauge("fourstage_peers", role).set(present)


def _bind_address(address: str, sockets: Path) -> str:
    """``file:PATH`` binds a Unix socket of its own in the sockets folder; the caller writes the file."""
    return f"ipc://{socket_path(sockets, 'loader-zmq')}" if address.startswith("file:") else address


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        batches=sum(usage.batches for usage in usages),
        busy=sum(usage.busy for usage in usages),
        wait_upstream=sum(usage.wait_upstream for usage in usages),
        wait_downstream=sum(usage.wait_downstream for usage in usages),
    )
