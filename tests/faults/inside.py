"""``python -m tests.faults.inside`` is the ``fourstage`` command with moments at which it can be held, and faults that
must come from within: of reading, of memory, of the wall clock.

The folder in the environment's FAULTS holds one file for each moment that is awaited. Who comes there first takes the
file away, says who it is, and waits until it is let go. Without a file nothing changes.
"""

import errno
import faulthandler
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.faults.draw import Moment

VARIABLE = "FAULTS"
AWAITED, HELD, RELEASED = ".awaited", ".held", ".released"
READ_ERROR, READS_FAIL, READS_SLOW = "read-error", "reads-fail", "reads-slow"
"""One read fails for each file that begins so; all fail; all take the seconds that the file holds."""
HOSTS = "hosts"
"""Every process is on a host of its own: no Unix socket of another one can be reached."""
CLOCK, MEMORY = "clock", "memory"
"""With the process's name behind: seconds to add to the wall clock; the next batch needs more memory than there is."""
_LONGEST_HOLD = 20.0
_LEAK_BYTES = 1 << 30


class Inside:
    """What is patched into one process. ``role`` and ``name`` are those of its command line."""

    def __init__(self, folder: Path, role: str, name: str) -> None:
        self._folder = folder
        self._role = role
        self._name = name
        self._counts: Counter[Moment] = Counter()

    def reached(self, moment: Moment, count: int | None = None) -> None:
        """The moment has come once more, or for the count-th time: be held where that is awaited."""
        self._counts[moment] += 1
        token = f"{moment.name}.{self._role}.{count or self._counts[moment]}"
        try:
            (self._folder / (token + AWAITED)).unlink()
        except FileNotFoundError:
            return
        # A link needs no descriptor, and there may be none left.
        (self._folder / (token + HELD)).symlink_to(self._name)
        released, deadline = self._folder / (token + RELEASED), time.monotonic() + _LONGEST_HOLD
        while moment is not Moment.STEP and not released.exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    def before(self, owner: Any, name: str, moment: Moment) -> None:
        """Hold before a function is called."""
        original = getattr(owner, name)

        def held(*arguments: Any, **named: Any) -> Any:
            self.reached(moment)
            return original(*arguments, **named)

        patch.object(owner, name, held).start()

    def after(self, owner: Any, name: str, moment: Moment) -> None:
        """Hold after a function has returned."""
        original = getattr(owner, name)

        def held(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            self.reached(moment)
            return result

        patch.object(owner, name, held).start()

    def everywhere(self) -> None:
        """The wall clock, and who can be reached."""
        from fourstage.wire import side

        real, connect = time.time, side.connect

        def reach(path: str, timeout: float) -> socket.socket | None:
            return None if (self._folder / HOSTS).exists() else connect(path, timeout)

        patch.object(side, "connect", reach).start()

        def stepped() -> float:
            return real() + self._number(f"{CLOCK}-{self._name}")

        patch.object(time, "time", stepped).start()

    def loader(self) -> None:
        from fourstage.loader.serving import Serving

        self.after(Serving, "_send_lease", Moment.LEASE)
        real = os.preadv

        def failing(descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
            if seconds := self._number(READS_SLOW):
                time.sleep(seconds)
            for error in self._folder.glob(f"{READ_ERROR}*"):
                try:
                    error.unlink()
                except FileNotFoundError:
                    continue
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if (self._folder / READS_FAIL).exists():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, buffers, offset, flags)

        patch.object(os, "preadv", failing).start()

    def augmenter(self) -> None:
        from fourstage.augmenter import transform
        from fourstage.augmenter.decode import for_images
        from fourstage.augmenter.outbox import Outbox
        from fourstage.augmenter.service import AugmenterService
        from fourstage.wire.link import LoaderLink

        self.before(LoaderLink, "_on_welcome", Moment.WELCOME)
        self.after(AugmenterService, "_on_stream", Moment.STREAM)
        self.after(AugmenterService, "_on_lease", Moment.LEASE)
        tell, make, making = Outbox._tell, AugmenterService._make, False

        def leased(service: AugmenterService, *work: Any) -> None:
            nonlocal making
            self._leak()
            making = True
            make(service, *work)

        def telling(outbox: Outbox, finished: Any) -> None:
            tell(outbox, finished)
            if finished.number:
                self.reached(Moment.SENT)

        def halting(decode: Any, images: Sequence[Any], *more: Any) -> Callable[..., Any]:
            decoder, done = for_images(decode, images, *more), 0

            def counting(*arguments: Any) -> Any:
                nonlocal done
                done += 1
                if making and done == len(images) // 2:
                    self.reached(Moment.HALF_MADE)
                return decoder(*arguments)

            return counting

        patch.object(AugmenterService, "_make", leased).start()
        patch.object(Outbox, "_tell", telling).start()
        patch.object(transform, "for_images", halting).start()

    def trainer(self) -> None:
        from fourstage.trainer.inbox import Inbox
        from fourstage.trainer.report import Report
        from fourstage.trainer.service import TrainerService
        from fourstage.wire.link import LoaderLink

        self.before(LoaderLink, "_on_welcome", Moment.WELCOME)
        self.after(Inbox, "put", Moment.ARRIVED)
        self.before(TrainerService, "_end_of_epoch", Moment.END_OF_EPOCH)
        self.before(Report, "summary", Moment.DRAIN)
        self.before(TrainerService, "close", Moment.DRAIN)
        train, passed, sync = TrainerService._train, TrainerService._passed, os.fsync

        def syncing(descriptor: int) -> None:
            if "checkpoints" in Path(f"/proc/self/fd/{descriptor}").readlink().parts:
                self.reached(Moment.CHECKPOINT)
            sync(descriptor)

        def training(service: TrainerService, item: Any, *arguments: Any) -> None:
            self.reached(Moment.STEP, item.batch.seq + 1)
            train(service, item, *arguments)

        def passing(service: TrainerService, item: Any, split: str, *arguments: Any) -> None:
            if split == "val":
                self.reached(Moment.VALIDATION)
            passed(service, item, split, *arguments)

        patch.object(os, "fsync", syncing).start()
        patch.object(TrainerService, "_train", training).start()
        patch.object(TrainerService, "_passed", passing).start()

    def run(self) -> None:
        """The engine: what it starts is started by this module as well."""
        real = subprocess.Popen

        def start(command: list[str], **named: Any) -> Any:
            return real(["tests.faults.inside" if part == "fourstage" else part for part in command], **named)

        patch.object(subprocess, "Popen", start).start()

    def _leak(self) -> None:
        """Memory that the process may not have, where that is asked for: the system refuses it."""
        try:
            (self._folder / f"{MEMORY}-{self._name}").unlink()
        except FileNotFoundError:
            return
        bytearray(_LEAK_BYTES)

    def _number(self, name: str) -> float:
        try:
            return float((self._folder / name).read_text())
        except (OSError, ValueError):
            # Not there; or no descriptor is left to read it with, which is no reason to die here.
            return 0.0


def main() -> None:
    role = sys.argv[1]
    name = sys.argv[sys.argv.index("--name") + 1] if "--name" in sys.argv else role
    # Of one that hangs the log then says where.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    inside = Inside(Path(os.environ[VARIABLE]), role, name)
    inside.everywhere()
    getattr(inside, role)()
    runpy.run_module("fourstage", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
