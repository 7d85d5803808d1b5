"""Connections whose other end is out of reach, and that nobody has reset: a router's lost state, a power cut."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from fourstage.wire import sockets
from fourstage.wire.messages import Bye
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_TCP_USER_TIMEOUT = 18


@contextmanager
def duplicate(descriptor: int) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        yield connection


def deaden(connection: socket.socket) -> None:
    """The kernel drops whatever comes for it, before TCP sees it (a socket filter that returns 0; socket(7))."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def descriptor_of(bound: Bound) -> int:
    """Of the connection over which the last message came."""
    assert bound._last is not None
    found: int = bound._last.get(zmq.SRCFD)
    return found


def test_a_connection_over_which_nothing_is_acknowledged_was_kept_for_a_quarter_of_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "_DEAD_SECONDS", 0.5)
    with Bound("tcp://127.0.0.1:0") as bound, Dialled(bound.address) as peer:
        eventually(lambda: peer.send(Bye()), "a connection")
        before = eventually(bound.receive, "the first message")
        with duplicate(descriptor_of(bound)) as connection:
            deaden(connection)

            def passes() -> bool:
                peer.receive()
                peer.send(Bye())
                arrival = bound.receive()
                return arrival is not None and before is not None and arrival.peer != before.peer

            eventually(passes, "a message over a new connection", 10.0)


def test_the_end_that_binds_gives_a_dead_connection_up_as_well() -> None:
    with Bound("tcp://127.0.0.1:0") as bound, Dialled(bound.address) as peer:
        eventually(lambda: peer.send(Bye()), "a connection")
        eventually(bound.receive, "a message")
        with duplicate(descriptor_of(bound)) as connection:
            milliseconds = connection.getsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT)
            assert milliseconds == sockets._DEAD_SECONDS * 1000
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= sockets._DEAD_SECONDS


def test_an_address_that_answered_nobody_is_dialled_again_soon_after_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel alone waits for a second, in the end for a minute, between two attempts."""
    monkeypatch.setattr(sockets, "_DIAL_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        deaden(listener)
        with Dialled(f"tcp://127.0.0.1:{listener.getsockname()[1]}"):
            listener.settimeout(0.15)
            with pytest.raises(TimeoutError):
                listener.accept()
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            # The kernel's own next attempt is one second after its first.
            listener.settimeout(0.75)
            listener.accept()[0].close()
