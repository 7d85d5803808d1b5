"""Where somebody's own loop gets its batches: a loader and augmenters of its own, another rank's, or running ones.

Own ones live as long as a process that holds them. Only the one that started them watches them and starts them
again; with torch.distributed that is rank 0, and as the other ranks hold them too, the rank that ends first takes
nothing away from the rest.
"""

import os
import select
import shutil
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from fourstage import ranks
from fourstage.engine.processes import ADDRESS, POLL_SECONDS, Processes, hold
from fourstage.errors import FourstageError, SettingsError
from fourstage.settings import Settings, write_settings

_ELSEWHERE = "for ranks on several machines start one and name its loader's address, tcp://HOST:PORT"


class Pipeline:
    """A loader and augmenters, watched by a thread."""

    def __init__(self, store: Path, folder: Path, settings: Settings, *, workers: int, shared: bool) -> None:
        """Start them; they need a second until they answer.

        folder: a private one, which is removed in the end
        shared: other processes hold them too; they are left to end with the last of these
        """
        self.failure: FourstageError | None = None
        """Why nothing is started again any more."""
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
            undo.pop_all()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="fourstage-watch", daemon=True)
        self._thread.start()

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


class Share:
    """Another process's pipeline, held."""

    failure = None

    def __init__(self, folder: Path) -> None:
        """Raises FourstageError where it is not on this machine."""
        self.folder = folder
        self.address = f"file:{folder / ADDRESS}"
        self._held = hold(folder)

    def close(self) -> None:
        """Let go."""
        os.close(self._held)


class Running:
    """A service that somebody else looks after; only the folder of sockets is ours."""

    failure = None

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        self.folder = private_folder(settings)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


Service: TypeAlias = Pipeline | Share | Running


def start(store: Path, settings: Settings, *, workers: int) -> Pipeline:
    """A service of this process's own."""
    return Pipeline(store, private_folder(settings), settings, workers=workers, shared=False)


def share(store: Path, settings: Settings, *, workers: int) -> "Pipeline | Share":
    """One service for all ranks of torch.distributed, started by rank 0; a collective call.

    Raises FourstageError on every rank unless all of them run on one machine.
    """
    service: Pipeline | Share | None = None
    failure: FourstageError | None = None
    rank, _ = ranks.place()
    folder = Path()
    if rank == 0:
        try:
            folder = private_folder(settings)
            service = Pipeline(store, folder, settings, workers=workers, shared=True)
        except FourstageError as error:
            failure = error
    folder = Path(ranks.tell(str(folder)))
    if rank != 0:
        try:
            service = Share(folder)
        except FourstageError as error:
            failure = SettingsError(f"rank {rank} does not find the service of rank 0: {error}", hint=_ELSEWHERE)
    if ranks.all_agree(failure is None) and service is not None:
        return service
    if service is not None:
        service.close()
    raise failure or FourstageError("another rank has no service", hint=_ELSEWHERE)


def private_folder(settings: Settings) -> Path:
    """A new folder for sockets that only this user can enter. Raises SettingsError where it cannot be made."""
    try:
        if settings.sockets:
            Path(settings.sockets).mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="fourstage-", dir=settings.sockets or None))
    except OSError as error:
        raise SettingsError(f"sockets = {settings.sockets!r}: {error.strerror}") from error
