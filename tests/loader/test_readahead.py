"""Reading ahead: whose batch was read, whom it wakes, and how far the kernel is told of."""

import dataclasses
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bench import make_store

from fourstage.loader.leases import Leases, Timing
from fourstage.loader.readahead import Loaded, ReadAhead
from fourstage.loader.reader import Reader
from fourstage.loader.streams import LoaderStream, open_stream
from fourstage.settings import MetricsSettings
from fourstage.store import Store, open_store
from fourstage.telemetry import StageMeter, Telemetry
from fourstage.views import View
from fourstage.wire.messages import Open
from tests.pipeline.harness import eventually

STREAM = bytes(16)
BATCHES = 4
SPEC = Open(
    stream=STREAM, split="train", view=View("full", 8), batch_size=2, remainder="keep", shuffle=False, seed=0,
    rank=0, world=1, start=0, epochs=1, end=0, window=BATCHES, fingerprint="", identity=b"", worker=b"",
    on_corrupt="fail", secret=bytes(16),
    transport="inline", receiver="", side="",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(make_store(tmp_path, images=2 * BATCHES, size=8))


@pytest.fixture
def stream(store: Store) -> Iterator[LoaderStream]:
    stream = open_stream(store, SPEC, bytes(16), memory=1 << 20)
    yield stream
    stream.arena.close()


@pytest.fixture
def leases() -> Leases:
    leases = Leases(Timing(silence=5.0, hedge=1.0, missing=1.0))
    leases.open(STREAM, start=0, end=BATCHES, window=BATCHES, rows=lambda _: 2)
    return leases


@pytest.fixture
def meter() -> StageMeter:
    return Telemetry("loader", MetricsSettings(), "0").meter("load")


@pytest.fixture
def read_ahead(meter: StageMeter) -> Iterator[ReadAhead]:
    read_ahead = ReadAhead(2, meter, batch_seconds=0.0)
    yield read_ahead
    read_ahead.close()


def everything(read_ahead: ReadAhead, stream: LoaderStream, leases: Leases) -> dict[int, str | None]:
    """Read all batches; whatever they wake. Numbers, and the error of each."""
    read_ahead.load({STREAM: stream}, leases, time.monotonic())
    found: dict[int, str | None] = {}
    deadline = time.monotonic() + 30.0
    while len(found) < BATCHES and time.monotonic() < deadline:
        for loaded in read_ahead.loaded({STREAM: stream}):
            found[loaded.seq] = str(loaded.error) if loaded.error else None
    return found


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.0)[0])


def test_a_batch_that_is_awaited_wakes_whoever_sleeps(
    read_ahead: ReadAhead, stream: LoaderStream, leases: Leases
) -> None:
    assert read_ahead.rest(awaited=True)
    read_ahead.load({STREAM: stream}, leases, time.monotonic())
    assert select.select([read_ahead.wake], [], [], 30.0)[0]


def test_a_batch_that_nobody_waits_for_wakes_nobody(
    read_ahead: ReadAhead, stream: LoaderStream, leases: Leases
) -> None:
    assert read_ahead.rest(awaited=False)
    assert everything(read_ahead, stream, leases) == dict.fromkeys(range(BATCHES))
    assert not is_readable(read_ahead.wake)


def test_nobody_falls_asleep_over_a_batch_that_was_read_while_nobody_waited_for_it(
    read_ahead: ReadAhead, stream: LoaderStream, leases: Leases
) -> None:
    read_ahead.rest(awaited=False)
    read_ahead.load({STREAM: stream}, leases, time.monotonic())
    deadline = time.monotonic() + 30.0
    while read_ahead.rest(awaited=True):
        assert time.monotonic() < deadline, "no batch was ever read"


