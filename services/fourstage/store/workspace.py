"""Unfinished work: ``STORE/.prepare-SPLIT/``, from which a ``prepare`` that was killed goes on.

A shard is finished when its part file is there; the shard itself was on disk before. What is younger is made
again. The folder goes away when ``store.json`` names the split.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import SettingsError, StoreError
from fourstage.store.archives import LeftOut
from fourstage.store.files import create_file, file_length, open_regular, write_file
from fourstage.store.index import RECORD
from fourstage.store.manifest import MANIFEST_NAME
from fourstage.store.sums import Sums

LOCK_NAME = ".lock"
_WORK = ".prepare-"
_PLAN_NAME = "plan"
_LONGEST_PLAN = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A finished shard's share of the split's index, statistics and list of images left out."""

    sources: int
    """Source images that went into it or were left out."""

    bytes: int
    xxh3_128: str
    records: NDArray[np.void]
    keys: list[str]
    left_out: list[LeftOut]
    sums: Sums | None


@contextmanager
def workspace(store: Path, split: str) -> Iterator[Path]:
    """The store's folder, locked, and in it the folder of work for a split; both made if need be.

    An error before the first shard is in the store leaves nothing behind. Raises SettingsError where the folder
    cannot be written, holds something else or leads elsewhere by a link, StoreError where another prepare is at
    work in it.
    """
    fresh = not store.exists()
    work = store / f"{_WORK}{split}"
    for path in (store / LOCK_NAME, work):
        if path.is_symlink():
            raise SettingsError(
                f"{path} is a link, and would be written through", hint="delete it, or name another STORE"
            )
    try:
        store.mkdir(parents=True, exist_ok=True)
        lock = os.open(store / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise SettingsError(f"cannot write to {store}: {error.strerror}", hint="name another STORE") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"another prepare is writing to {store}", hint="wait until it has ended") from error
        entries = {path.name for path in store.iterdir()} - {LOCK_NAME}
        if entries and MANIFEST_NAME not in entries and not any(name.startswith(_WORK) for name in entries):
            (store / LOCK_NAME).unlink()
            raise SettingsError(f"{store} is not empty and no store", hint="name a folder that is empty or new")
        work.mkdir(exist_ok=True)
        try:
            yield work
        except BaseException:
            # A shard lies in the store before its part does, and there only the folder of work says whose it is.
            begun = (work / _PLAN_NAME).exists() and any(store.glob(f"{split}-{6 * '[0-9]'}.tar"))
            if not begun and not any(work.glob("*.npz")):
                shutil.rmtree(work)
                if not entries:
                    (store / LOCK_NAME).unlink()
                if fresh:
                    store.rmdir()
            raise
        shutil.rmtree(work)
    finally:
        os.close(lock)


def check_plan(work: Path, plan: dict[str, Any]) -> None:
    """Note what is being made, or see that finished parts are parts of the same; else SettingsError."""
    path = work / _PLAN_NAME
    text = json.dumps(plan, indent=1)
    if any(work.glob("*.npz")) and path.exists():
        earlier = _earlier_plan(path)
        changed = [name for name in plan if earlier.get(name) != plan[name]]
        if changed:
            # Shards without their folder of work or a manifest would be taken for something else's.
            unfinished = work if (work.parent / MANIFEST_NAME).exists() else work.parent
            raise SettingsError(
                f"{work.parent} holds an unfinished prepare with another {' and '.join(changed)}",
                hint=f"give the same settings to go on, or delete {unfinished} to begin again",
            )
    write_file(path, text.encode("ascii"))


def _earlier_plan(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            earlier = json.loads(stream.read(min(file_length(stream), _LONGEST_PLAN)))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return earlier if isinstance(earlier, dict) else {}


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(f"unfinished work is damaged, {path}: {error}", hint="delete its folder to begin again")


def write_part(work: Path, number: int, part: Part) -> None:
    """Put a finished shard's part on disk; from then on the shard is kept."""
    path = work / f"{number:06}.npz"
    temporary = work / "part.tmp"
    texts = {"bytes": part.bytes, "sources": part.sources, "xxh3_128": part.xxh3_128}
    notes = json.dumps(texts | {"keys": part.keys, "left_out": part.left_out}).encode("ascii")
    arrays: dict[str, Any] = {} if part.sums is None else part.sums.arrays()
    with create_file(temporary) as stream:
        np.savez(
            stream,
            allow_pickle=False,
            records=part.records.view(np.uint8),
            notes=np.frombuffer(notes, np.uint8),
            **arrays,
        )
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_parts(work: Path) -> Iterator[Part]:
    """The finished parts, in order."""
    number = 0
    while (path := work / f"{number:06}.npz").exists():
        try:
            with open_regular(path) as stream, np.load(stream, allow_pickle=False) as arrays:
                part = _read_part(arrays)
        except Exception as error:
            # zipfile, zlib and numpy each have their own errors for a damaged archive.
            raise _damaged(path, error) from error
        yield part
        number += 1


def _read_part(arrays: Mapping[str, NDArray[Any]]) -> Part:
    notes = json.loads(arrays["notes"].tobytes())
    return Part(
        sources=notes["sources"],
        bytes=notes["bytes"],
        xxh3_128=notes["xxh3_128"],
        records=arrays["records"].view(RECORD),
        keys=notes["keys"],
        left_out=[LeftOut(*entry) for entry in notes["left_out"]],
        sums=Sums.from_arrays(arrays) if "pixels" in arrays else None,
    )


def discard_parts(work: Path) -> None:
    """Forget what was finished: the next prepare begins again."""
    for path in work.glob("*.npz"):
        path.unlink()
    (work / _PLAN_NAME).unlink(missing_ok=True)
