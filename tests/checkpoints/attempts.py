"""A checkpoint's writing interrupted at each call, in four ways; each attempt says what was found afterwards.

The writer begins with checkpoint 1 on the disk and writes checkpoint 2, after which it removes the older one.
"""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TypeAlias

from fourstage.errors import CheckpointError
from tests.checkpoints import power
from tests.checkpoints.calls import count, end_at, refuse_at, seen
from tests.checkpoints.recorder import recorded, write_tree
from tests.checkpoints.written import found, leftovers, write
from tests.pipeline.harness import eventually

OLD, NEW = "step 1", "step 2"
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
CHANGING = (
    "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "write",
    "pwrite64", "ftruncate", "fallocate", "openat", "close",
)  # fmt: skip
"""System calls on files; the long form takes every call that the writer makes."""
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One interruption."""

    where: str
    found: str
    complaint: str = ""
    """What is wrong besides; nothing is."""

    @property
    def is_right(self) -> bool:
        return self.found in (OLD, NEW) and not self.complaint


Way: TypeAlias = Callable[[Path], Iterator[Attempt]]


def begin(folder: Path) -> Path:
    """A run whose only checkpoint is the old one."""
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, 1)
    return folder


def forks() -> ForkServerContext:
    """Children with everything imported, in a moment each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.checkpoints.attempts", "pytest"])
    return context


def ended(folder: Path) -> Iterator[Attempt]:
    """The process ends before its n-th call on a file, for every n; a write is torn in half."""
    for number in range(1, len(_calls(folder)) + 1):
        run = begin(folder)
        child = forks().Process(target=_write_and_end, args=(run, number))
        child.start()
        child.join()
        code = child.exitcode
        child.close()
        yield _look(run, f"call {number}", "" if code == 9 else f"exit {code}")


def refused(folder: Path) -> Iterator[Attempt]:
    """The disk refuses the n-th call, that one alone or all from then on: the error is told, and what was, stays."""
    for code in REFUSALS:
        for ever_after in (False, True):
            for number, name in enumerate(_calls(folder), 1):
                if name.endswith("close"):
                    continue
                run = begin(folder)
                complaint = ""
                told = False
                try:
                    with seen(refuse_at(number, code, ever_after=ever_after)):
                        write(run, 2, keep=1)
                except CheckpointError as error:
                    told = True
                    if os.strerror(code) not in str(error) or not error.hint or "step 2" not in str(error):
                        complaint = f"wrong words: {error}"
                except OSError as error:
                    complaint = f"no words: {error!r}"
                attempt = _look(run, f"{os.strerror(code)} at {name} {number}", complaint)
                if not told and attempt.found != NEW:
                    attempt = Attempt(attempt.where, attempt.found, "nothing was said")
                yield attempt


def powerless(folder: Path, without: Callable[[power.Operation], bool] = lambda _: False) -> Iterator[Attempt]:
    """The power fails after the n-th operation: every state that the disk may then be in.

    without: operations of the writer that are left out, to see that the proof can fail
    """
    run = begin(folder / "run")
    with recorded(run) as operations:
        old = len(operations)
        write(run, 2, keep=1)
    disk = power.Disk()
    for number, operation in enumerate(operations):
        if number >= old and without(operation):
            continue
        disk.do(operation)
        if number < old - 1:
            continue  # The old one is still being put there.
        for tree in disk.states():
            write_tree(tree, folder / "after")
            yield _look(folder / "after", f"after operation {number}: {operation.what} {operation.path}")


def killed(folder: Path, calls: tuple[str, ...] | None = CHANGING) -> Iterator[Attempt]:
    """SIGKILL before the n-th system call of each kind, by strace. calls: None, all that the writer makes."""
    log = folder / "strace.log"
    _strace(begin(folder / "run"), log, [])
    made = Counter(_CALL.findall(log.read_text()))
    for name, times in sorted(made.items()):
        if (calls is not None and name not in calls) or name.startswith("exit"):
            continue
        for number in range(1, times + 1):
            run = begin(folder / "run")
            code = _strace(run, log, ["-e", f"inject={name}:signal=KILL:when={number}"])
            # Of what is done while it ends there may be less than was counted.
            yield _look(run, f"{name} {number}", "" if code in (-signal.SIGKILL, 0) else f"exit {code}")


def strace_works() -> str:
    """Why not, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace cannot trace here: {done.stderr.strip()}"


def campaign(ways: dict[str, Way]) -> Iterator[tuple[str, Attempt]]:
    """Every attempt of each way, with the way's name."""
    for name, way in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            for attempt in way(Path(folder)):
                yield name, attempt


def _look(run: Path, where: str, complaint: str = "") -> Attempt:
    what = found(run)
    if not complaint and what in (OLD, NEW):
        write(run, 3, keep=1)
        if found(run) != "step 3":
            complaint = f"then {found(run)}"
        elif leftovers(run):
            complaint = f"left behind: {leftovers(run)}"
    return Attempt(where, what, complaint)


def _calls(folder: Path) -> list[str]:
    names: list[str] = []
    run = begin(folder)
    with seen(count(names)):
        write(run, 2, keep=1)
    return names


def _write_and_end(run: Path, number: int) -> None:
    with seen(end_at(number)):
        write(run, 2, keep=1)


def _write_when_told(run: Path, go: Connection) -> None:
    go.recv_bytes()
    write(run, 2, keep=1)


def _strace(run: Path, log: Path, inject: list[str]) -> int | None:
    """The writer's exit code; what it calls goes to the log."""
    theirs, ours = multiprocessing.Pipe(duplex=False)
    child = forks().Process(target=_write_when_told, args=(run, theirs))
    child.start()
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), *inject, "-p", str(child.pid)], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _is_traced(child.pid), "strace at the writer")
        ours.send_bytes(b"go")
        child.join()
        return child.exitcode
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        child.close()
        tracer.wait(10)
        for end in (theirs, ours):
            end.close()


def _is_traced(pid: int | None) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True  # It has been, and was killed.
