"""Where somebody's own loop gets its batches: a loader and augmenters of its own, or running ones."""

import os
import select
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from fourstage.engine.processes import ADDRESS, POLL_SECONDS, Processes
from fourstage.errors import FourstageError
from fourstage.process import private_folder
from fourstage.resolve import write_settings
from fourstage.settings import Settings


class Service(Protocol):
    """A loader and its augmenters, whoever looks after them."""

    @property
    def address(self) -> str:
        """The loader's."""

    @property
    def folder(self) -> Path:
        """For the sockets of whoever receives."""

    @property
    def failure(self) -> FourstageError | None:
        """Why nothing is started again any more."""

    def close(self) -> None:
        """Nobody here uses it any more."""


class Pipeline:
    """A loader and augmenters, watched by a thread."""

    def __init__(self, store: Path, folder: Path, settings: Settings, *, workers: int, shared: bool) -> None:
        """Start them; they need a second until they answer.

        folder: a private one, which is removed in the end
        shared: other processes hold them too; they are left to end with the last of these
        """
        self.failure: FourstageError | None = None
        self.folder = folder
        self.address = f"file:{folder / ADDRESS}"
        self._shared = shared
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            settings_file = folder / "settings.toml"
            settings_file.write_text(write_settings(settings), "utf-8")
            self._processes = Processes(settings=settings_file, sockets=folder, logs=folder)
            undo.callback(self._end)
            self._processes.start("loader", ["loader", "--store", os.fspath(store)])
            for name in (f"augmenter-{number}" for number in range(workers)):
                self._processes.start(name, ["augmenter", "--name", name])
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._thread = threading.Thread(target=self._watch, name="fourstage-watch", daemon=True)
            self._thread.start()
            undo.pop_all()

    def close(self) -> None:
        """Stop them, or leave them to the other processes that hold them."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        if self._shared:
            self._processes.let_go()
        else:
            self._end()

    def _end(self) -> None:
        """All at once: whoever was fed by them has gone."""
        self._processes.stop(self._processes.names())
        self._processes.let_go()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not poll.poll(1000 * POLL_SECONDS):
            try:
                self._processes.revive(self._processes.names())
            except FourstageError as error:
                self.failure = error
                return
            except Exception as error:
                # Whatever ends this thread: the loop that waits for batches must hear of it.
                self.failure = FourstageError(f"cannot start processes again: {error!r}")
                return


class Running:
    """A service that somebody else looks after; only the folder of sockets is ours."""

    failure: FourstageError | None = None

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        self.folder = private_folder(settings.sockets)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def start(store: Path, settings: Settings, *, workers: int) -> Pipeline:
    """A service of this process's own."""
    return Pipeline(store, private_folder(settings.sockets), settings, workers=workers, shared=False)
