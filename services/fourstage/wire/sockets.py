"""The ends of connections: one that binds (ROUTER) and one that connects (DEALER), both never blocking.

With keys TCP is CURVE; Unix sockets have the file system's permissions.
"""

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

import zmq

from fourstage.errors import FourstageError, PeerError, SettingsError
from fourstage.wire.addresses import check_reach
from fourstage.wire.admitted import Admitted
from fourstage.wire.binding import AddressTakenError, bind
from fourstage.wire.codec import MAX_BODY, MAX_FRAMES, decode, encode
from fourstage.wire.curve import dial, serve
from fourstage.wire.handshakes import Handshakes, Outcome
from fourstage.wire.messages import Message
from fourstage.wire.refusals import Quiet, Refusals, Trouble
from fourstage.wire.rounds import Round
from fourstage.wire.security import FOR_BATCHES, Entrance, Role, Security
from fourstage.wire.unfinished import Unfinished

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
_DEAD_SECONDS = 60.0
"""What TCP may say for so long without an answer from the other end's kernel; without a limit it is a quarter of an
hour. A stopped process's kernel answers. ZeroMQ's own heartbeats would cut off a stopped peer, and one that sends a
large frame over a slow network: they count whole frames."""
_DIAL_SECONDS = 10.0
_DROPS_OF_A_CALL = 64
"""Messages of revoked keys that are dropped before the owner of the socket can do something else."""

OnRefused: TypeAlias = Callable[[Literal["handshakes", "messages"], str, int], object]
"""Told what was refused, why, and how many."""


