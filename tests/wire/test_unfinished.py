"""A message without end does not fill the memory; whoever sends one is cut off, and nobody else."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from fourstage.wire import unfinished
from fourstage.wire.messages import Bye
from fourstage.wire.rounds import Round
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
    # libzmq takes what comes before it has said READY itself for a part of the handshake.
    connection.recv(64, socket.MSG_WAITALL)
    connection.recv(connection.recv(2, socket.MSG_WAITALL)[1], socket.MSG_WAITALL)
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


def test_a_message_without_end_is_cut_off_although_somebody_else_never_falls_silent(bound: Bound) -> None:
    """1,000 MB were accepted: connections were looked at only when no message waited."""
    refused: list[int] = []
    bound.on_refused = lambda _what, _reason, number: refused.append(number)
    before = resident()

    def flood() -> None:
        with raw_client(bound.address) as connection:
            part = frame(bytes(FRAME // 2), more=True)
            while True:
                try:
                    connection.sendall(part)
                except OSError:
                    return
                time.sleep(0.004)

    with Dialled(bound.address) as talker:
        eventually(lambda: talker.send(Bye()), "a connection")
        sender = threading.Thread(target=flood, daemon=True)
        sender.start()
        deadline = time.monotonic() + 10.0
        while sender.is_alive():
            talker.send(Bye())
            if bound.socket.poll(0):
                assert bound.receive() is not None
            assert time.monotonic() < deadline, "nobody cuts it"
            assert resident() - before < 1000, "nobody cuts it"
        assert sum(refused) == 1
        assert talker.send(Bye())


def test_whole_messages_that_wait_behind_others_are_no_message_without_end(
    bound: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "_LOOK_SECONDS", 0.005)
    refused: list[int] = []
    bound.on_refused = lambda _what, _reason, number: refused.append(number)
    count, talkers, words = 30, 20, 40
    whole = frame(b"", more=True) + frame(bytes(FRAME), more=False)
    with ExitStack() as stack, raw_client(bound.address) as connection:
        connection.sendall(whole)
        eventually(bound.receive, "its first message")
        for _ in range(talkers):
            talker = stack.enter_context(Dialled(bound.address))
            eventually(lambda talker=talker: talker.send(Bye()), "a connection")  # type: ignore[misc]
            for _ in range(words):
                talker.send(Bye())
        eventually(lambda: bound.socket.poll(0), "the others' words")
        for _ in range(count):
            connection.sendall(whole)
        heard = 0
        for _ in range(talkers * (words + 1) + count):
            arrival = eventually(bound.receive, "all that was said")
            assert arrival is not None
            heard += isinstance(arrival.message, Exception)
            time.sleep(0.001)
        assert heard == count
        connection.sendall(whole)
        eventually(bound.receive, "another message")
    assert refused == []


def test_what_was_said_before_anybody_looked_is_not_held_for_a_message_without_end(
    bound: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "_LOOK_SECONDS", 0.005)
    whole = frame(b"", more=True) + frame(bytes(FRAME), more=False)
    with raw_client(bound.address) as connection:
        for _ in range(30):
            connection.sendall(whole)
            assert bound.socket.poll(5000)
            assert bound.receive() is not None
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            assert bound.receive() is None
        connection.sendall(whole)
        eventually(bound.receive, "another message")


def test_whoever_has_something_to_say_says_it_within_a_round() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind("inproc://round")
        peers = [context.socket(zmq.DEALER) for _ in range(8)]
        for number, peer in enumerate(peers):
            peer.setsockopt(zmq.ROUTING_ID, b"peer %d" % number)
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect("inproc://round")
        for late in range(1, len(peers)):
            # Some fall silent meanwhile, some have much to say, and one begins.
            for number, peer in enumerate(peers[:late]):
                for _ in range(20 * (number % 3) + 1):
                    peer.send(b"")
            for _ in range(late):
                router.recv_multipart()
            peers[late].send(b"late")
            now, heard = Round(router), []
            while router.poll(0):
                heard.append(router.recv_multipart())
                if now.passed(heard[-1][0]):
                    break
            assert [b"peer %d" % late, b"late"] in heard
            while router.poll(0):
                router.recv_multipart()
        for peer in peers:
            peer.close()
