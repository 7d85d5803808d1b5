"""ZeroMQ's place taken by lists: what a handler reads is put in, what it says is looked at. No thread, no port.

All that is above pyzmq is the product's own: ``Bound.receive``, ``Dialled.receive``, ``decode``, the handlers.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

import zmq

from fourstage.wire.link import LoaderLink
from fourstage.wire.sockets import Waiter, _Socket


class Frame:
    """A frame as pyzmq hands it out without a copy."""

    __slots__ = ("buffer", "more", "user")

    def __init__(self, data: bytes, more: bool, user: str) -> None:
        self.buffer = memoryview(data)
        self.more = more
        self.user = user

    @property
    def bytes(self) -> bytes:
        return bytes(self.buffer)

    def get(self, name: str) -> str:
        """A connection's property; one without keys has no User-Id."""
        if name != "User-Id" or not self.user:
            raise zmq.ZMQError(zmq.EINVAL)
        return self.user

    __getitem__ = get


class Wire:
    """A socket."""

    def __init__(self, context: "Wires", kind: int) -> None:
        self.context = context
        self.kind = kind
        self.address = ""
        self.closed = False
        self.full = False
        """Whether nothing more can be sent."""
        self.sent: deque[list[bytes]] = deque(maxlen=64)
        self._sending: list[bytes] = []
        self._waiting: deque[Frame] = deque()

    def give(self, frames: Sequence[bytes], user: str = "") -> None:
        """A message comes; on a ROUTER its first frame is its sender."""
        last = len(frames) - 1
        self._waiting.extend(Frame(frame, number < last, user) for number, frame in enumerate(frames))

    def recv(self, _flags: int = 0, **_: Any) -> Frame:
        if self.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if not self._waiting:
            raise zmq.Again
        return self._waiting.popleft()

    def send(self, frame: "bytes | memoryview", flags: int = 0, **_: Any) -> None:
        if self.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if self.full:
            raise zmq.Again
        self._sending.append(bytes(frame[:4096]))
        if not flags & zmq.SNDMORE:
            self.sent.append(self._sending)
            self._sending = []

    def bind(self, address: str) -> None:
        self.address = address

    def connect(self, address: str) -> None:
        """Refuses what ZeroMQ refuses at once."""
        scheme, colon, rest = address.partition("://")
        if not colon or scheme not in ("tcp", "ipc", "inproc") or not rest or (scheme == "tcp" and ":" not in rest):
            raise zmq.ZMQError(zmq.EINVAL)
        self.address = address

    def disconnect(self, _address: str) -> None: ...

    def setsockopt(self, *_: object) -> None: ...

    def getsockopt_string(self, _: int) -> str:
        return self.address

    def monitor(self, *_: object) -> None: ...

    def disable_monitor(self) -> None: ...

    def recv_multipart(self, *_: object, **__: object) -> list[Any]:
        raise zmq.Again

    def close(self, *_: object) -> None:
        self.closed = True
        self._waiting.clear()
        if self in self.context.open:
            self.context.open.remove(self)


class Wires:
    """The sockets that were made, oldest first."""

    def __init__(self) -> None:
        self.open: list[Wire] = []

    def socket(self, kind: int) -> Wire:
        wire = Wire(self, kind)
        self.open.append(wire)
        return wire

    def term(self) -> None: ...


def to_loader(link: LoaderLink) -> Wire:
    """The one that a link has now: with every loader that it loses it takes another."""
    assert link._socket is not None
    wire: Any = link._socket.socket
    assert isinstance(wire, Wire)
    return wire


class Clock:
    """Time passes by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def laid(dice: Random) -> Iterator[tuple[Wires, Clock]]:
    """Until it ends every ZeroMQ socket is a ``Wire``, nobody sleeps, time stands still, and what is secret is drawn
    from ``dice``."""
    wires, clock = Wires(), Clock()
    add, remove = Waiter.add, Waiter.remove

    def ready(self: Waiter, _seconds: float) -> set[int]:
        return {descriptor for descriptor, _ in self._descriptors.poll(0)}

    def add_descriptor(self: Waiter, source: "_Socket | int") -> None:
        if isinstance(source, int):
            add(self, source)

    def remove_descriptor(self: Waiter, source: "_Socket | int") -> None:
        if isinstance(source, int):
            remove(self, source)

    with ExitStack() as stack:
        for target, name, value in (
            (zmq, "Context", lambda *_: wires),
            (Waiter, "wait", ready),
            (Waiter, "add", add_descriptor),
            (Waiter, "remove", remove_descriptor),
            (Waiter, "until_connected", lambda *_: None),
        ):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(patch("time.monotonic", clock))
        stack.enter_context(patch("secrets.token_bytes", dice.randbytes))
        yield wires, clock


class Turns:
    """A stop flag whose owner's loop goes round as long as ``again`` says so."""

    def __init__(self, stop: Any) -> None:
        self._stop = stop
        self.reader = stop.reader
        self.turns: Iterator[object] = iter(())

    def __bool__(self) -> bool:
        return next(self.turns, self) is self

    def wait(self, _seconds: float) -> bool:
        return False


def count() -> Iterator[int]:
    """Numbers without end."""
    return itertools.count(1)
