"""Side packets with real sockets and descriptors: an arena that keeps its promises, or a PeerError."""

import contextlib
import fcntl
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import ClassVar

import msgpack

from fourstage.arena import PAGE, Arena
from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.door import Door, Introduced
from fourstage.wire.sockets import Waiter
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.mutation import damaged, nasty

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_BEYOND = 4 << 20
"""More than any file descriptor's number."""


def a_packet(dice: Random, stream: bytes) -> tuple[bytes, int, int]:
    """The bytes of a side packet, most often a valid one, and the slots that it announces."""
    slots, size = dice.choice((0, 1, 1, 1, 3)), dice.choice((0, 1, PAGE, PAGE, 2 * PAGE, 2**53))
    fields = [dice.randbytes(16), stream, slots, size]
    luck = dice.random()
    if luck < 0.25:
        fields[dice.randrange(4)] = nasty(dice)
    elif luck < 0.3:
        fields.insert(dice.randrange(5), nasty(dice))
    packed: bytes = msgpack.packb(fields)
    if luck > 0.85:
        packed = damaged(dice, packed)
    elif luck > 0.82:
        packed = b"\x91" * dice.choice((3, 400, 512)) + packed
    elif luck > 0.8:
        packed += bytes(600)
    return packed, slots, size


@contextlib.contextmanager
def descriptors(dice: Random, slots: int, size: int) -> Iterator[list[int]]:
    """What may come along: an arena as announced, or anything else that has a descriptor."""
    with contextlib.ExitStack() as stack:
        number = dice.choice((0, 1, 1, 1, 1, 2, 5)) if slots or dice.random() < 0.1 else 0
        yield [_descriptor(dice, min(slots * size, 1 << 20), stack) for _ in range(number)]


def _descriptor(dice: Random, size: int, stack: contextlib.ExitStack) -> int:
    luck = dice.random()
    if luck < 0.75:
        descriptor = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, dice.choice((size, size, size, max(0, size - 1), size + PAGE, 0)))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, dice.choice((_SEALS, _SEALS, _SEALS, 0, fcntl.F_SEAL_GROW)))
    elif luck < 0.8:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # Its descriptor is what is wanted.
        file.truncate(size)
        descriptor = os.dup(file.fileno())
        file.close()
    elif luck < 0.85:
        descriptor, other = os.pipe()
        os.close(other)
    elif luck < 0.9:
        descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    elif luck < 0.95:
        descriptor = os.open("/dev/zero", os.O_RDWR)
    else:
        with socket.socket(socket.AF_UNIX) as other_socket:
            descriptor = os.dup(other_socket.fileno())
    stack.callback(os.close, descriptor)
    return descriptor


def open_descriptors() -> int:
    """How many this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def check_arena(arena: Arena) -> None:
    """BrokenError unless every slot can be read, nothing beyond, and nothing can be taken away or be written."""
    status = os.fstat(arena.descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != arena.slots * arena.slot_bytes:
        raise BrokenError(f"{arena.slots} slots of {arena.slot_bytes} bytes in {status.st_size}")
    try:
        os.ftruncate(arena.descriptor, 0)
    except OSError:
        pass
    else:
        raise BrokenError("an arena was accepted that can shrink")
    for number in range(arena.slots):
        view = arena.slot(number, arena.slot_bytes)
        if not view.readonly or len(bytes(view[-1:])) != 1:
            raise BrokenError("a slot that can be written, or not be read")
    for number, size in ((-1, 0), (arena.slots, 0), (0, -1), (0, arena.slot_bytes + 1)):
        try:
            arena.slot(number, size)
        except PeerError:
            continue
        raise BrokenError(f"slot {number} of {size} bytes lies outside, and was handed out")


class SideTarget:
    """``side.receive_arena`` and ``Arena.attach``."""

    name: ClassVar[str] = "side"
    most: ClassVar[int] = 0

    def __init__(self, _folder: Path, _dice: Random) -> None:
        self._ours, self._theirs = self._pair()
        self._count = open_descriptors()
        self._taken = 0

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            data, slots, size = a_packet(dice, dice.randbytes(16))
            cases.show([data])
            with descriptors(dice, slots, size) as sent, contextlib.suppress(OSError):
                socket.send_fds(self._theirs, [data], sent)
            luck = dice.random()
            if luck < 0.02:
                self._theirs.close()
            try:
                if luck < 0.5:
                    self._look(side.receive(self._ours))
                elif (received := side.receive_arena(self._ours)) is not None:
                    check_arena(received[1])
                    self._taken += 1
                    received[1].close()
            except (PeerError, BlockingIOError):
                pass
            if luck < 0.02:
                self._ours.close()
                self._ours, self._theirs = self._pair()
                if (now := open_descriptors()) != self._count:
                    raise BrokenError(f"{now} descriptors are open, there were {self._count}")

    def worked(self) -> int:
        """Packets that were valid."""
        return self._taken

    def root(self) -> object:
        return self

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    @staticmethod
    def _pair() -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        return ours, theirs

    @staticmethod
    def _look(received: tuple[side.Packet, int | None] | None) -> None:
        if received is None:
            return
        packet, descriptor = received
        if (packet.slots > 0) != (descriptor is not None):
            raise BrokenError(f"{packet.slots} slots, and the descriptor {descriptor}")
        if descriptor is not None:
            os.close(descriptor)


class DoorTarget:
    """``wire.door``: strangers that come, talk and leave in any order."""

    name: ClassVar[str] = "door"
    most: ClassVar[int] = 256

    def __init__(self, folder: Path, _dice: Random) -> None:
        self._waiter = Waiter()
        self._door: Door[int] = Door(folder / "door", self._waiter)
        self._ready = self._waiter._descriptors
        self._peers: list[socket.socket] = []
        self._keys = 0

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            self._act(dice, cases)
            readable = {descriptor for descriptor, _ in self._ready.poll(0)}
            if dice.random() < 0.05:
                readable |= {dice.randrange(3, 40), _BEYOND}
            for event in self._door.events(readable):
                if not isinstance(event, Introduced):
                    continue
                if event.descriptor is not None:
                    os.close(event.descriptor)
                if dice.random() < 0.3:
                    self._door.refuse(event.connection)
                else:
                    self._keys += 1
                    self._door.adopt(event.connection, self._keys)
            if dice.random() < 0.02:
                self._door.drop(dice.randrange(self._keys + 1))

    def worked(self) -> int:
        """Connections that were adopted."""
        return self._keys

    def root(self) -> object:
        return self._door

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._door.close()
        self._waiter.close()

    def _act(self, dice: Random, cases: Cases) -> None:
        luck = dice.random()
        if len(self._peers) < 16 and luck < 0.3:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peer.setblocking(False)
            with contextlib.suppress(OSError):
                peer.connect(os.fspath(self._door.path))
            self._peers.append(peer)
        elif self._peers and luck < 0.5:
            self._peers.pop(dice.randrange(len(self._peers))).close()
        elif self._peers:
            data, slots, size = a_packet(dice, dice.randbytes(16))
            cases.show([data])
            with descriptors(dice, slots, size) as sent, contextlib.suppress(OSError):
                socket.send_fds(dice.choice(self._peers), [data], sent)
