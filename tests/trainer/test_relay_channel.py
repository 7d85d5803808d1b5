"""Frames between two trainers: whole whatever way they are cut, refused whatever is wrong, no descriptor left."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourstage.arena import PAGE, Arena
from fourstage.errors import PeerError, PeerLostError
from fourstage.trainer.inbox import Inbox
from fourstage.trainer.relay import RelayedInbox, RelayingInbox, connect, listen
from fourstage.trainer.relay.channel import ARENA, Channel
from fourstage.wire.codec import encode, encode_body
from fourstage.wire.messages import Batch, Bye, Close, Holds, Message
from tests.pipeline.harness import eventually
from tests.trainer.relayed import (
    BATCH,
    Worker,
    deliver,
    indices_of,
    mean,
    open_descriptors,
    opened,
    request,
    samples_of,
)
from tests.wire.test_side import unsealed

NO_MESSAGE = struct.pack("<7I", 2, 4, 1, 0, 0, 0, 0) + b"4S\x02\x05\xc1"


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, Channel]]:
    """A plain socket, and the channel at its other end."""
    near, far = socket.socketpair()
    channel = Channel(far, "the peer", descriptors=True)
    yield near, channel
    near.close()
    channel.close()


def frame(message: Message, *payload: bytes) -> bytes:
    parts = [*encode(message), *payload]
    sizes = [len(part) for part in parts]
    return struct.pack("<7I", len(parts), *sizes, *[0] * (6 - len(parts))) + b"".join(parts)


@given(
    st.lists(st.lists(st.binary(max_size=40), max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_come_whole_however_the_bytes_come(payloads: list[list[bytes]], cuts: list[int]) -> None:
    near, far = socket.socketpair()
    channel = Channel(far, "the peer", descriptors=False)
    data = b"".join(frame(Close(bytes([number] * 16)), *payload) for number, payload in enumerate(payloads))
    heard = []
    for number in range(len(data)):
        size = cuts[number % len(cuts)]
        near.sendall(data[:size])
        data = data[size:]
        while (message := channel.receive(0.0)) is not None:
            heard.append(message)
        if not data:
            break
    assert [message.message for message in heard] == [Close(bytes([n] * 16)) for n in range(len(payloads))]
    assert [[bytes(part) for part in message.payload] for message in heard] == payloads
    near.close()
    channel.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<7I", 1, 4, 0, 0, 0, 0, 0),
        struct.pack("<7I", 7, 4, 9, 1, 1, 1, 1),
        struct.pack("<7I", 2, 4, 0, 0, 0, 0, 0),
        struct.pack("<7I", 3, 4, 9, (1 << 31) + 1, 0, 0, 0),
        NO_MESSAGE,
        struct.pack("<7I", 2, 4, 1, 0, 0, 0, 0) + b"GET \x80",
        os.urandom(2) + b"\xff" * 26,
    ],
    ids=["one part", "seven parts", "no body", "too large", "not msgpack", "no header", "noise"],
)
def test_what_is_no_frame_is_refused(wire: tuple[socket.socket, Channel], data: bytes) -> None:
    near, channel = wire
    near.sendall(data)
    with pytest.raises(PeerError):
        channel.receive(1.0)


def test_a_hang_up_in_the_middle_of_a_frame_is_a_loss(wire: tuple[socket.socket, Channel]) -> None:
    near, channel = wire
    near.sendall(frame(Bye())[:-1])
    assert channel.receive(0.01) is None
    near.close()
    with pytest.raises(PeerLostError, match="the peer is gone"):
        channel.receive(1.0)
    channel.send(Bye())
    with pytest.raises(PeerLostError, match="the peer is gone"):
        channel.flush(1.0)


def test_descriptors_come_only_where_they_are_expected_and_none_is_left(wire: tuple[socket.socket, Channel]) -> None:
    near, channel = wire
    memory = unsealed()
    before = open_descriptors()
    socket.send_fds(near, [frame(Bye())], [memory])
    heard = channel.receive(1.0)
    assert heard is not None
    heard.close()
    socket.send_fds(near, [NO_MESSAGE], [memory])
    with pytest.raises(PeerError, match="not msgpack"):
        channel.receive(1.0)
    assert open_descriptors() == before
    socket.send_fds(near, [frame(Bye())], [memory] * 3)
    with pytest.raises(PeerError, match="descriptors"):
        channel.receive(1.0)
    channel.close()
    left, right = socket.socketpair()
    strict = Channel(right, "the peer", descriptors=False)
    socket.send_fds(left, [frame(Bye())], [memory])
    with pytest.raises(PeerError, match="descriptors that nobody asked for"):
        strict.receive(1.0)
    strict.close()
    left.close()
    # The fixture's own channel is closed already.
    assert open_descriptors() == before - 1
    os.close(memory)


def test_a_descriptor_is_closed_once_it_is_sent_or_never_will_be(wire: tuple[socket.socket, Channel]) -> None:
    _, channel = wire
    before = open_descriptors()
    channel.send(Bye(), (), unsealed())
    assert channel.flush(1.0)
    assert open_descriptors() == before
    channel.send(Bye(), (), unsealed())
    channel.close()
    assert open_descriptors() == before - 1


def test_the_listener_takes_its_socket_away(tmp_path: Path) -> None:
    listener = listen(tmp_path)
    with pytest.raises(TimeoutError, match="has not connected"):
        listener.accept(0.01)
    channel = connect(listener.path, 1.0)
    listener.accept(1.0).close()
    channel.close()
    listener.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PeerLostError, match="does not listen"):
        connect(listener.path, 1.0)


# What a first column could send to a second one


def batch_frame(
    arenas: bytes, *, seq: int = 0, session: int = 1, slot: int = 0, rows: int = BATCH, samples_from: int = 0
) -> bytes:
    samples = samples_of(indices_of(samples_from))
    message = Batch(
        stream=bytes(16), seq=seq, session=session, number=1, slot=slot, rows=rows, identity=b"", code=bytes(16)
    )
    return frame(message, encode_body(samples), bytes(21 * rows), arenas)


def sealed() -> int:
    arena = Arena.create(2, PAGE)
    try:
        return os.dup(arena.descriptor)
    finally:
        arena.close()


GOOD = ARENA.pack(1, 2, PAGE)


@pytest.mark.parametrize(
    ("data", "memory", "words"),
    [
        (batch_frame(GOOD, seq=1), sealed, "batch 1 was relayed, expected 0"),
        (batch_frame(GOOD, slot=2), sealed, "slot 2"),
        (batch_frame(GOOD, samples_from=1), sealed, "not made of the samples that the order says"),
        (batch_frame(GOOD, rows=3), sealed, "other numbers of indices"),
        (batch_frame(GOOD, session=2), sealed, "never handed over"),
        (batch_frame(GOOD, slot=-1), sealed, "without the 192 bytes"),
        (batch_frame(GOOD), unsealed, "not sealed"),
        (batch_frame(ARENA.pack(1, 3, PAGE)), sealed, "announced as 3 slots"),
        (batch_frame(ARENA.pack(1, 1, 2 * PAGE), slot=1), sealed, "slot 1"),
        (batch_frame(GOOD), None, "are new"),
        (batch_frame(b""), sealed, "are new"),
        (batch_frame(GOOD + ARENA.pack(2, 2, PAGE)), sealed, "are new"),
        (batch_frame(GOOD[:-1]), sealed, "table of arenas"),
        (frame(Batch(bytes(16), 0, 1, 1, 0, 4, b"", bytes(16))), sealed, "0 payloads"),
        (frame(Holds(bytes(16), 0, 0, ())), sealed, "not for it to send"),
        (frame(opened(), bytes(5)), sealed, "no mean image"),
    ],
)
def test_a_second_column_refuses_what_is_wrong_and_leaks_nothing(
    tmp_path: Path, data: bytes, memory: object, words: str
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "column"))
    listener.listen()
    second = RelayedInbox(connect(tmp_path / "column", 1.0), request())
    accepted, _ = listener.accept()
    accepted.sendall(frame(request()) + frame(opened(), mean().tobytes()))
    second.opened(5.0)
    before = open_descriptors()
    descriptor = memory() if callable(memory) else None
    socket.send_fds(accepted, [data], [] if descriptor is None else [descriptor])
    if descriptor is not None:
        os.close(descriptor)
    for _ in range(2):
        with pytest.raises(PeerError, match=words):
            second.next(5.0)
    second.close()
    accepted.close()
    listener.close()
    assert open_descriptors() == before - 3


# What a second column could send to a first one


@pytest.mark.parametrize(
    ("message", "words"),
    [(Holds(bytes(16), 0, 9, ()), "of 9 batches"), (Holds(bytes(16), 0, 1, (4,)), "lent were"), (Bye(), "not for it")],
)
def test_a_first_column_gives_no_slot_back_to_one_that_breaks_the_rules(
    tmp_path: Path, message: Message, words: str
) -> None:
    inbox = Inbox(request(), lambda: None)
    inbox.open(opened(), mean())
    listener = listen(tmp_path)
    first, second = RelayingInbox(inbox, listener), connect(listener.path, 1.0)
    first.opened(5.0)
    worker = Worker()
    deliver(inbox, 0, worker)
    mine = first.next(5.0)
    assert mine is not None
    mine.release()
    second.send(message)
    assert second.flush(5.0)
    with pytest.raises(PeerError, match=words):
        eventually(lambda: first.next(0.2), "the refusal")
    assert inbox.released() == []
    first.close()
    second.close()
    worker.die()
