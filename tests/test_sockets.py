"""The folder of sockets that containers share: what a killed process leaves goes, what is in use stays."""

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from fourstage.errors import SettingsError
from fourstage.process import private_folder, remove_dead_sockets, socket_path, sockets_folder
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


def test_a_folder_of_sockets_is_this_users_alone(tmp_path: Path) -> None:
    with sockets_folder("") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inside = private_folder(str(tmp_path))
    assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    with sockets_folder(str(tmp_path / "new")) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_where_others_could_put_sockets_of_theirs_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    words = f"mode {mode:04o}.*chmod 700"
    with pytest.raises(SettingsError, match=words):
        private_folder(str(tmp_path))
    with pytest.raises(SettingsError, match=words), sockets_folder(str(tmp_path)):
        pass
    tmp_path.chmod(0o755)
    private_folder(str(tmp_path))