class Arrival(NamedTuple):
    """A message, or the error that its bytes are, and who sent it."""

    peer: Peer
    message: Message | PeerError
    payload: list[Payload]
    user: str = ""
    """The sender's public key (User-Id), which is let in; empty without keys and over Unix sockets."""


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
        self._unfinished: Unfinished | None = None
        self._last: zmq.Frame | None = None
        """The last frame of the message that was received last: it tells who sent it."""

    def _watch(self, address: str) -> None:
        if address.startswith("tcp://"):
            # The first is for what was sent and not acknowledged, the others are for an end that sends nothing.
            self.socket.setsockopt(zmq.TCP_MAXRT, int(_DEAD_SECONDS * 1000))
            self.socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            self.socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, max(1, int(_DEAD_SECONDS / 2)))
            self.socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, max(1, int(_DEAD_SECONDS / 6)))
            self._handshakes = Handshakes(self.socket, self._unfinished.accepted if self._unfinished else None)

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
        self._last = frame
        if self._unfinished is not None:
            self._unfinished.spoke(frame.get(zmq.SRCFD))
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
        entrance: Entrance = FOR_BATCHES,
        security: Security | None = None,
        on_refused: OnRefused = lambda *_: None,
    ) -> None:
        """Bind.

        entrance: whose socket it is, and for whom
        security: over TCP, whose clients of that role alone come in, and are heard as long as their key stays
        on_refused: told by ``receive`` of connections and messages that were refused

        Raises SettingsError where the address is taken, malformed, or open to other machines without keys, and
        FourstageError where unknown keys would come in.
        """
        check_reach(address, role=entrance.server, has_keys=security is not None)
        curve = security if address.startswith("tcp://") else None
        super().__init__(zmq.ROUTER, max_frame + (_CURVE_BYTES if curve else 0))
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gate: Gate | None = None
        self._admitted: Admitted | None = None
        self._revoked: set[str] = set()
        self._quiet = Quiet()
        self._round: Round | None = None
        """Since the next look at connections is due, while messages still come."""
        self.on_refused = on_refused
        self._refusals = Refusals(has_keys=security is not None)
        if curve is not None:
            # Only now: it brings asyncio along.
            from fourstage.wire import gate

            self._admitted = Admitted(curve, entrance)
            self._gate = gate.Gate(self._context, self._admitted)
            self._gate.start()
            try:
                self._gate.try_out(curve.own)
            except BaseException:
                self.close(linger=False)
                raise
            serve(self.socket, curve.own, entrance.domain)
        if address.startswith("tcp://"):
            self._unfinished = Unfinished(MAX_FRAMES * MAX_BODY)
        self._watch(address)
        try:
            bind(self.socket, address)
        except zmq.ZMQError as error:
            self.close(linger=False)
            words = f"cannot bind {address}: {error.strerror}"
            if error.errno == zmq.EADDRINUSE:
                raise AddressTakenError(words, hint="stop what listens there or choose another port") from error
            raise SettingsError(words, hint="tcp://ADDRESS:PORT or ipc://PATH") from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if address.startswith("ipc://"):
            # Whatever the umask says; one in no folder (ipc://@NAME) has no mode.
            with contextlib.suppress(OSError):
                os.chmod(address.removeprefix("ipc://"), 0o600)  # noqa: PTH101  libzmq's text, perhaps no path

    def send(self, peer: Peer, message: Message, payload: Sequence[bytes | memoryview] = ()) -> bool:
        """Queue a message; False where the peer is gone or its queue is full."""
        return self._send([peer, *encode(message), *payload])

    def receive(self) -> Arrival | None:
        """The next message, or the error that its bytes are, with the peer that sent it; None: none waits."""
        if self._admitted is not None:
            self._revoked |= self._admitted.changes()
        for _ in range(_DROPS_OF_A_CALL):
            frames = self._receive(MAX_FRAMES + 1)
            if frames is None:
                self._look()
                return None
            if self._unfinished is not None and self._unfinished.is_due(time.monotonic()):
                self._round = self._round or Round(self.socket)
                if self._round.passed(bytes(frames[0])):
                    self._look()
            user = ""
            if self._admitted is not None and (user := self._user()) not in self._admitted:
                self._drop(user)
                continue
            peer = bytes(frames[0])
            try:
                return Arrival(peer, decode(frames[1:]), frames[3:], user)
            except PeerError as error:
                return Arrival(peer, error, [], user)
        return None

    def revoked(self) -> set[str]:
        """The users (public keys) that were let in and are not any more, since the last call: they are to be forgotten.

        Their messages do not come through ``receive``, and their connections are cut when they speak.
        """
        revoked, self._revoked = self._revoked, set()
        return revoked

    def expect(self, largest: int) -> None:
        """Let messages with a payload of so many bytes come; until then they may have 20 MiB in all."""
        if self._unfinished is not None:
            self._unfinished.limit = MAX_FRAMES * MAX_BODY + largest

    def name(self, user: str) -> str:
        """What a user is called here, for logs; empty without keys."""
        return self._admitted.name(user) if self._admitted is not None else ""

    def close(self, linger: bool = True) -> None:
        """Close; queued messages get a second to leave."""
        if self._gate is not None:
            # First: nobody who comes now is let in any more.
            self._gate.stop()
            self._gate = None
        super().close(linger)

    def _user(self) -> str:
        try:
            return str(self._last.get("User-Id")) if self._last is not None else ""
        except zmq.ZMQError:
            return ""

    def _drop(self, user: str) -> None:
        """A message of one whose key was taken away; libzmq closes no connection for it, the kernel does."""
        self.on_refused("messages", "revoked", 1)
        if self._quiet.may_say(user, time.monotonic()):
            log.warning("dropped a message at %s: its sender's key %s is let in no more", self.address, user)
        if self._unfinished is not None and self._last is not None:
            self._unfinished.end(self._last.get(zmq.SRCFD))

    def _look(self) -> None:
        """Count and name those who were refused. To be called when all was read that was whole a while ago."""
        if self._handshakes is None:
            return
        now = time.monotonic()
        self._round = None
        for reason in self._refusals.hear(self._handshakes.take(), now):
            log.warning("refused a connection at %s: %s", self.address, reason)
        if self._unfinished is not None and (cut := self._unfinished.cut(now)):
            log.warning("cut %d connections at %s: a message of theirs did not end", cut, self.address)
            self.on_refused("messages", "unfinished", cut)
        refused = self._refusals.take()
        if self._gate is not None:
            refused |= self._gate.take()
        for reason, number in refused.items():
            self.on_refused("handshakes", reason, number)
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
        role: Role = "augmenter",
        server: Role = "loader",
        server_key: bytes = b"",
        security: Security | None = None,
    ) -> None:
        """Connect. The peer need not be there yet.

        role: of this process. server: whose address it is; over TCP with ``security`` only a peer with that one's key
        will do. server_key: which, where there are several

        Raises SettingsError for an address that is malformed or leads to other machines without keys, and for a server
        whose key is not known.
        """
        check_reach(address, role=role, has_keys=security is not None)
        curve = security if address.startswith("tcp://") else None
        wanted = curve.server(server, server_key) if curve is not None else b""
        super().__init__(zmq.DEALER, max_frame + (_CURVE_BYTES if curve else 0), context)
        self._server = server
        self._trouble = Trouble(has_keys=security is not None)
        self._redial_at: float | None = None
        if curve is not None:
            dial(self.socket, curve.own, wanted)
        # Without it a returning peer is met by everything that was said to nobody.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(_DIAL_SECONDS * 1000))
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
