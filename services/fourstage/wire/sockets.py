"""The ends of connections: one that binds (ROUTER) and one that connects (DEALER), both never blocking.

With keys TCP is CURVE; Unix sockets have the file system's permissions.
"""

import contextlib
import logging
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import zmq

from fourstage.errors import FourstageError, PeerError, SettingsError
from fourstage.wire.binding import bind
from fourstage.wire.codec import MAX_BODY, MAX_FRAMES, decode, encode
from fourstage.wire.curve import dial, serve
from fourstage.wire.handshakes import Handshakes, Outcome
from fourstage.wire.messages import Message
from fourstage.wire.refusals import Refusals, Trouble
from fourstage.wire.security import Role, Security

if TYPE_CHECKING:
    from fourstage.wire.gate import Gate

log = logging.getLogger(__name__)

Payload: TypeAlias = memoryview
Peer: TypeAlias = bytes
"""The connection's identity, given by the ROUTER; another one after every reconnect."""

_CONTROL_HIGH_WATER = 1000
"""Messages; credits bound those that carry batches to a few (the mark counts messages, not bytes)."""
_LINGER_MS = 1000
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
"""As numbers: pyzmq's enumerations take microseconds for each combination, and each frame needs one."""
_SMALL_BYTES = 1 << 16
"""Frames up to this size are copied into ZeroMQ's own memory: a reference to Python's costs 1.5 microseconds more."""
_CURVE_BYTES = 64
"""More than what CURVE adds to a frame: 33."""
_REDIAL_SECONDS = 1.0


