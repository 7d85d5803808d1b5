"""Arenas handed over between real processes, deaths noticed, impostors refused without a leak."""

import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from fourstage.arena import PAGE, Arena, slot_bytes_for
from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.door import Door, HungUp, Introduced
from fourstage.wire.sockets import Waiter
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
