"""Arenas handed over between real processes, deaths noticed, impostors refused without a leak."""

import fcntl
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgpack
import pytest

from fourstage.arena import PAGE, Arena, slot_bytes_for
from fourstage.augmenter.outbox import Outbox
from fourstage.errors import PeerError
from fourstage.views import View
from fourstage.wire import side
from fourstage.wire.door import Door, HungUp, Introduced
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Hello, Stream, Welcome
from fourstage.wire.sockets import Bound, Waiter
from tests.pipeline.harness import eventually

PEER, STREAM = b"p" * 16, b"s" * 16
OWNER = """
import sys
from fourstage.arena import Arena
from fourstage.wire import side
connection = side.connect(sys.argv[1], 10.0)
arena = Arena.create(3, 8192)
arena.slot(1, 5)[:] = b"hello"
side.send(connection, side.Packet(b"p" * 16, b"s" * 16, 3, 8192), arena.descriptor)
sys.stdin.read()
"""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def next_event(door: Door[str], waiter: Waiter) -> Introduced | HungUp[str]:
    """The next thing that happens at a door."""

    def probe() -> Introduced | HungUp[str] | None:
        return next(door.events(waiter.wait(0.1)), None)

    found = eventually(probe, "an event at the door", 20.0)
    assert found is not None
    return found


def test_contents_outlive_the_owner_whose_death_is_noticed(tmp_path: Path) -> None:
    waiter = Waiter()
    door: Door[str] = Door(tmp_path / "door", waiter)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(door.path)], stdin=subprocess.PIPE)
    try:
        event = next_event(door, waiter)
        assert isinstance(event, Introduced)
        assert event.packet == side.Packet(PEER, STREAM, 3, 8192)
        assert event.descriptor is not None
        arena = Arena.attach(event.descriptor, 3, 8192)
        door.adopt(event.connection, "owner")
        owner.kill()
        owner.wait()
        assert next_event(door, waiter) == HungUp("owner")
        assert door.connection("owner") is None
        assert bytes(arena.slot(1, 5)) == b"hello"
        arena.close()
    finally:
        owner.kill()
        owner.wait()
        if owner.stdin:
            owner.stdin.close()
        door.close()
    assert not door.path.exists()


def test_a_peer_can_neither_write_nor_shrink_nor_map_for_writing() -> None:
    arena = Arena.create(2, PAGE)
    seen = Arena.attach(os.dup(arena.descriptor), 2, PAGE)
    arena.slot(0, 3)[:] = b"abc"
    assert bytes(seen.slot(0, 3)) == b"abc"
    with pytest.raises(TypeError):
        seen.slot(0, 3)[:] = b"xyz"
    with pytest.raises(PermissionError):
        os.ftruncate(seen.descriptor, PAGE)
    with pytest.raises(PermissionError):
        mmap.mmap(seen.descriptor, 2 * PAGE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(seen.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    seen.close()
    arena.close()
    arena.close()


def test_slots_end_where_the_arena_ends() -> None:
    arena = Arena.create(2, PAGE)
    for number, payload in ((2, 1), (-1, 1), (0, PAGE + 1), (0, -1)):
        with pytest.raises(PeerError, match="slot"):
            arena.slot(number, payload)
    assert len(arena.slot(1, PAGE)) == PAGE
    arena.close()
    assert [slot_bytes_for(size) for size in (0, 1, PAGE, PAGE + 1)] == [PAGE, PAGE, PAGE, 2 * PAGE]


def test_a_view_stays_whole_after_its_arena_was_closed() -> None:
    arena = Arena.create(1, PAGE)
    view = arena.slot(0, 4)
    view[:] = b"kept"
    arena.close()
    assert bytes(view) == b"kept"


def unsealed() -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 2 * PAGE)
    return descriptor


def too_small() -> int:
    arena = Arena.create(1, PAGE)
    descriptor = os.dup(arena.descriptor)
    arena.close()
    return descriptor


def regular_file() -> int:
    return os.open("/proc/self/exe", os.O_RDONLY)


@pytest.mark.parametrize("make", [unsealed, too_small, regular_file])
def test_what_is_no_sealed_memory_of_that_size_is_refused(make: Callable[[], int]) -> None:
    before = descriptors()
    descriptor = make()
    slots = os.fstat(descriptor).st_size // PAGE + (make is too_small)
    with pytest.raises(PeerError):
        Arena.attach(descriptor, slots, PAGE)
    assert descriptors() == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({"peer": PEER}),
        msgpack.packb([PEER, STREAM, 0]),
        msgpack.packb([b"short", STREAM, 0, 0]),
        msgpack.packb([PEER, STREAM, -1, 0]),
        msgpack.packb([PEER, STREAM, "3", 0]),
        msgpack.packb([PEER, STREAM, 0, 0]),
        msgpack.packb([PEER, b"x" * 600, 0, 0]),
    ],
    ids=["empty", "reserved", "map", "three", "short", "negative", "text", "uninvited descriptor", "long"],
)
def test_wrong_packets_are_faults_and_their_descriptors_are_closed(data: bytes) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = unsealed()
    before = descriptors()
    socket.send_fds(left, [data], [descriptor])
    with pytest.raises(PeerError):
        side.receive(right)
    assert descriptors() == before
    os.close(descriptor)
    left.close()
    right.close()


