"""The folder of sockets that containers share: what a killed process leaves goes, what is in use stays."""

import os
import socket
import time
from pathlib import Path

from fourstage.process import remove_dead_sockets, socket_path
from fourstage.wire import side

LONG_AGO = time.time() - 3600


def _left(path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> Path:
    """A socket whose process is gone."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(os.fspath(path))
    return path


def test_sockets_of_killed_processes_go(tmp_path: Path) -> None:
    side_socket, zmq_socket = socket_path(tmp_path, "loader"), socket_path(tmp_path, "trainer-zmq")
    for path in (_left(side_socket), _left(zmq_socket, socket.SOCK_STREAM)):
        os.utime(path, (LONG_AGO, LONG_AGO))
    remove_dead_sockets(tmp_path)
    assert not list(tmp_path.iterdir())


def test_sockets_in_use_stay_and_are_not_disturbed(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "loader")
    with side.listen(path) as listener:
        os.utime(path, (LONG_AGO, LONG_AGO))
        remove_dead_sockets(tmp_path)
        assert path.exists()
        assert side.accept(listener) is None
        connection = side.connect(os.fspath(path), 1.0)
        assert connection is not None
        connection.close()


def test_a_new_socket_and_what_is_no_socket_of_ours_stay(tmp_path: Path) -> None:
    kept = [_left(socket_path(tmp_path, "loader")), _left(tmp_path / "postgres"), tmp_path / "loader-0123abcd"]
    kept[2].write_text("a file")
    for path in kept[1:]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    remove_dead_sockets(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
