"""The two ends of a connection, over real sockets."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import pytest
import zmq

from fourstage.errors import PeerError, SettingsError
from fourstage.wire.binding import bind
from fourstage.wire.messages import Close, Gone, Who
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually

T = TypeVar("T")
STREAM = bytes(16)


@pytest.fixture(params=["tcp", "ipc"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{tmp_path / 'socket'}"


def arrival(receive: Callable[[], T | None]) -> T:
    found = eventually(receive, "a message", 10.0)
    assert found is not None
    return found


def test_messages_and_payloads_both_ways(address: str) -> None:
    payload = memoryview(bytes(range(256)) * 1000)
    with Bound(address) as bound, Dialled(bound.address) as dialled:
        eventually(lambda: dialled.send(Close(STREAM), [payload]), "a connection", 10.0)
        peer, message, parts, _ = arrival(bound.receive)
        assert message == Close(STREAM)
        assert parts == [payload]
        assert bound.send(peer, Gone(STREAM), [b"x", payload])
        answer, parts = arrival(dialled.receive)
        assert answer == Gone(STREAM)
        assert [bytes(part) for part in parts] == [b"x", bytes(payload)]


def test_nobody_blocks_in_a_send_to_nobody(address: str) -> None:
    with Bound(address) as bound:
        assert not bound.send(b"unknown", Who())
        assert bound.receive() is None
    with Dialled("tcp://127.0.0.1:9") as dialled:
        assert not dialled.send(Who())
        assert dialled.receive() is None


def test_a_message_of_too_many_frames_is_a_fault_of_a_known_peer(address: str) -> None:
    with Bound(address) as bound, Dialled(bound.address) as dialled:
        eventually(lambda: dialled.send(Who(), [b""] * 9), "a connection", 10.0)
        peer, fault, parts, _ = arrival(bound.receive)
        assert isinstance(fault, PeerError)
        assert parts == []
        assert bound.send(peer, Who())


def test_an_oversize_frame_never_arrives_and_the_next_connection_works(address: str) -> None:
    with Bound(address, max_frame=10_000) as bound:
        with Dialled(bound.address) as dialled:
            eventually(lambda: dialled.send(Who(), [bytes(20_000)]), "a connection", 10.0)
        with Dialled(bound.address) as dialled:
            eventually(lambda: dialled.send(Gone(STREAM)), "a connection", 10.0)
            assert arrival(bound.receive)[1] == Gone(STREAM)


def test_bytes_of_another_protocol_are_named(address: str) -> None:
    with Bound(address) as bound:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.connect(bound.address)
        stranger.send_multipart([b"GET / HTTP/1.1", b""])
        fault = arrival(bound.receive)[1]
        assert isinstance(fault, PeerError)
        assert "GET" in str(fault)
        stranger.close(0)
        context.term()


def test_a_taken_port_and_a_malformed_address_are_wrong_settings() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError, match="in use"):
        Bound(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(SettingsError, match="nonsense"):
        Bound("nonsense")
    with pytest.raises(SettingsError, match="nonsense"):
        Dialled("nonsense")


def test_a_free_port_that_another_process_took_first_is_not_the_end() -> None:
    taken = 2

    class Racing:
        """As libzmq when the kernel offers one port twice."""

        def bind(self, _: str) -> None:
            nonlocal taken
            taken -= 1
            if taken >= 0:
                raise zmq.ZMQError(zmq.EADDRINUSE)

    bind(cast("zmq.Socket[bytes]", Racing()), "tcp://127.0.0.1:0")
    assert taken == -1
    taken = 1
    with pytest.raises(zmq.ZMQError, match="in use"):
        bind(cast("zmq.Socket[bytes]", Racing()), "tcp://127.0.0.1:5555")
