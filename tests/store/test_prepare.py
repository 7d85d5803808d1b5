"""Same bytes for any number of workers and after any kill; nothing half-written; further splits."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import simplejpeg

from fourstage.errors import FourstageError, SettingsError, StoreError
from fourstage.store import open_store, writer
from fourstage.store.batches import Task, make_batches
from fourstage.store.prepare import prepare
from fourstage.store.progress import Progress
from fourstage.store.verify import verify
from tests.pipeline.harness import eventually
from tests.store.pictures import class_files, encoded, folder_bytes, pixels, tar_bytes, write_folder

SMALL_SHARDS = 100_000
SCRIPT = """
import sys
from fourstage.store.prepare import prepare

def stop_at(progress):
    if progress.done >= int(sys.argv[5]):
        print(progress.done, flush=True)
        sys.stdin.read()

if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], size=32, workers=int(sys.argv[3]), shard_bytes=int(sys.argv[4]), progress=stop_at)
"""
DEADLINE = 60.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = class_files({"ant": 150, "bee": 200, "cow": 1, "doe": 100})
    return write_folder(tmp_path_factory.mktemp("source"), files | {"bee/torn.jpg": b"\xff\xd8\xff"})


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("reference") / "store"
    report = prepare(source, store, size=32, workers=1, shard_bytes=SMALL_SHARDS)
    assert report.shards > 3
    assert (report.images, report.left_out, report.resumed) == (451, 1, 0)
    return folder_bytes(store)


def test_two_workers_make_the_same_bytes_as_one(source: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    prepare(source, tmp_path / "store", size=32, workers=2, shard_bytes=SMALL_SHARDS)
    assert folder_bytes(tmp_path / "store") == reference


def start(folder: Path, source: Path, store: Path, workers: int, stop: int) -> subprocess.Popen[str]:
    """A prepare in a process of its own, which says so and waits when it has dealt with ``stop`` images."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    arguments = [script, source, store, workers, SMALL_SHARDS, stop]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("workers", "stop"), [(1, 200), (2, 200), (2, 400), (1, 452)])
def test_killed_and_started_again_it_goes_on_to_the_same_bytes(
    workers: int, stop: int, source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with start(tmp_path, source, store, workers, stop) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= stop
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert len(children) >= workers - 1
    _, alive = psutil.wait_procs(children, timeout=DEADLINE)
    assert not alive, "workers outlive a prepare that was killed"
    with pytest.raises(StoreError, match="no finished store"):
        open_store(store)
    finished = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.glob("*.tar")}
    assert finished

    report = prepare(source, store, size=32, workers=2, shard_bytes=SMALL_SHARDS)

    assert report.resumed >= 64 * len(finished)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished
    assert folder_bytes(store) == reference


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for hundredths in range(20, 2000, 7):
        with start(tmp_path, source, store, 2, sys.maxsize) as process:
            try:
                process.wait(hundredths / 100)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
    assert folder_bytes(store) == reference


def test_an_unfinished_prepare_is_not_mixed_with_another(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def interrupt(progress: Progress) -> None:
        if progress.done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, store, size=32, workers=1, shard_bytes=SMALL_SHARDS, progress=interrupt)
    with pytest.raises(SettingsError, match=r"another size.*delete \S*/store to begin"):
        prepare(source, store, size=16, workers=1, shard_bytes=SMALL_SHARDS)
    with pytest.raises(StoreError, match="no finished store"):
        open_store(store)
    prepare(source, store, size=32, workers=1, shard_bytes=SMALL_SHARDS)
    assert verify(store).ok