def test_more_than_one_descriptor_is_a_fault_and_none_stays_open() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = unsealed()
    before = descriptors()
    socket.send_fds(left, [msgpack.packb([PEER, STREAM, 2, PAGE])], [descriptor] * 3)
    with pytest.raises(PeerError, match="one descriptor"):
        side.receive(right)
    assert descriptors() == before
    os.close(descriptor)
    left.close()
    right.close()


def test_a_hang_up_is_told_from_silence(tmp_path: Path) -> None:
    listener = side.listen(tmp_path / "socket")
    connection = side.connect(str(tmp_path / "socket"), 5.0)
    assert connection is not None
    accepted = eventually(lambda: side.accept(listener), "a connection")
    assert accepted is not None
    assert not side.hung_up(connection)
    assert side.send(accepted, side.Packet(PEER, b""))
    assert not side.hung_up(connection)
    accepted.close()
    assert side.hung_up(connection)
    assert side.receive(connection) == (side.Packet(PEER, b""), None)
    assert side.receive(connection) is None
    connection.close()
    listener.close()


def test_a_path_that_leads_nowhere_is_another_host(tmp_path: Path) -> None:
    assert side.connect(str(tmp_path / "nothing"), 1.0) is None
    assert side.connect("/" + "x" * 300, 1.0) is None


@contextmanager
def answering_with_arenas(path: Path) -> Iterator[None]:
    """Whoever connects once and introduces himself is answered with an arena, where none is handed over."""
    listener = side.listen(path)
    listener.setblocking(True)
    listener.settimeout(10.0)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            received = side.receive(connection)
            assert received is not None
            packet, descriptor = received
            if descriptor is not None:
                os.close(descriptor)
            arena = Arena.create(1, PAGE)
            side.send(connection, side.Packet(PEER, packet.stream, 1, PAGE), arena.descriptor)
            arena.close()
            connection.settimeout(10.0)
            assert connection.recv(1) == b"", "a fault ends the connection"

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def arenas_open() -> set[int]:
    """Arenas of which this process holds a descriptor, by their inodes."""
    held = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {link.stat().st_ino for link in held if "memfd:fourstage" in str(link.readlink())}


def test_an_arena_that_came_with_a_trainer_s_answer_stayed_open_in_the_augmenter(tmp_path: Path) -> None:
    before = arenas_open()
    spec = Stream(
        stream=STREAM, split="train", view=View("centre", 8), size=8, seed=0, largest_rows=1, colours=(0.0,) * 9,
        transport="arena", slots=1, slot_bytes=PAGE, receiver=f"ipc://{tmp_path / 'trainer'}",
        side=str(tmp_path / "door"), on_corrupt="fail",
    )  # fmt: skip
    with answering_with_arenas(tmp_path / "door"):
        outbox = Outbox(
            spec, peer=PEER, name="w", identity=b"", slots=1, memory=1 << 20, waiter=Waiter(), sessions=count(1)
        )
    try:
        assert len(arenas_open() - before) == 1, "its own alone"
    finally:
        outbox.close()


def test_an_arena_that_came_with_a_loader_s_answer_stayed_open_in_its_peers(tmp_path: Path) -> None:
    before = arenas_open()
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader, answering_with_arenas(tmp_path / "door"):
        link = LoaderLink(loader.address, role="augmenter", name="w", waiter=Waiter())

        def welcomed() -> bool:
            link.turn(time.monotonic())
            arrival = loader.receive()
            if arrival is not None and isinstance(hello := arrival[1], Hello):
                where = str(tmp_path / "door")
                loader.send(
                    arrival[0],
                    Welcome(
                        peer=PEER, session=hello.session, build="", side=where, heartbeat_seconds=0.5,
                        silence_seconds=5.0,
                    ),
                )  # fmt: skip
            return link.welcome is not None

        eventually(welcomed, "WELCOME")
    assert link.side is None
    assert not arenas_open() - before
    link.close()
