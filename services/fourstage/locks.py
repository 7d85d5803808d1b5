"""Who writes to a run directory. Each writer holds a lock on a file of its own, which is never replaced, so that no two
hold it; the kernel drops it with its holder.
"""

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fourstage.errors import FourstageError, SettingsError, StoppedError
from fourstage.process import StopFlag

log = logging.getLogger(__name__)

FOLDER = "locks"
ENGINE, TRAINER = "engine", "trainer"
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 90.0
"""For a step and a checkpoint of a trainer whose engine was killed."""
_PROBED_SECONDS = 0.1
"""Whoever asks whether a lock is held holds it for a moment."""


@contextmanager
def held(run_dir: Path, name: str) -> Iterator[bool]:
    """Hold a lock; whether nobody else does. Where a file system locks nothing, everybody does."""
    with _opened(run_dir, name) as file:
        until = time.monotonic() + _PROBED_SECONDS
        while not (alone := _take(file)) and time.monotonic() < until:
            time.sleep(_PROBED_SECONDS / 10)
        yield alone


def is_held(run_dir: Path, name: str) -> bool:
    """Whether somebody holds it: on this host, and on any where the file system shares locks."""
    try:
        with (run_dir / FOLDER / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No such file, or a file system that locks nothing.
        return False
    return False


@contextmanager
def held_once_free(run_dir: Path, name: str, stop: StopFlag, turn: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock, after whoever has it; whether somebody had. turn: called now and then while it is waited for.

    Raises StoppedError, and FourstageError where that takes minutes.
    """
    with _opened(run_dir, name) as file:
        until = time.monotonic() + _PATIENCE_SECONDS
        alone = _take(file)
        if not alone:
            log.warning("another %s still writes to %s: waiting for its end", name, run_dir)
            while not _take(file):
                turn()
                if stop.wait(_POLL_SECONDS):
                    raise StoppedError(f"stopped while another {name} still wrote to {run_dir} ({stop.reason})")
                if time.monotonic() > until:
                    raise FourstageError(f"another {name} writes to {run_dir}", hint="wait for its end, or end it")
        yield not alone


@contextmanager
def _opened(run_dir: Path, name: str) -> Iterator[BinaryIO]:
    path = run_dir / FOLDER / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # For writing: a file on NFS is locked for one alone only by who may write it.
        file = path.open("ab")
    except OSError as error:
        raise SettingsError(
            f"cannot write {path}: {error.strerror}", hint="make the run's directory writable"
        ) from error
    with file:
        yield file


def _take(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some file systems lock nothing: the run goes on all the same.
        return True
    return True