def test_an_unfinished_prepare_was_mixed_with_pictures_of_the_same_names_from_another_folder(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first", class_files({"ant": 130}))
    other = write_folder(tmp_path / "other", class_files({"ant": 130}, seed=500))

    def interrupt(progress: Progress) -> None:
        if progress.done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(first, tmp_path / "store", size=16, workers=1, shard_bytes=1, progress=interrupt)
    with pytest.raises(SettingsError, match="another source"):
        prepare(other, tmp_path / "store", size=16, workers=1, shard_bytes=1)
    assert prepare(first, tmp_path / "store", size=16, workers=1, shard_bytes=1).resumed == 64


def test_progress_counts_every_image_and_byte(source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = prepare(source, tmp_path / "store", size=16, workers=1, progress=seen.append)
    assert [moment.done for moment in seen] == sorted(moment.done for moment in seen)
    assert seen[-1].done == seen[-1].total == 452
    assert seen[-1].left_out == 1
    assert report.bytes == (tmp_path / "store" / "train-000000.tar").stat().st_size


def test_statistics_are_those_of_the_stored_pixels(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "store", size=16, workers=2)
    store = open_store(tmp_path / "store")
    split = store.split("train")
    shard = split.shards[0].read_bytes()
    images = np.stack(
        [
            simplejpeg.decode_jpeg(shard[record["offset"] : record["offset"] + record["size"]], "RGB")
            for record in split.records
        ]
    ).astype(np.int64)
    statistics = store.statistics
    assert statistics.count == len(images)
    np.testing.assert_array_equal(statistics.pixel_sums, images.sum(axis=0))
    flat = images.reshape(-1, 3)
    np.testing.assert_array_equal(statistics.product_sums, flat.T @ flat)
    np.testing.assert_array_equal(statistics.mean, images.mean(axis=0).astype(np.float32))
    np.testing.assert_allclose(statistics.covariance, np.cov(flat.T, bias=True), rtol=1e-9)
    values, vectors = statistics.eigenvalues, statistics.eigenvectors
    assert values[0] >= values[1] >= values[2] > 0
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, statistics.covariance, atol=1e-8)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def test_a_further_split_keeps_the_classes_and_statistics(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare(source, store, size=32, workers=1)
    statistics = (store / "statistics.npz").read_bytes()
    val = write_folder(tmp_path / "val", class_files({"doe": 3, "bee": 2}, seed=900) | {"doe/bad.jpg": b""})
    report = prepare(val, store, split="val", size=32, workers=1)
    opened = open_store(store)
    assert list(opened.splits) == ["train", "val"]
    assert opened.split("val").labels(np.arange(5)).tolist() == [1, 1, 3, 3, 3]
    assert (report.images, report.left_out, report.classes) == (5, 1, 4)
    assert (store / "statistics.npz").read_bytes() == statistics
    assert (store / "left-out.jsonl").read_text().count("\n") == 2
    assert verify(store, decode=True).ok


def test_a_further_split_with_a_new_class_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare(source, store, size=32, workers=1)
    before = folder_bytes(store)
    val = write_folder(tmp_path / "val", class_files({"doe": 1, "zebra": 1}))
    with pytest.raises(SettingsError, match="'zebra'"):
        prepare(val, store, split="val", size=32, workers=1)
    assert folder_bytes(store) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train", "size": 32}, "already has the split"),
        ({"split": "val", "size": 64}, "have size 32"),
        ({"split": "val", "size": 32, "quality": 80}, "have quality 90"),
        ({"split": "../val", "size": 32}, "cannot be called"),
        ({"size": 0}, "size = 0"),
        ({"quality": 101}, "from 1 to 100"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(
    settings: dict[str, str | int], message: str, source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    prepare(write_folder(tmp_path / "few", class_files({"ant": 2})), store, size=32, workers=1)
    before = folder_bytes(store)
    with pytest.raises(SettingsError, match=message):
        prepare(source, store, **settings)  # type: ignore[arg-type]
    assert folder_bytes(store) == before


def test_validation_needs_the_training_split_first(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="training images first"):
        prepare(source, tmp_path / "store", split="val")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "full", "source/store"])
def test_a_destination_that_cannot_be_is_refused_untouched(place: str, tmp_path: Path) -> None:
    few = write_folder(tmp_path / "source", class_files({"ant": 2}))
    (tmp_path / "file").write_bytes(b"mine")
    write_folder(tmp_path / "full", {"thesis.tex": b"mine"})
    before = folder_bytes(tmp_path)
    with pytest.raises(SettingsError):
        prepare(few, tmp_path / place, workers=1)
    assert folder_bytes(tmp_path) == before


def test_a_second_prepare_into_the_same_store_is_refused(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with (store / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another prepare"):
            prepare(source, store, size=16, workers=1)
    assert prepare(source, store, size=16, workers=1).images == 451


def test_a_dead_worker_is_an_error_and_the_work_goes_on_later(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def murder(_: Progress) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(StoreError, match="worker process"):
        prepare(source, store, size=32, workers=2, shard_bytes=1, progress=murder)
    prepare(source, store, size=32, workers=1, shard_bytes=1)
    assert verify(store).ok


def test_a_full_disk_is_an_error_with_a_way_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FourstageError, match=r"No space left.*same command"):
            prepare(source, tmp_path / "store", size=16, workers=1)
    assert prepare(source, tmp_path / "store", size=16, workers=1).images == 451


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_between_a_shard_and_its_part_was_the_end_of_the_store(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, store = write_folder(tmp_path / "source", class_files({"ant": 2})), tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_part", Mock(side_effect=failure))
        with pytest.raises((FourstageError, KeyboardInterrupt)):
            prepare(few, store, size=16, workers=1)
    assert (store / "train-000000.tar").exists()
    assert prepare(few, store, size=16, workers=1).images == 2
    assert verify(store).ok
    assert not list(store.glob(".prepare-*"))


@pytest.mark.parametrize("name", ["plan", "000000.npz"])
@pytest.mark.parametrize("damage", ["bytes", "pipe"])
def test_unfinished_work_that_was_damaged_was_an_internal_error(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "source", class_files({"cat": 3}))
    with monkeypatch.context() as patched:
        patched.setattr("fourstage.store.prepare.assemble", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "store", size=16, workers=1)
    path = tmp_path / "store" / ".prepare-train" / name
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match=r"unfinished work is damaged, .*delete its folder"):
        prepare(source, tmp_path / "store", size=16, workers=1)
    shutil.rmtree(path.parent.parent)
    prepare(source, tmp_path / "store", size=16, workers=1)


def test_links_in_a_foreign_unfinished_store_were_written_through(tmp_path: Path) -> None:
    source = tmp_path / "source.tar.gz"
    source.write_bytes(tar_bytes(class_files({"ant": 2}), "w:gz"))
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    store, work = tmp_path / "store", tmp_path / "store" / ".prepare-train"
    work.mkdir(parents=True)
    in_store = ("store.json", "statistics.npz", "train.index", "left-out.jsonl", "train-000000.idx")
    for path in (
        *(store / f"{name}.tmp" for name in in_store),
        *(work / name for name in ("plan.tmp", "part.tmp", "shard.tar", "source.tar")),
    ):
        path.symlink_to(mine)
    prepare(source, store, size=16, workers=1)
    assert mine.read_bytes() == b"mine"
    assert verify(store).ok


@pytest.mark.parametrize("name", [".lock", ".prepare-train"])
def test_a_lock_or_folder_of_work_that_was_a_link_was_followed(name: str, tmp_path: Path) -> None:
    few, store = write_folder(tmp_path / "source", class_files({"ant": 2})), tmp_path / "store"
    elsewhere = tmp_path / "elsewhere"
    store.mkdir()
    if name == ".prepare-train":
        elsewhere.mkdir()
    (store / name).symlink_to(elsewhere)
    with pytest.raises(SettingsError, match="is a link"):
        prepare(few, store, size=16, workers=1)
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_quality_and_size_are_what_was_asked_for(tmp_path: Path) -> None:
    few = write_folder(tmp_path / "source", {"a/x.png": encoded(pixels(5, 200, 150), "PNG")})
    sizes = {}
    for quality in (50, 90):
        prepare(few, tmp_path / f"q{quality}", size=64, quality=quality, workers=1)
        store = open_store(tmp_path / f"q{quality}")
        record = store.split("train").records[0]
        jpeg = store.split("train").shards[0].read_bytes()[record["offset"] :][: record["size"]]
        assert simplejpeg.decode_jpeg_header(jpeg)[:2] == (64, 64)
        assert simplejpeg.decode_jpeg_header(jpeg)[3] == "420"
        sizes[quality] = len(jpeg)
    assert sizes[50] < sizes[90]


def test_an_interrupt_amid_the_start_of_the_workers_was_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.process._ExecutorManagerThread.start", interrupted)
    task = Task(images=(), labels=(), size=8, quality=90, max_pixels=1 << 20, with_sums=False)
    with pytest.raises(KeyboardInterrupt):
        list(make_batches([task], workers=2))
    eventually(lambda: not multiprocessing.active_children(), "the end of the workers")
