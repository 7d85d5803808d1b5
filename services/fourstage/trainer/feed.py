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
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np

from fourstage.errors import CorruptSampleError, FourstageError, PeerError, PeerLostError, of_the_machine
from fourstage.process import socket_path
from fourstage.telemetry import Telemetry
from fourstage.trace import Passage
from fourstage.trainer.addresses import receiver_addresses
from fourstage.trainer.closed import Closed
from fourstage.trainer.encoded import Decoding
from fourstage.trainer.inbox import Inbox
from fourstage.trainer.workers import Workers
from fourstage.wire.addresses import AUTO, check_reach
from fourstage.wire.codes import SECRET_BYTES
from fourstage.wire.door import Door, Introduced
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import (
    Close,
    Failed,
    Message,
    Open,
    Opened,
    Progress,
    Stages,
    Times,
    Welcome,
)  # fmt: skip
from fourstage.wire.security import FOR_BATCHES, Security
from fourstage.wire.sockets import Bound, Payload, Waiter

log = logging.getLogger(__name__)

LOADER_PATIENCE_SECONDS = 60.0
"""A loader that stays away for this long ends the run; restarting one takes seconds."""
_LARGEST_BATCH = 1 << 31
_TURN_SECONDS = 0.2
_AWAY_SECONDS = 2.0
"""A loader that is restarted at once is found again sooner."""


