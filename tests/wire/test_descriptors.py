"""No file descriptor is left, for a while: side connections are gone without, and nobody dies of it."""

import dataclasses
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fourstage.arena import PAGE, Arena
from fourstage.process import raise_file_limit
from fourstage.wire import side
from fourstage.wire.admitted import Admitted
from fourstage.wire.door import Door, Introduced
from fourstage.wire.keys import make_keys
from fourstage.wire.messages import Stream
from fourstage.wire.security import FOR_AUGMENTERS, load
from fourstage.wire.sockets import Waiter
from fourstage.wire.sources import JpegSources
from tests.wire.make_vectors import MESSAGES

PEER = b"p" * 16


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing more may be opened by this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_loader_without_descriptors_died_of_the_next_augmenter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiter = Waiter()
    door: Door[str] = Door(tmp_path / "door", waiter)
    early, late = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with early, late:
        with no_descriptor_left():
            early.connect(str(door.path))
            assert list(door.events(waiter.wait(5.0))) == []
            # Nothing is left that would wake it again and again.
            assert waiter.wait(0.0) == set()
        assert "refused a side connection: Too many open files" in caplog.text
        early.settimeout(5.0)
        assert early.recv(1) == b"", "it knows that it goes without"

        late.connect(str(door.path))
        side.send(late, side.Packet(PEER, b""))
        events = [event for _ in range(2) for event in door.events(waiter.wait(5.0))]
        assert [type(event) for event in events] == [Introduced]
        door.refuse(events[0].connection)  # type: ignore[union-attr]  # it is Introduced
    door.close()
    waiter.close()


def test_a_service_takes_the_file_limit_that_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_whoever_dials_without_descriptors_goes_without_a_side_connection(tmp_path: Path) -> None:
    listener = side.listen(tmp_path / "door")
    with no_descriptor_left():
        assert side.connect(str(tmp_path / "door"), 5.0) is None
    connection = side.connect(str(tmp_path / "door"), 5.0)
    assert connection is not None
    connection.close()
    listener.close()


def test_an_augmenter_that_could_not_take_an_arena_dropped_every_lease_from_then_on() -> None:
    arena = Arena.create(2, PAGE)
    loader, augmenter = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with loader, augmenter:
        sources = JpegSources()
        sources.follow(augmenter)
        spec = next(dataclasses.replace(m, transport="arena") for m in MESSAGES if isinstance(m, Stream))
        assert side.send(loader, side.Packet(PEER, spec.stream, 2, PAGE), arena.descriptor)
        with no_descriptor_left():
            sources.attach(spec)
        assert side.hung_up(augmenter), "its link finds the loader anew, and the arena comes again"
        assert side.hung_up(loader)
    arena.close()


def test_a_loader_without_descriptors_took_every_key_for_revoked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died of the folder that it could not open; an empty listing would have put everybody out."""
    make_keys(tmp_path)
    security = load(str(tmp_path / "loader"), "loader")
    assert security is not None
    admitted = Admitted(security, FOR_AUGMENTERS)
    (user,) = (key.decode() for key, name in security.clients.items() if name == "augmenter")
    monkeypatch.setattr("fourstage.wire.admitted.LOOK_SECONDS", 0.0)
    assert admitted.changes() == frozenset()
    with no_descriptor_left():
        assert admitted.changes() == frozenset()
        assert user in admitted
    assert "Too many open files" in caplog.text
    (tmp_path / "loader" / "peers" / "augmenter.key").unlink()
    assert admitted.changes() == {user}
