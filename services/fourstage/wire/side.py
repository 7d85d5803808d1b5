"""The side connection: a Unix socket that hands arenas over and whose hang-up proves a death.

SOCK_SEQPACKET keeps messages whole. A descriptor travels beside its description (SCM_RIGHTS, unix(7)). Only a
process of the same user or root may connect (SO_PEERCRED).
"""

import logging
import os
import select
import socket
import struct
from pathlib import Path
from typing import Annotated

import msgpack
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fourstage.arena import Arena
from fourstage.errors import PeerError
from fourstage.wire.messages import Uuid

log = logging.getLogger(__name__)

_MAX_PACKET = 512
_BACKLOG = 128
MAX_PATH = 107
"""Bytes of a Unix socket's path (unix(7))."""


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class Packet:
    """Who speaks, of which stream, and the arena whose descriptor comes along (none: slots = 0)."""

    peer: Uuid
    stream: Annotated[bytes, Field(max_length=16)]
    slots: Annotated[int, Field(ge=0, le=65_536)] = 0
    slot_bytes: Annotated[int, Field(ge=0, le=2**53)] = 0


def listen(path: Path) -> socket.socket:
    """A non-blocking listener at ``path``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.fspath(path))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def connect(path: str, timeout: float) -> socket.socket | None:
    """A blocking connection with a time limit, or None where the path leads nowhere (another host) or no descriptor
    is left: it goes without."""
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        log.warning("no side connection: %s", error.strerror)
        return None
    connection.settimeout(timeout)
    try:
        connection.connect(path)
    except (OSError, ValueError):
        connection.close()
        return None
    return connection


def accept(listener: socket.socket) -> socket.socket | None:
    """The next connection of a process of this user, or None. Raises OSError where no descriptor is left for it."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.getuid()):
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def send(connection: socket.socket, packet: Packet, descriptor: int | None = None) -> bool:
    """Send one packet; False where the peer is gone or does not take it."""
    fields = (packet.peer, packet.stream, packet.slots, packet.slot_bytes)
    try:
        socket.send_fds(connection, [msgpack.packb(fields)], [] if descriptor is None else [descriptor])
    except OSError:
        return False
    return True


def receive_arena(connection: socket.socket) -> tuple[Packet, Arena] | None:
    """One packet and the arena that came with it, mapped; None where the peer has hung up. Raises as ``receive``."""
    received = receive(connection)
    if received is None:
        return None
    packet, descriptor = received
    if descriptor is None:
        raise PeerError("side packet without an arena")
    return packet, Arena.attach(descriptor, packet.slots, packet.slot_bytes)


def receive_answer(connection: socket.socket) -> Packet | None:
    """One packet that hands nothing over; None where the peer has hung up. Raises as ``receive``, and PeerError for one
    that brings an arena."""
    received = receive(connection)
    if received is None:
        return None
    packet, descriptor = received
    if descriptor is not None:
        os.close(descriptor)
        raise PeerError("side packet with an arena for an answer")
    return packet


def readable(connection: socket.socket) -> bool:
    """Whether a packet lies there, or the peer has hung up."""
    return _polled(connection, select.POLLIN)


def hung_up(connection: socket.socket) -> bool:
    """Whether the peer has closed its end, by its own will or the kernel's."""
    return _polled(connection, select.POLLRDHUP)


def _polled(connection: socket.socket, events: int) -> bool:
    poll = select.poll()
    poll.register(connection, events)
    return bool(poll.poll(0))


def receive(connection: socket.socket) -> tuple[Packet, int | None] | None:
    """One packet and its descriptor; None once the peer has hung up.

    Raises PeerError for anything that is not a packet, BlockingIOError where none has come yet and TimeoutError
    after the connection's time limit.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(connection, _MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
    except (ConnectionError, BrokenPipeError):
        return None
    if not data and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError(f"side packet of more than {_MAX_PACKET} bytes or one descriptor")
        fields = msgpack.unpackb(data, use_list=False)
        if not isinstance(fields, tuple) or len(fields) != 4:
            raise PeerError("side packet is not an array of four")
        packet = Packet(*fields)
        if (packet.slots > 0) != bool(descriptors):
            raise PeerError(f"side packet announces {packet.slots} slots with {len(descriptors)} descriptors")
    except (PeerError, ValidationError, ValueError, msgpack.UnpackException) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise PeerError(f"side packet: {error}") from error
    return packet, (descriptors[0] if descriptors else None)
