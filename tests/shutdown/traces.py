"""What a command has left behind, wherever: processes, zombies, sockets, temporary files, locks, unfinished files."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourstage.engine.lock import is_looked_after

_MARK = "SHUTDOWN_TEST"
PATIENCE_SECONDS = 30.0
"""Orphans notice the end of their engine at once, but importing torch comes first."""


@dataclass
class Command:
    """A command in a session of its own, as a terminal starts it, with a folder of its own for temporary files."""

    words: Sequence[str]
    folder: Path
    """For temporary files and output; made here."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True)
        environment = os.environ | {"TMPDIR": str(self.temporary), _MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with (self.folder / "said").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                # Whoever started us in the background has had it ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def signal(self, number: int) -> None:
        """To the foreground process group, as a terminal sends it; nothing where the command has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def is_up(self) -> bool:
        """Whether its first line has run, which handles SIGTERM; until then Python itself answers signals."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return True
        caught = int(status.partition("SigCgt:")[2].split()[0], 16) if "SigCgt:" in status else 0
        return bool(caught >> (signal.SIGTERM - 1) & 1) or self.process.poll() is not None

    def family(self) -> dict[int, str]:
        """Every live process that this command started, directly or not, with its words."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdecimal() and int(path.name) != os.getpid():
                try:
                    if f"{_MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                        words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(path.name)] = words.strip()
                except OSError:
                    continue
        return found

    def end(self, seconds: float) -> int | None:
        """The exit code; None where it does not end, and is killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def left(
        self, known: Sequence[int] = (), run_dir: Path | None = None, patience: float = PATIENCE_SECONDS
    ) -> list[str]:
        """What is left once the command has ended. known: processes seen before, which may be zombies now."""
        deadline = time.monotonic() + patience
        while (family := self.family()) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [f"process {pid}: {words}" for pid, words in family.items()]
        left += [f"zombie {pid}" for pid in known if _is_zombie(pid, deadline)]
        left += [f"file {path}" for path in sorted(self.temporary.rglob("*"))]
        bound = Path("/proc/net/unix").read_text()
        left += [f"socket {line.split()[-1]}" for line in bound.splitlines() if str(self.temporary) in line]
        if run_dir is not None and is_looked_after(run_dir):
            left.append(f"lock on {run_dir}")
        return left

    def kill(self) -> None:
        """The command and whatever it started."""
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def unfinished(run_dir: Path) -> list[str]:
    """Files in a run directory that were being written."""
    return sorted(
        str(path.relative_to(run_dir)) for path in (*run_dir.glob(".*"), *run_dir.glob("checkpoints/.partial-*"))
    )


def _is_zombie(pid: int, deadline: float) -> bool:
    """Whether nobody fetches it; those that init has adopted are fetched in a moment."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return False
        if state != "Z":
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
