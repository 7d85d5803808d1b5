"""A message without end does not fill the memory; whoever sends one is cut off, and nobody else."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage.wire.messages import Bye
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually

FRAME = 1 << 20
LIMIT_MIB = 5
"""Of a message: five frames of that size."""


def property_of(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def raw_client(address: str) -> socket.socket:
    """A DEALER of ZMTP 3.0 (ZeroMQ RFC 23) without libzmq, which would keep an unfinished message to itself."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    connection = socket.create_connection((host.strip("[]").removeprefix("::ffff:"), int(port)), timeout=20.0)
    connection.sendall(b"\xff" + bytes(8) + b"\x7f" + bytes([3, 0]) + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY" + property_of(b"Socket-Type", b"DEALER") + property_of(b"Identity", b"")
    connection.sendall(bytes([4, len(ready)]) + ready)
    return connection


def frame(data: bytes, *, more: bool) -> bytes:
    return bytes([3 if more else 2]) + struct.pack(">Q", len(data)) + data


def resident() -> int:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20


@pytest.fixture
def bound() -> Iterator[Bound]:
    with Bound("tcp://127.0.0.1:0", max_frame=FRAME) as bound:
        yield bound


def test_a_message_without_end_is_cut_off_before_it_fills_the_memory(bound: Bound) -> None:
    """300 MB were accepted where a frame may have one: neither MAXMSGSIZE nor the high-water mark counts them."""
    refused: list[int] = []
    bound.on_refused = lambda _what, _reason, number: refused.append(number)
    before = resident()
    sent = 0

    def flood() -> None:
        nonlocal sent
        with raw_client(bound.address) as connection:
            part = frame(bytes(FRAME // 2), more=True)
            while True:
                try:
                    connection.sendall(part)
                except OSError:
                    return
                sent += len(part)

    sender = threading.Thread(target=flood, daemon=True)
    sender.start()

    def cut() -> bool:
        assert bound.receive() is None
        assert resident() - before < 2000, "nobody cuts it"
        return not sender.is_alive()

    eventually(cut, "the end of the connection")
    assert sum(refused) == 1
    assert sent > LIMIT_MIB * FRAME


def test_a_peer_that_speaks_much_in_whole_messages_is_not_cut_off(bound: Bound) -> None:
    with raw_client(bound.address) as connection:
        whole = frame(b"", more=True) + frame(bytes(FRAME), more=False)

        def flood() -> None:
            for _ in range(60):
                connection.sendall(whole)

        sender = threading.Thread(target=flood, daemon=True)
        sender.start()
        heard = 0

        def all_heard() -> bool:
            nonlocal heard
            while bound.receive() is not None:
                heard += 1
            return heard == 60

        eventually(all_heard, "sixty messages")
        sender.join()


def test_a_slow_peer_is_not_cut_off_for_what_it_has_sent_in_all(bound: Bound) -> None:
    with Dialled(bound.address) as peer:
        for number in range(40):
            eventually(lambda: peer.send(Bye(), [bytes(FRAME // 2)]), "a connection")
            eventually(bound.receive, f"message {number}")
