"""What every service needs of its process: a stop flag, a lifeline to its parent, a private folder of sockets."""

import os
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fourstage.errors import SettingsError
from fourstage.wire.side import MAX_PATH

ORPHANED = "the parent process is gone"
_SOCKET_NAME = re.compile(r"[a-z-]+-[0-9a-f]{8}")
_NEW_SECONDS = 60.0
"""A socket's name is there a moment before the socket is."""


class StopFlag:
    """Set once: by a signal, by the parent's death, or by the program itself."""

    def __init__(self) -> None:
        # No threading.Event: a signal handler that takes a lock which the main thread holds never returns.
        self._set = False
        self.urgent = False
        """A second signal came: whoever stops in order stops at once."""
        self.reason = ""
        self._lifeline = -1
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Readable once the flag is set: data loops wait on it beside their sockets."""

    def set(self, reason: str) -> None:
        if not self._set:
            self.reason = reason
            self._set = True
            os.write(self._writer, b"x")

    def __bool__(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Sleep until the flag is set; whether it is."""
        select.select([self.reader], [], [], seconds)
        return self._set

    def on_signals(self) -> None:
        """SIGTERM and SIGINT set the flag, and so does a terminal that closes, unless SIGHUP was ignored (nohup)."""

        def handle(number: int, _: FrameType | None) -> None:
            # A terminal that closes may say so twice: that is nobody's second Ctrl-C.
            if self._set and number != signal.SIGHUP:
                self.urgent = True
            self.set(signal.Signals(number).name)

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, handle)

    def on_lifeline(self, descriptor: int) -> None:
        """Set the flag when the other end of this pipe closes: the parent is gone, however it died."""

        self._lifeline = descriptor

        def watch() -> None:
            while os.read(descriptor, 512):
                continue
            self.set(ORPHANED)

        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    @property
    def orphaned(self) -> bool:
        """Whether the parent is gone, whatever set the flag: it may have said SIGTERM before it was killed."""
        if self._lifeline < 0:
            return False
        poll = select.poll()
        poll.register(self._lifeline, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))


def private_folder(configured: str) -> Path:
    """A new folder that only this user can enter, inside the configured one if there is one; the caller removes it.

    Raises SettingsError where it cannot be made.
    """
    try:
        if configured:
            _own_folder(configured)
        return Path(tempfile.mkdtemp(prefix="fourstage-", dir=configured or None))
    except OSError as error:
        raise SettingsError(f"sockets = {configured!r}: {error.strerror}") from error


def _own_folder(configured: str) -> Path:
    """The configured folder, made if it is missing. Raises SettingsError where others could put sockets of their own
    in the place of ours."""
    folder = Path(configured)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise SettingsError(
            f"sockets = {configured!r} is a folder that other users may write to (mode {mode:04o})",
            hint=f"chmod 700 {folder}, or leave sockets out",
        )
    return folder


def raise_file_limit() -> None:
    """As many open files as the system allows at most: libzmq ends its process where a peer comes over a Unix socket
    and no descriptor is left (ipc_listener.cpp)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def sockets_folder(configured: str) -> Iterator[Path]:
    """The folder of the Unix sockets: the configured one, or a private one that is removed in the end."""
    if configured:
        try:
            folder = _own_folder(configured)
        except OSError as error:
            raise SettingsError(f"sockets = {configured!r}: {error.strerror}") from error
        remove_dead_sockets(folder)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="fourstage-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_sockets(folder: Path) -> None:
    """Remove what processes that were killed have left of ``socket_path``'s; sockets in use stay."""
    before = time.time() - _NEW_SECONDS
    for path in folder.iterdir():
        with suppress(OSError):
            status = path.lstat()
            if (
                _SOCKET_NAME.fullmatch(path.name)
                and stat.S_ISSOCK(status.st_mode)
                and status.st_mtime < before
                and not _answers(path)
            ):
                path.unlink()


def _answers(path: Path) -> bool:
    """Whether a process has the socket. A datagram disturbs none of ours, which listen: it is of the wrong type."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def socket_path(folder: Path, name: str) -> Path:
    """A fresh path for a Unix socket. Raises SettingsError where it would be too long for one."""
    path = folder / f"{name}-{secrets.token_hex(4)}"
    if len(os.fsencode(path)) > MAX_PATH:
        raise SettingsError(
            f"{path} is longer than the {MAX_PATH} bytes of a Unix socket's path",
            hint="set a shorter sockets folder",
        )
    return path
