"""The peers' benchmark: what needs none of the peers."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from benchmarks.peers import install
from benchmarks.peers.__main__ import measure
from benchmarks.peers.export import export_images
from benchmarks.peers.stream import BATCH, SLACK, Plan, cpu_seconds
from benchmarks.peers.systems import SYSTEMS, NotMeasuredError, Work, run_program
from benchmarks.peers.table import Measurement, rendered, rotated, rows

from tests.pipeline.harness import eventually, is_alive


def work(store: Path, folder: Path) -> Work:
    return Work(store=store, files=folder, size=40, workers=1, images=256, environments=folder / "environments")


def test_the_exported_files_are_the_stores_jpegs_byte_for_byte(store: Path, tmp_path: Path) -> None:
    assert export_images(store, tmp_path) == 40
    packed = []
    for shard in sorted(store.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".jpg"):
                    file = archive.extractfile(member)
                    assert file is not None
                    packed.append(file.read())
    assert len(packed) == 256
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.jpg")) == sorted(packed)


def test_the_order_offers_every_file_once_an_epoch_and_more_than_is_measured(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:07d}.jpg").touch()
    order = Plan("any", tmp_path, size=40, workers=1, warm_up=2, batches=3).order()
    assert len(order) == (2 + 3 + SLACK) * BATCH
    epochs = [order[start : start + 100] for start in range(0, len(order) // 100 * 100, 100)]
    assert all(len(set(epoch)) == 100 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_every_system_comes_first_once() -> None:
    assert [rotated(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_the_table_has_medians_spreads_and_ratios_fastest_first() -> None:
    def rounds(*seconds: float) -> list[Measurement]:
        return [Measurement(images=1000, seconds=one, cpu_seconds=2 * one) for one in seconds]

    table = rows({"slow": rounds(1.0, 0.5, 2.0), "raw": rounds(0.2, 0.25, 0.125), "fourstage": rounds(0.25, 0.5)})
    assert [row.name for row in table] == ["raw", "fourstage", "slow"]
    raw, fourstage, slow = table
    assert (slow.rate, slow.least, slow.most) == (1000, 500, 2000)
    assert slow.cpu_microseconds == pytest.approx(2000)
    assert slow.of_raw == pytest.approx(0.2)
    assert slow.of_fourstage == pytest.approx(1 / 3)
    assert fourstage.rate == 3000
    assert fourstage.of_raw == pytest.approx(0.6)
    assert fourstage.of_fourstage == 1
    assert raw.of_raw == 1
    lines = rendered(table, {"raw": "the decoder", "fourstage": "us", "slow": "them"}).splitlines()
    assert lines[-1] == "| them (`slow`) | 1,000 | 500 to 2,000 | 0.20 | 0.33 | 2000 |"


def test_what_was_not_measured_is_left_empty() -> None:
    (row,) = rows({"spdl": [Measurement(1000, 1.0, None)]})
    assert (row.of_raw, row.of_fourstage) == (None, None)
    assert "| 1,000 to 1,000 |  |  |  |" in rendered([row], {"spdl": "SPDL"})


def test_a_peer_that_is_missing_is_named_with_the_fix_and_left_out(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds, failures, _ = measure(work(store, tmp_path), ["spdl", "raw"], count=2)
    assert len(rounds["raw"]) == 2
    assert all(one.rate > 0 for one in rounds["raw"])
    assert failures == {"spdl": "not installed: python -m benchmarks.peers install"}
    assert "spdl is left out: not installed" in capsys.readouterr().err


def test_why_a_peer_was_not_installed_is_said_again_when_measuring(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "PACKAGES", {"ffcv": ("ffcv",)})
    # No compiler, no pkg-config.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.install(tmp_path / "environments", None) == 0
    with pytest.raises(NotMeasuredError, match=r"pkg-config, g\+\+ missing; on Debian: apt-get install"):
        SYSTEMS["ffcv"].measure(work(store, tmp_path))


def test_only_when_nothing_was_measured_does_the_command_fail(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--store", str(store), "--rounds", "1", "--images", "256",
               "--into", str(tmp_path), "--only"]  # fmt: skip
    missing = subprocess.run([*command, "spdl"], check=False, capture_output=True, text=True)
    assert (missing.returncode, "spdl is left out: not installed" in missing.stderr) == (1, True)
    some = subprocess.run(
        [*command, "spdl,raw", "--json", str(tmp_path / "figures")], check=False, capture_output=True, text=True
    )
    assert some.returncode == 0
    assert "(`raw`)" in some.stdout
    assert '"spdl": "not installed' in (tmp_path / "figures").read_text()


def test_a_program_that_fails_is_quoted_and_takes_its_children_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "sys.exit('no such decoder')\n"
    )
    with pytest.raises(NotMeasuredError, match="exit 1: no such decoder"):
        run_program([sys.executable, "-c", program], patience=60)
    child = int(note.read_text())
    eventually(lambda: not is_alive(child), "the end of the program's child")


def test_processor_time_includes_children_alive_and_dead() -> None:
    spin = "import time\nwhile time.process_time() < 0.5: pass\n"
    before = cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert cpu_seconds(os.getpid()) - before >= 0.4
    alive = subprocess.Popen(
        [sys.executable, "-c", spin + "print(flush=True)\ninput()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with alive:
        assert alive.stdout is not None
        alive.stdout.readline()
        assert cpu_seconds(os.getpid()) - before >= 0.8
        alive.kill()
