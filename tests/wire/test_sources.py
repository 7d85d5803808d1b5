"""Which arena a lease means, where a stream has ended and was opened again under its name."""

import dataclasses
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fourstage.arena import PAGE, Arena
from fourstage.errors import PeerError
from fourstage.wire import side
from fourstage.wire.messages import Lease, Stream
from fourstage.wire.sources import JpegSources
from tests.wire.make_vectors import MESSAGES

LOADER = b"l" * 16
STREAM = next(dataclasses.replace(m, transport="arena", stream=b"x" * 16) for m in MESSAGES if isinstance(m, Stream))
OTHER = dataclasses.replace(STREAM, stream=b"y" * 16)
IMAGE = 4


def mapped() -> int:
    """Mappings of arenas in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:fourstage")


class Loader:
    """The loader's end of a side connection, and a worker's sources at the other."""

    def __init__(self) -> None:
        self.connection, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.setblocking(False)
        self.worker.settimeout(5.0)
        self.sources = JpegSources()
        self.sources.follow(self.worker)
        self._arenas: list[Arena] = []

    def arena(self, image: bytes) -> Arena:
        """An arena whose first slot holds one image of four bytes."""
        arena = Arena.create(1, PAGE)
        arena.slot(0, IMAGE)[:] = image
        self._arenas.append(arena)
        return arena

    def hand_over(self, spec: Stream, arena: Arena) -> None:
        packet = side.Packet(LOADER, spec.stream, arena.slots, arena.slot_bytes)
        assert side.send(self.connection, packet, arena.descriptor), "the worker reads nothing"

    def announce(self, spec: Stream, arena: Arena) -> None:
        """An arena and then its STREAM, which the worker hears."""
        self.hand_over(spec, arena)
        self.sources.attach(spec)

    def leased(self, spec: Stream) -> bytes:
        """The image of a lease by slot, as the worker finds it. Raises PeerError where it has no such arena."""
        lease = next(m for m in MESSAGES if isinstance(m, Lease))
        sizes = np.array([IMAGE], "<u4").tobytes()
        lease = dataclasses.replace(lease, stream=spec.stream, slot=0, rows=1, sizes=sizes)
        return bytes(self.sources.jpeg(lease, [memoryview(b"samples")]))

    def close(self) -> None:
        self.sources.close()
        for arena in self._arenas:
            arena.close()
        self.connection.close()
        self.worker.close()


@pytest.fixture
def loader() -> Iterator[Loader]:
    made = Loader()
    yield made
    made.close()


def test_a_worker_decoded_from_the_arena_of_a_stream_that_had_ended(loader: Loader) -> None:
    """It had said HELLO once more, so the first arena lay twice in its side connection."""
    before, after = loader.arena(b"old."), loader.arena(b"new.")
    loader.announce(STREAM, before)
    loader.sources.follow(loader.worker)
    loader.announce(STREAM, before)
    assert loader.leased(STREAM) == b"old."
    loader.sources.drop(STREAM.stream)
    loader.announce(STREAM, after)
    assert loader.leased(STREAM) == b"new."


def test_the_arena_of_a_stream_that_had_ended_was_mapped_with_the_next_stream_s_and_never_given_back(
    loader: Loader,
) -> None:
    arena, other = loader.arena(b"old."), loader.arena(b"next")
    before = mapped()
    loader.announce(STREAM, arena)
    loader.announce(STREAM, arena)
    loader.sources.drop(STREAM.stream)
    loader.announce(OTHER, other)
    assert loader.leased(OTHER) == b"next"
    assert mapped() == before + 1


def test_an_arena_whose_stream_was_lost_with_a_session_stayed_mapped(loader: Loader) -> None:
    arena, other = loader.arena(b"lost"), loader.arena(b"next")
    before = mapped()
    loader.hand_over(STREAM, arena)
    loader.announce(OTHER, other)
    loader.sources.follow(loader.worker)
    assert mapped() == before + 1
    assert loader.leased(OTHER) == b"next"


def test_announcements_that_were_never_read_kept_a_new_stream_s_arena_out(loader: Loader) -> None:
    arena, other = loader.arena(b"same"), loader.arena(b"next")
    for _ in range(600):
        loader.announce(STREAM, arena)
    loader.announce(OTHER, other)
    assert loader.leased(OTHER) == b"next"


def test_leases_that_were_under_way_keep_their_arena_while_the_next_one_lies_there(loader: Loader) -> None:
    """The side connection is ahead of the messages: what ends the stream is heard later."""
    loader.announce(STREAM, loader.arena(b"old."))
    loader.hand_over(STREAM, loader.arena(b"new."))
    loader.announce(OTHER, loader.arena(b"next"))
    assert loader.leased(STREAM) == b"old."
    loader.sources.drop(STREAM.stream)
    loader.sources.attach(STREAM)
    assert loader.leased(STREAM) == b"new."
    assert loader.leased(OTHER) == b"next"


@pytest.mark.parametrize("heard", [True, False])
def test_two_arenas_of_a_stream_that_cannot_be_told_apart_end_the_side_connection(loader: Loader, heard: bool) -> None:
    """GONE was lost, or is still to come: a lease may mean either."""
    arenas = [loader.arena(b"old."), loader.arena(b"new.")]
    for number, arena in enumerate(arenas):
        if heard or number == 1:
            loader.announce(STREAM, arena)
        else:
            loader.hand_over(STREAM, arena)
    assert side.hung_up(loader.connection), "the loader says everything again, over another connection"
    with pytest.raises(PeerError, match="never handed over"):
        loader.leased(STREAM)
    loader.sources.attach(STREAM)
    with pytest.raises(PeerError, match="never handed over"):
        loader.leased(STREAM)


@pytest.mark.parametrize("lost", [False, True])
def test_a_lease_of_a_stream_opened_twice_gives_its_own_bytes_or_none(lost: bool) -> None:
    """The side connection may be ahead of any message by any number of packets; lost: GONE is never heard."""
    messages = ["stream a", "stream a", "lease a", *([] if lost else ["gone"]), "stream b", "lease b"]
    streams = [at for at, message in enumerate(messages) if message.startswith("stream")]
    # Packets come in their order, each one before its STREAM at the latest.
    for come in itertools.combinations_with_replacement(range(len(messages)), len(streams)):
        if any(at > latest for at, latest in zip(come, streams, strict=True)):
            continue
        loader = Loader()
        arenas = {name: loader.arena(name * IMAGE) for name in (b"a", b"b")}
        for at, message in enumerate(messages):
            kind, name = message.split()[0], message[-1].encode()
            for early, latest in zip(come, streams, strict=True):
                if early == at and not side.hung_up(loader.connection):
                    loader.hand_over(STREAM, arenas[messages[latest][-1].encode()])
            if kind == "stream":
                loader.sources.attach(STREAM)
            elif kind == "gone":
                loader.sources.drop(STREAM.stream)
            elif side.hung_up(loader.connection):
                with pytest.raises(PeerError, match="never handed over"):
                    loader.leased(STREAM)
            else:
                assert loader.leased(STREAM) == name * IMAGE
        loader.close()
