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
from fourstage.errors import PeerError
from fourstage.loader.clients import Client, Clients
from fourstage.loader.entrances import Arrival, Entrances
from fourstage.loader.report import Report
from fourstage.loader.serving import FORGET_AFTER, Serving
from fourstage.process import StopFlag, socket_path
from fourstage.settings import LoaderSettings
from fourstage.store import Store
from fourstage.telemetry import Telemetry
from fourstage.wire import side
from fourstage.wire.door import Door, Introduced
from fourstage.wire.messages import (
    Beat,
    Bye,
    Close,
    Failed,
    Hello,
    Open,
    Ping,
    Pong,
    Progress,
    Refused,
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
_MESSAGES_OF_A_TURN = 4096
"""Nobody who speaks without end keeps the loader from all else."""
_GOODBYE_SECONDS = 0.05
"""After a side connection has hung up: a goodbye that was said before may still be in ZeroMQ's own thread."""
_LONGEST_REASON = 1024
_MOST_CLIENTS = 4096


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
        self._settings = settings
        self._telemetry = telemetry
        self._stop = stop
        self._uuid = secrets.token_bytes(16)
        self._waiter = Waiter()
        self._socket = Entrances(settings, sockets, security, telemetry.refused)
        faults = telemetry.counter("fourstage_peer_errors_total")
        self._door: Door[bytes] = Door(socket_path(sockets, "loader"), self._waiter, faults.inc)
        self._clients = Clients()
        self._serving = Serving(
            store, settings, peer=self._uuid, clients=self._clients, socket=self._socket, door=self._door,
            telemetry=telemetry,
        )  # fmt: skip
        self._hung_up: dict[bytes, float] = {}
        """Clients whose side connection has hung up, and when they are taken for dead."""
        self._report = Report(
            telemetry, telemetry.meter("load"), self._serving.leases, self._serving.streams, self._clients
        )
        telemetry.gauge("fourstage_augmenters_expected").set(settings.expect_augmenters)
        self._quiet = Quiet()
        self._socket.wake(self._waiter)
        for source in (self._serving.read_ahead.wake, stop.reader):
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
            if not self._serving.read_ahead.rest(awaited=self._serving.leases.starving()):
                patience = 0.0
            readable = self._waiter.wait(0.0 if more else max(0.0, min(patience, next_beat - time.monotonic())))
            pace = min(_LONGEST_PACE_SECONDS, self._serving.leases.shortest() / _PACES_OF_A_LEASE)
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
            if self._serving.read_ahead.wake in readable:
                os.eventfd_read(self._serving.read_ahead.wake)
            more = self._serving.turn(now)
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
        self._serving.close()

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
                self._serving.on_open(client, message)
            case Progress() if client.hello.role == "trainer":
                self._serving.on_progress(client, message, now)
            case Close() if client.hello.role == "trainer":
                self._serving.on_close(client, message.stream)
            case Beat() if client.hello.role == "augmenter":
                self._serving.on_beat(client, message, now)
            case Tried() if client.hello.role == "augmenter":
                self._serving.on_tried(client, message)
            case Failed() if client.hello.role == "augmenter":
                self._serving.on_failed(client, message)
            case Bye():
                log.info("%s left", client.name)
                self._forget(client, died=False)
            case _:
                self._serving.fault(client, f"sent {type(message).__name__}, which is not for it to send")

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
            self._serving.join(client, now)
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
            self._serving.introduce(client)

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
        self._serving.leave(client, died=died)
        self._report.peers()

    # Heartbeat

    def _beat(self, now: float) -> None:
        for worker in self._serving.tick(now):
            if (client := self._clients.get(worker)) is not None:
                self._telemetry.counter("fourstage_leases_expired_total").inc()
                log.warning("%s is silent for %.1f s: others get its leases", client.name, now - client.heard)
        for client in self._clients:
            silent = now - client.heard
            if silent > FORGET_AFTER * self._settings.silence_seconds and self._door.connection(client.uuid) is None:
                log.warning("%s was silent for %.0f s: forgotten", client.name, silent)
                self._forget(client, died=True)
        self._serving.read_ahead.account(now)
        self._report.gauges()
        for client in self._clients:
            beat = self._report.stages(client) if client.hello.role == "trainer" else self._welcome(client)
            self._socket.send(client.peer, beat)