class Feed:
    """Streams of batches from a loader's augmenters. Start, open streams, take from their inboxes, close."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        sockets: Path,
        trainers: str = AUTO,
        receiver: str = "auto",
        receiver_bind: str = "",
        telemetry: Telemetry | None = None,
        patience: float = LOADER_PATIENCE_SECONDS,
        security: Security | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        """Bind the receiving socket.

        address, trainers: the loader's, as its settings say. patience: seconds that it may be away. decoding: where
        this trainer decodes its streams' images itself.

        Raises SettingsError for addresses that cannot work, or need keys.
        """
        self.stages: Stages | None = None
        """The loader's last heartbeat."""
        self.on_the_way = {"to-augmenter": 0.0, "to-trainer": 0.0}
        """Seconds that batches were between two processes, summed over those that have arrived."""
        self._here = f"@{socket.gethostname()}"
        self._address = address
        self._patience = patience
        self._telemetry = telemetry
        bind, self._advertised = receiver_addresses(receiver, address, sockets, receiver_bind)
        if self._advertised:
            check_reach(self._advertised, role="trainer", has_keys=security is not None, what="receiver")
        self._key = security.own.public if security is not None else b""
        self._socket = Bound(
            bind, max_frame=_LARGEST_BATCH, entrance=FOR_BATCHES, security=security, on_refused=self._count_refused
        )
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
        self._door: Door[tuple[bytes, bytes]] = Door(socket_path(sockets, "trainer"), self._waiter, self._count_fault)
        self._link = LoaderLink(
            address, role="trainer", trainers=trainers, name=name, waiter=self._waiter, security=security,
            on_fault=self._count_fault,
        )  # fmt: skip
        self._taker = decoding.taker(self._waiter) if decoding else None
        self._lock = threading.Lock()
        self._to_open: list[Inbox] = []
        self._to_close: list[Inbox] = []
        self._inboxes: dict[bytes, Inbox] = {}
        self._told: dict[bytes, Progress] = {}
        self._closed = Closed(self._link)
        self._workers = Workers(
            self._socket, self._door, self._link, self._inboxes, self._closed, peer=secrets.token_bytes(16),
            passage=self._passage, telemetry=telemetry,
        )  # fmt: skip
        self._next_beat = 0.0
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
            receiver_key=self._key,
        )  # fmt: skip
        inbox = Inbox(spec, self._poke)
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

    # The feed's thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except Exception as caught:
            error = of_the_machine(caught) or caught
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
        readable = self._waiter.wait(patience)
        now = time.monotonic()
        if self._wake in readable:
            os.eventfd_read(self._wake)
        for event in self._door.events(readable):
            if isinstance(event, Introduced):
                self._workers.introduce(event)
            else:
                self._workers.bury(event.key)
        self._take_orders()
        for message, payload in self._link.turn(now):
            try:
                self._on_loader(message, payload)
            except PeerError as error:
                self._count_fault()
                log.warning("dropped a message of the loader: %s", error)
        if self._link.lost_since is not None and now - self._link.lost_since > self._patience:
            raise PeerLostError(
                f"no loader answers at {self._address} since {now - self._link.lost_since:.0f} s",
                hint=self._link.trouble or "start one with fourstage loader, or correct loader.address",
            )
        came = self._workers.hear()
        if self._taker is not None:
            came |= self._taker.turn(now, self._inboxes, self._passage)
        beat = now >= self._next_beat
        if beat or came or self._wake in readable:
            self._tell(beat)
        if beat:
            self._next_beat = now + self._link.heartbeat

    def _tell(self, beat: bool) -> None:
        """Say what has changed, or with the heartbeat everything: to augmenters what is held of theirs, to the loader
        how far each stream is."""
        self._workers.tell(beat)
        for inbox in self._inboxes.values():
            self._send_progress(inbox, beat)

    def _take_orders(self) -> None:
        with self._lock:
            to_open, self._to_open = self._to_open, []
            to_close, self._to_close = self._to_close, []
        # First: at the loader they take memory from those that come.
        for inbox in to_close:
            uuid = inbox.spec.stream
            if self._inboxes.pop(uuid, None) is None:
                continue
            self._told.pop(uuid, None)
            self._closed.add(uuid)
            self._workers.drop(uuid)
        over = {inbox.spec.stream for inbox in to_close}
        for inbox in to_open:
            if inbox.spec.stream not in over:
                self._inboxes[inbox.spec.stream] = inbox
                self._link.send(inbox.spec)

    def _on_loader(self, message: Message, payload: list[Payload]) -> None:
        match message:
            case Welcome():
                # First: at the loader they take the places of others.
                self._closed.say_again()
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
                    self._socket.expect(max(map(_largest_batch, self._inboxes.values())))
            case Failed():
                if inbox_failed := self._inboxes.get(message.stream):
                    kind = CorruptSampleError if message.row >= 0 else FourstageError
                    inbox_failed.fail(kind(message.reason))
            case Stages():
                self.stages = message
            case _:
                raise PeerError(f"it sent {type(message).__name__}, which is not for it to send")

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

    def _count_fault(self) -> None:
        if self._telemetry:
            self._telemetry.counter("fourstage_peer_errors_total").inc()

    def _count_refused(self, what: Literal["handshakes", "messages"], reason: str, number: int) -> None:
        if self._telemetry:
            self._telemetry.refused(what, reason, number)

    def _took(self, hop: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self.on_the_way[hop] += seconds
        if self._telemetry:
            self._telemetry.counter("fourstage_wire_seconds_total", hop).inc(seconds)

    def _send_progress(self, inbox: Inbox, beat: bool) -> None:
        if inbox.info is None:
            return
        consumed, arrived = inbox.progress()
        progress = Progress(inbox.spec.stream, consumed, arrived, self._workers.refused)
        if not beat and self._told.get(inbox.spec.stream) == progress:
            return
        if self._link.send(progress):
            self._told[inbox.spec.stream] = progress

    def _shut(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
            self._link.send(Close(inbox.spec.stream))
        self._link.close()
        if self._taker is not None:
            self._taker.close()
        self._workers.close()
        self._door.close()
        self._socket.close(linger=False)
        self._waiter.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1


def _largest_batch(inbox: Inbox) -> int:
    """Bytes of its pixels; 0 before the stream is open."""
    return 3 * inbox.spec.view.crop**2 * inbox.info.opened.largest_rows if inbox.info is not None else 0


def _as_error(error: BaseException) -> FourstageError:
    return error if isinstance(error, FourstageError) else FourstageError(f"the feed failed: {error!r}")
