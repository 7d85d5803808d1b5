"""The command as a shell sees it, on a small store: figures, words, refusals, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.probe.residency import Residency
from fourstage.store import open_store
from tests.pipeline.harness import CROP, SIZE, eventually, fourstage, is_alive
from tests.store.pictures import folder_bytes

SMALL = ("--set", f"augmenter.crop={CROP}", "--set", "batch_size=16")

pytestmark = pytest.mark.slow


def run(store: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return fourstage("probe", "--store", str(store), "--seconds", "2", *SMALL, *arguments)


def figures(values: Any) -> Iterator[float]:
    """Every number in some JSON."""
    if isinstance(values, dict):
        for value in values.values():
            yield from figures(value)
    elif isinstance(values, list):
        for value in values:
            yield from figures(value)
    elif isinstance(values, int | float):
        yield float(values)


def test_a_short_run_measures_everything_and_never_writes_to_the_store(store: Path) -> None:
    before = folder_bytes(store)
    done = run(store, "--json", "--rate", "5000")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    measured = report["measured"]
    for name in ("image_seconds", "decode_seconds", "together", "first_touch", "copy", "loopback"):
        assert 0.0 < measured[name]["low"] <= measured[name]["median"] <= measured[name]["high"], name
    for name in ("cold", "warm"):
        assert measured[name]["rate"]["low"] > 0.0
        assert measured[name]["cpu_seconds"] > 0.0
        assert 0.0 <= measured[name]["resident"] <= 1.0
    assert 0.0 < measured["decode_share"] <= 1.0
    assert 0.0 < measured["image_cpu_seconds"] < 0.1
    assert measured["cores"] >= 1
    assert measured["available_bytes"] > 1 << 20
    assert measured["work"]["images"] == 60
    # Three slots of 16 crops, in whole pages.
    assert measured["work"]["arena_bytes"] == 3 * -(-16 * 3 * CROP * CROP // 4096) * 4096
    assert all(np.isfinite(value) for value in figures(report))
    assert [need["rate"] for need in report["needs"]] == [5000.0]
    assert report["needs"][0]["augmenters"] >= 1
    assert {limit["name"] for limit in report["limits"]} == {
        "cores", "disk", "page cache", "memory", "loopback", "network",
    }  # fmt: skip
    assert report["first"]["rate"] == min(limit["rate"] for limit in report["limits"] if limit["counts"])
    assert "To feed 5,000 images/s take" in report["words"]
    assert folder_bytes(store) == before


def test_the_words_name_the_augmenters_and_the_table_the_limits(store: Path) -> None:
    done = run(store)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert f"images/s of {CROP}x{CROP}" in told
    assert "To feed 1,000 images/s take 1 augmenter (" in told
    assert "First to give out: " in told
    for name in ("transform, one core", "reading, cold", "reading, page cache", "loopback, inline", "network"):
        assert name in told


def test_in_memory_the_disk_is_not_known(store: Path) -> None:
    if "tmpfs" not in subprocess.run(["stat", "-f", "-c", "%T", "/dev/shm"], capture_output=True, text=True).stdout:
        pytest.skip("/dev/shm is no tmpfs here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy = shutil.copytree(store, Path(folder) / "store")
        split = open_store(copy).split("train")
        with Residency(split) as residency:
            assert residency.forget(np.arange(len(split))) == 1.0
        report = json.loads(run(copy, "--json").stdout)
    assert not report["cold_is_cold"]
    assert any("says nothing of the disk" in warning for warning in report["warnings"])
    assert not next(limit for limit in report["limits"] if limit["name"] == "disk")["counts"]


def test_only_the_samples_asked_for_leave_the_page_cache(store: Path) -> None:
    split = open_store(store).split("train")
    every, some = np.arange(len(split)), np.arange(5)
    for shard in split.shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
    with Residency(split) as residency:
        if residency.forget(every) == 1.0:
            pytest.skip("this file system keeps its pages in memory")
        assert residency.share(every) == 0.0
        files, into = ShardFiles(), memoryview(bytearray(int(split.records["size"].sum())))
        read_batch(files, ReadJob((b"", 0, 0), split, every, into))
        files.close()
        assert residency.share(every) == 1.0
        assert residency.forget(some) == 0.0
        assert residency.share(every) > 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "0"), "--rate 0; images per second"),
        (("--rate", "nan"), "--rate nan; images per second"),
        (("--rate", "-3"), "--rate -3; images per second"),
        (("--seconds", "0.5"), "--seconds 0.5; from 1 to 3600"),
        (("--recipe", "alexnett"), "there is no recipe 'alexnett'"),
        (("--set", f"augmenter.crop={SIZE + 1}"), f"is larger than the store's images of {SIZE}x{SIZE}; --set"),
        (("--set", "train_split=test"), "has no split 'test', only train"),
        (("--set", "augmenter.memory=4096"), "augmenter.memory = 4096 is too small"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(store: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(store, *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_without_a_store_nothing_is_started(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.returncode == 1
    assert str(tmp_path / "nothing") in done.stderr


def test_a_sample_that_cannot_be_decoded_is_named(store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    for shard in copy.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[600] ^= 1
        shard.write_bytes(data)
    done = run(copy)
    assert done.returncode == 1
    assert "was altered" in done.stderr
    assert "fourstage verify" in done.stderr


@contextmanager
def measuring(store: Path) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """A probe whose processes are at work, and their ids."""
    command = [sys.executable, "-m", "fourstage", "probe", "--store", str(store), "--seconds", "60", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            at_work = eventually(
                lambda: [
                    child.pid for child in psutil.Process(process.pid).children() if sum(child.cpu_times()[:2]) > 0.5
                ],
                "a process that measures",
            )
            yield process, at_work
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_leaves_no_process(store: Path, number: signal.Signals) -> None:
    with measuring(store) as (process, children):
        process.send_signal(number)
        code = process.wait(timeout=20)
        assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
        eventually(lambda: not any(is_alive(pid) for pid in children), "the end of the measuring processes")