class _Socket:
    """What both ends share. Without a context it has one of its own, so that closing touches nothing else."""

    def __init__(self, kind: int, max_frame: int, context: "zmq.Context[zmq.Socket[bytes]] | None" = None) -> None:
        self._owned = context is None
        self._context = context or zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.SNDHWM, _CONTROL_HIGH_WATER)
        self.socket.setsockopt(zmq.RCVHWM, _CONTROL_HIGH_WATER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_frame)
        self.socket.setsockopt(zmq.IPV6, 1)
        self._handshakes: Handshakes | None = None

    def _watch(self, address: str) -> None:
        if address.startswith("tcp://"):
            self._handshakes = Handshakes(self.socket)

    def _send(self, frames: list[bytes | memoryview]) -> bool:
        try:
            for frame in frames[:-1]:
                self.socket.send(frame, _MORE, copy=len(frame) <= _SMALL_BYTES)
            self.socket.send(frames[-1], _LAST, copy=len(frames[-1]) <= _SMALL_BYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def _receive(self, expected: int) -> list[memoryview] | None:
        try:
            frame = self.socket.recv(_LAST, copy=False)
        except zmq.Again:
            return None
        frames = [frame.buffer]
        while frame.more:
            frame = self.socket.recv(_LAST, copy=False)
            if len(frames) <= expected:
                frames.append(frame.buffer)
        # Of too many the first is kept: on a ROUTER it says who sent them.
        return frames if len(frames) <= expected else frames[:1]

    def close(self, linger: bool = True) -> None:
        """Close; queued messages get a second to leave."""
        if self._handshakes is not None:
            self._handshakes.close()
            self._handshakes = None
        self.socket.close(_LINGER_MS if linger else 0)
        if self._owned:
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(linger=error is None)


class Bound(_Socket):
    """The end that binds: many peers, each with an identity that the connection gives it."""

    def __init__(
        self,
        address: str,
        *,
        max_frame: int = MAX_BODY,
        security: Security | None = None,
        on_refused: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Bind.

        security: over TCP, whose clients alone come in; each message's User-Id is then its sender's name there
        on_refused: told by ``receive`` how many connections were refused since it last was

        Raises SettingsError where the address is taken or malformed, FourstageError where unknown keys would come in.
        """
        curve = security if address.startswith("tcp://") else None
        super().__init__(zmq.ROUTER, max_frame + (_CURVE_BYTES if curve else 0))
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gate: Gate | None = None
        self._on_refused = on_refused
        self._refusals = Refusals(has_keys=security is not None)
        if curve is not None:
            # Only now: it brings asyncio along.
            from fourstage.wire import gate

            self._gate = gate.Gate(self._context, curve.clients)
            self._gate.start()
            try:
                self._gate.try_out(curve.own)
            except BaseException:
                self.close(linger=False)
                raise
            serve(self.socket, curve.own)
        self._watch(address)
        try:
            bind(self.socket, address)
        except zmq.ZMQError as error:
            self.close(linger=False)
            in_use = error.errno == zmq.EADDRINUSE
            raise SettingsError(
                f"cannot bind {address}: {error.strerror}",
                hint="stop what listens there or choose another port" if in_use else "tcp://ADDRESS:PORT or ipc://PATH",
            ) from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: Peer, message: Message, payload: Sequence[bytes | memoryview] = ()) -> bool:
        """Queue a message; False where the peer is gone or its queue is full."""
        return self._send([peer, *encode(message), *payload])

    def receive(self) -> tuple[Peer, Message | PeerError, list[Payload]] | None:
        """The next message, or the error that its bytes are, with the peer that sent it; None: none waits."""
        frames = self._receive(MAX_FRAMES + 1)
        if frames is None:
            self._look()
            return None
        peer = bytes(frames[0])
        try:
            return peer, decode(frames[1:]), frames[3:]
        except PeerError as error:
            return peer, error, []

    def close(self, linger: bool = True) -> None:
        """Close; queued messages get a second to leave."""
        if self._gate is not None:
            # First: nobody who comes now is let in any more.
            self._gate.stop()
            self._gate = None
        super().close(linger)

    def _look(self) -> None:
        """Count and name those who were refused."""
        if self._handshakes is None:
            return
        before = self._refusals.count
        for reason in self._refusals.hear(self._handshakes.take(), time.monotonic()):
            log.warning("refused a connection at %s: %s", self.address, reason)
        if self._refusals.count > before:
            self._on_refused(self._refusals.count - before)
        if self._gate is not None and not self._gate.is_alive():
            raise FourstageError(f"nobody checks keys at {self.address} any more", hint="start this process again")


class Dialled(_Socket):
    """The end that connects to one address."""

    def __init__(
        self,
        address: str,
        *,
        max_frame: int = MAX_BODY,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
        server: Role = "loader",
        security: Security | None = None,
    ) -> None:
        """Connect; raises SettingsError for a malformed address. The peer need not be there yet.

        server: whose address it is; over TCP with ``security`` only a peer with that one's key will do
        """
        curve = security if address.startswith("tcp://") else None
        super().__init__(zmq.DEALER, max_frame + (_CURVE_BYTES if curve else 0), context)
        self._server = server
        self._trouble = Trouble(has_keys=security is not None)
        self._redial_at: float | None = None
        if curve is not None:
            dial(self.socket, curve.own, curve.servers[server])
        # Without it a returning peer is met by everything that was said to nobody.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.address = address
        self._watch(address)
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.close(linger=False)
            raise SettingsError(
                f"cannot connect to {address!r}: {error.strerror}",
                hint="tcp://HOST:PORT, ipc://PATH or file:PATH",
            ) from error

    @property
    def trouble(self) -> str:
        """Why the peer does not answer, if handshakes tell; else empty."""
        return self._trouble.reason

    def send(self, message: Message, payload: Sequence[bytes | memoryview] = ()) -> bool:
        """Queue a message; False where nobody is connected or the queue is full."""
        return self._send([*encode(message), *payload])

    def receive(self) -> tuple[Message | PeerError, list[Payload]] | None:
        """The next message or the error that its bytes are; None: none waits."""
        frames = self._receive(MAX_FRAMES)
        if frames is None:
            self._look()
            return None
        try:
            return decode(frames), frames[2:]
        except PeerError as error:
            return error, []

    def _look(self) -> None:
        """Hear how handshakes ended, and dial again: libzmq tries again at once after some, and never after others."""
        if self._handshakes is None:
            return
        now = time.monotonic()
        outcomes = self._handshakes.take()
        if self._trouble.hear(outcomes):
            log.warning("no connection to the %s at %s: %s", self._server, self.address, self.trouble)
        if outcomes and outcomes[-1] is not Outcome.OPENED:
            with contextlib.suppress(zmq.ZMQError):
                self.socket.disconnect(self.address)
            self._redial_at = now + _REDIAL_SECONDS
        if self._redial_at is not None and now >= self._redial_at:
            self._redial_at = None
            self.socket.connect(self.address)


def resolve(address: str) -> str:
    """The address to connect to; ``file:PATH`` is read, and read again on every reconnect.

    Raises FourstageError while the file is not there yet.
    """
    if not address.startswith("file:"):
        return address
    path = Path(address.removeprefix("file:"))
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise FourstageError(f"no loader has written its address to {path}") from error


class Waiter:
    """Sleeps until a socket or a file descriptor is readable.

    File descriptors are one epoll for ZeroMQ's poller, which looks at each of its sources at every turn: a loader has
    one for each of its hundreds of workers.
    """

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._descriptors = select.epoll()
        self._poller.register(self._descriptors.fileno(), zmq.POLLIN)

    def add(self, source: "_Socket | int") -> None:
        if isinstance(source, _Socket):
            self._poller.register(source.socket, zmq.POLLIN)
        else:
            self._descriptors.register(source, select.EPOLLIN)

    def until_connected(self, source: Dialled, waits: bool) -> None:
        """Whether to wake as well as soon as something can be sent, which is when a peer is connected."""
        self._poller.register(source.socket, zmq.POLLIN | zmq.POLLOUT if waits else zmq.POLLIN)

    def remove(self, source: "_Socket | int") -> None:
        if isinstance(source, _Socket):
            with contextlib.suppress(KeyError):
                self._poller.unregister(source.socket)
        else:
            # One that was closed before has left by itself.
            with contextlib.suppress(OSError, ValueError):
                self._descriptors.unregister(source)

    def wait(self, seconds: float) -> set[int]:
        """Sleep at most that long; the file descriptors that are readable."""
        for source, _ in self._poller.poll(max(0, int(seconds * 1000 + 0.999))):
            if isinstance(source, int):
                return {descriptor for descriptor, _ in self._descriptors.poll(0)}
        return set()

    def close(self) -> None:
        """Nobody will wait any more; the sources are their owners' to close."""
        self._descriptors.close()