def test_a_batch_that_cannot_be_read_wakes_at_once(read_ahead: ReadAhead, stream: LoaderStream, leases: Leases) -> None:
    read_ahead.rest(awaited=False)
    for shard in stream.split.shards:
        os.truncate(shard, 0)
    read_ahead.load({STREAM: stream}, leases, time.monotonic())
    assert select.select([read_ahead.wake], [], [], 30.0)[0]
    errors = [loaded.error for loaded in read_ahead.loaded({STREAM: stream}) if loaded.error]
    assert errors
    assert "lies beyond the end of its shard" in str(errors[0])


def test_time_is_charged_once_though_results_come_out_of_order(
    read_ahead: ReadAhead, meter: StageMeter, stream: LoaderStream, leases: Leases
) -> None:
    everything(read_ahead, stream, leases)
    began = time.monotonic()
    read_ahead.account(began)
    before = meter.usage
    assert before.batches == BATCHES
    assert before.busy > 0.0
    read_ahead.account(began - 1.0)
    read_ahead.account(began)
    assert meter.usage == before


class Disk:
    """Reads of the store wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = os.preadv
        self._permits = threading.Semaphore(0)
        monkeypatch.setattr(os, "preadv", self._read)

    def give(self, batches: int) -> None:
        self._permits.release(batches * SPEC.batch_size)

    def _read(self, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        self._permits.acquire()
        return self._real(descriptor, list(buffers), offset)


def test_a_batch_of_a_stream_that_had_ended_was_taken_for_one_of_the_next_stream_of_its_name(
    meter: StageMeter, store: Store, stream: LoaderStream, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers were given slots that nothing had been read into."""
    disk = Disk(monkeypatch)
    read_ahead = ReadAhead(1, meter, batch_seconds=0.0)
    read_ahead.load({STREAM: stream}, leases, time.monotonic())
    leases.close(STREAM)
    leases.open(STREAM, start=0, end=BATCHES, window=BATCHES, rows=lambda _: 2)
    again = open_stream(store, SPEC, bytes(16), memory=1 << 20)
    read_ahead.load({STREAM: again}, leases, time.monotonic())
    found: list[Loaded] = []

    def read(batches: int) -> bool:
        found.extend(read_ahead.loaded({STREAM: again}))
        return meter.usage.batches == batches

    try:
        disk.give(BATCHES)
        eventually(lambda: read(BATCHES), "the batches of the stream that has ended")
        assert found == []
        assert again.reading == set(range(BATCHES))
        disk.give(BATCHES)
        eventually(lambda: read(2 * BATCHES), "those of the stream that is open")
        assert [loaded.seq for loaded in found] == list(range(BATCHES))
        assert again.reading == set()
    finally:
        disk.give(2 * BATCHES)
        read_ahead.close()
        again.arena.close()


@pytest.mark.parametrize(("batch_size", "rows_announced"), [(1, 2 * 1024 - 1), (2 * BATCHES, 8192)])
def test_a_window_of_65536_batches_kept_the_loader_from_all_else(
    store: Store, meter: StageMeter, monkeypatch: pytest.MonkeyPatch, batch_size: int, rows_announced: int
) -> None:
    """It announced all of them to the kernel at once: seconds, in which it heard nobody."""
    spec = dataclasses.replace(SPEC, batch_size=batch_size, window=65_536, epochs=65_536)
    stream = open_stream(store, spec, bytes(16), memory=1 << 30)
    leases = Leases(Timing(silence=5.0, hedge=1.0, missing=1.0))
    leases.open(STREAM, start=0, end=stream.end, window=spec.window, rows=lambda _: batch_size)
    announced: list[int] = []
    monkeypatch.setattr(Reader, "submit", lambda *_: None)
    monkeypatch.setattr(Reader, "prefetch", lambda _self, _split, indices: announced.append(len(indices)))
    read_ahead = ReadAhead(1, meter, batch_seconds=0.0)
    try:
        read_ahead.load({STREAM: stream}, leases, time.monotonic())
        assert len(stream.slotted) == 1024
        assert sum(announced) == rows_announced
    finally:
        read_ahead.close()
        stream.arena.close()
