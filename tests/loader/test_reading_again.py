"""Reads that fail, come short or bring other bytes: made again, for a store's bytes are judged by their checksum."""

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.bench import make_store

from fourstage.loader import reader
from fourstage.loader.reader import PAUSES, Reader, ReadJob, ReadResult
from fourstage.store import Split, open_store

IMAGES = 6

Fault = Callable[[list[Any]], int]


def fails(_: list[Any]) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def ends(_: list[Any]) -> int:
    return 0


def brings_other_bytes(buffers: list[Any]) -> int:
    size = len(buffers[0])
    buffers[0][:] = b"\7" * size
    return size


class Disk:
    """Reads of the store that go wrong, so many of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Fault, times: int) -> None:
        self._real, self._fault, self._left = os.preadv, fault, times
        self._lock = threading.Lock()
        monkeypatch.setattr(os, "preadv", self._read)

    def _read(self, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        with self._lock:
            self._left -= 1
            goes_wrong = self._left >= 0
        return self._fault(list(buffers)) if goes_wrong else self._real(descriptor, list(buffers), offset)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return open_store(make_store(tmp_path, images=IMAGES, size=8)).split("train")


class Reading:
    """A reader of one thread, and how often it said that it reads something again."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.repeated = 0
        self.before_next: Callable[[], object] = lambda: None
        """Called when something is read again."""
        self.results: queue.SimpleQueue[ReadResult[int]] = queue.SimpleQueue()
        self.reader = Reader(1, self.results.put, repeated=self._count)

    def _count(self) -> None:
        self.repeated += 1
        self.before_next()

    def submit(self) -> memoryview:
        """Read all images."""
        into = memoryview(bytearray(int(self._split.records["size"].sum())))
        self.reader.submit(ReadJob(0, self._split, np.arange(IMAGES), into))
        return into

    def everything(self) -> tuple[bytes, str | None]:
        """The images' bytes, and what went wrong in the end."""
        into, result = self.submit(), self.results.get(timeout=60.0)
        return bytes(into), str(result.error) if result.error else None


@pytest.fixture
def reading(split: Split) -> Iterator[Reading]:
    made = Reading(split)
    yield made
    made.reader.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAUSES", (0.0,) * len(PAUSES))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", [fails, ends, brings_other_bytes])
def test_what_passes_changes_nothing_and_is_counted_and_logged(
    split: Split, reading: Reading, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    right, _ = reading.everything()
    Disk(monkeypatch, fault, times=len(PAUSES))
    assert reading.everything() == (right, None)
    assert reading.repeated == len(PAUSES)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(PAUSES)
    key = split.keys(np.arange(1))[0]
    assert all(repr(key) in words and str(split.shards[0]) in words and "is read again" in words for words in said)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (fails, "Input/output error"),
        (ends, "beyond the end of its shard"),
        (brings_other_bytes, "its checksum does not match"),
    ],
)
def test_what_stays_is_an_error_that_names_sample_and_file(
    split: Split, reading: Reading, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: str
) -> None:
    Disk(monkeypatch, fault, times=1000)
    error = reading.everything()[1]
    assert error is not None
    assert words in error
    assert f"sample {split.keys(np.arange(1))[0]!r} in {split.shards[0]}" in error
    assert f"(tried {len(PAUSES) + 1} times)" in error
    assert reading.repeated == len(PAUSES)


@pytest.mark.usefixtures("at_once")
def test_a_file_whose_descriptor_has_gone_bad_is_opened_anew(split: Split, reading: Reading) -> None:
    right, _ = reading.everything()
    gone = os.open(os.devnull, os.O_RDONLY)
    for link in Path("/proc/self/fd").iterdir():
        if os.path.realpath(link) == os.path.realpath(split.shards[0]):
            os.dup2(gone, int(link.name))
    os.close(gone)
    assert reading.everything() == (right, None)
    assert reading.repeated == 1, "from then on all is read from the new one"


@pytest.mark.usefixtures("at_once")
def test_a_shard_that_cannot_be_opened_for_a_moment_is_opened_again(split: Split, reading: Reading) -> None:
    path, away = split.shards[0], split.shards[0].with_suffix(".away")
    path.rename(away)
    reading.reader.prefetch(split, np.arange(IMAGES))
    reading.before_next = lambda: away.rename(path)
    assert reading.everything()[1] is None


@pytest.mark.parametrize(
    ("failure", "words"),
    [(MemoryError(), "MemoryError"), (ValueError("a bug"), "ValueError: a bug")],
    ids=["memory", "bug"],
)
def test_a_thread_that_met_an_error_of_another_kind_ended_without_a_word_and_its_batch_was_never_read(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str
) -> None:
    def fault(_: list[Any]) -> int:
        raise failure

    Disk(monkeypatch, fault, times=1)
    assert reading.everything()[1] == f"cannot read {IMAGES} samples of the split 'train': {words}"
    assert reading.everything()[1] is None, "the thread goes on"


def test_the_pauses_last_for_about_a_second_and_closing_waits_for_none(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0.5 < sum(PAUSES) < 2.0
    monkeypatch.setattr(reader, "PAUSES", (600.0,))
    Disk(monkeypatch, fails, times=1000)
    reading.submit()
    deadline = time.monotonic() + 30.0
    while not reading.repeated:
        assert time.monotonic() < deadline, "nothing was read again"
    reading.reader.close()
    assert reading.results.get(timeout=30.0).error is not None
