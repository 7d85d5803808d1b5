"""The files of a run directory: what is written, when, and how it survives a kill.

Whole files are replaced by rename, lines are appended and flushed; a resumed run cuts lines back to its
checkpoint. ``status.json`` is the live view's source, for ``fourstage run`` and ``fourstage status`` alike.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from fourstage.errors import FourstageError, SettingsError

SETTINGS, SUMMARY, STATUS = "settings.toml", "summary.json", "status.json"
RECEIPT, STEPS, EPOCHS = "receipt.jsonl", "steps.jsonl", "epochs.jsonl"
ORIGIN, SAMPLES, PROCESSES = "run.json", "samples.u32", "processes.json"
CHECKPOINTS, LOGS, TRACE = "checkpoints", "logs", "trace.json"
TRAINERS = (SUMMARY, STATUS, RECEIPT, STEPS, EPOCHS)
"""The files that a run's first trainer replaces; the others are the engine's."""
ENGINES = (SETTINGS, ORIGIN, PROCESSES)


def create_run_directory(path: Path, *, resume: bool) -> None:
    """Make the directory, or check that it can be resumed. Raises SettingsError; nothing is left half-made."""
    if resume:
        if not (path / SETTINGS).is_file():
            raise SettingsError(f"{path} holds no run to resume", hint="leave --resume out to begin one")
    elif (path / SETTINGS).exists():
        raise SettingsError(f"{path} already holds a run", hint="add --resume to go on, or name another directory")
    try:
        (path / LOGS).mkdir(parents=True, exist_ok=True)
        (path / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot write to the run directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(f"cannot write to the run directory {path}: permission denied")


def is_done(run_dir: Path) -> bool:
    """Whether the directory holds a run that has been trained to its end."""
    path = run_dir / SUMMARY
    return path.is_file() and read_json(path).get("state") == "done"


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file: readers see the old text or the new, never a part. durable: it also survives a power cut,
    which costs two waits for the disk. Raises FourstageError where the disk does not take it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """The names in a folder survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(run_dir: Path, names: Iterable[str]) -> None:
    """Remove what killed processes have left of replacing these files; called by their only writer."""
    for name in names:
        for leftover in run_dir.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FourstageError(
            f"cannot write {path}: {error.strerror}",
            hint="free space there or make it writable, and resume from the last checkpoint",
        ) from error


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Replace a file by a JSON object; ``write_whole`` says how."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FourstageError where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FourstageError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise FourstageError(f"{path} is not a JSON object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; a torn last line is left out."""
    if not path.is_file():
        return []
    lines = []
    # After a power cut the torn end may be any bytes.
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a JSON lines file back to the lines that a checkpoint knows."""
    kept = [line for line in read_lines(path) if keep(line)]
    write_whole(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))


def note_store(run_dir: Path, store: Path, fingerprint: str) -> None:
    """Note where the run's store is, for whoever makes its batches again.

    Raises SettingsError where the run was begun with another one.
    """
    path = run_dir / ORIGIN
    begun = path.is_file() and (run_dir / SETTINGS).is_file()
    before = read_json(path).get("fingerprint", fingerprint) if begun else fingerprint
    if before != fingerprint:
        raise SettingsError(
            f"the run in {run_dir} was begun with the store {before:.12}, {store} is {fingerprint:.12}",
            hint="resume with the store that the run began with",
        )
    write_json(path, {"store": os.fspath(store.absolute()), "fingerprint": fingerprint})


def cut_samples(path: Path, samples: int) -> None:
    """Cut ``samples.u32`` back to as many samples as a checkpoint knows; what it lacks of them becomes zeros."""
    if samples or path.is_file():
        with _writing(path):
            path.touch()
            os.truncate(path, 4 * samples)


class Samples:
    """Appends the short digests of samples, 4 bytes each; there is no file before the first ones."""

    def __init__(self, path: Path | None) -> None:
        """Without a path they are dropped."""
        self._path = path
        self._file: BinaryIO | None = None

    def add(self, digests: bytes) -> None:
        """Those of one batch; they reach the file with ``flush``."""
        if digests and self._path:
            with _writing(self._path):
                if self._file is None:
                    self._file = self._path.open("ab")
                    sync_folder(self._path.parent)
                self._file.write(digests)

    def flush(self, *, durable: bool = False) -> None:
        """Hand what was added to the kernel: it survives this process; durable: a power cut too."""
        _flush(self._path, self._file, durable=durable)

    def close(self) -> None:
        """What was not flushed is lost where the disk is full, which whoever flushed has been told."""
        if self._file:
            with suppress(OSError):
                self._file.close()


class Lines:
    """Appends objects to a JSON lines file; without a path they are dropped."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None

    def add(self, value: dict[str, Any]) -> None:
        """One line; it reaches the file with ``flush``. Raises ValueError for a number that JSON has not."""
        if self._path and self._file:
            with _writing(self._path):
                self._file.write(json.dumps(value, allow_nan=False) + "\n")

    def flush(self, *, durable: bool = False) -> None:
        """Hand what was added to the kernel: it survives this process; durable: a power cut too."""
        _flush(self._path, self._file, durable=durable)

    def close(self) -> None:
        """What was not flushed is lost where the disk is full, which whoever flushed has been told."""
        if self._file:
            with suppress(OSError):
                self._file.close()


def _flush(path: Path | None, file: BinaryIO | TextIO | None, *, durable: bool) -> None:
    if path and file:
        with _writing(path):
            file.flush()
            if durable:
                os.fsync(file.fileno())
