"""``fourstage trainer --continue``: begin, go on, leave a finished run alone: what a container started again needs."""

import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage import locks
from fourstage.rundir import read_json
from tests.pipeline.harness import Services, complete_run, eventually, fourstage, services

RECIPE = ("--settings", "demo", "--set", "batch_size=24", "--set", "train.epochs=2", "--set", "train.drop_epochs=[]")


@pytest.fixture
def around(store: Path, tmp_path: Path) -> Iterator[Services]:
    # Slow enough that a signal comes in the middle.
    with services(store, tmp_path, 1, ["augmenter.batch_seconds=0.1"]) as running:
        yield running


def _begin(around: Services, run_dir: Path, *more: str) -> "subprocess.Popen[str]":
    where = ("--set", f"loader.address={around.address}", "--set", f"sockets={around.folder}")
    command = [sys.executable, "-m", "fourstage", "trainer", "--run-dir", str(run_dir), "--continue", *RECIPE, *where]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _train(around: Services, run_dir: Path, *more: str) -> tuple[int, str]:
    process = _begin(around, run_dir, *more)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def _interrupt(around: Services, run_dir: Path) -> None:
    """Begin, and stop in the middle as ``docker stop`` does."""
    process = _begin(around, run_dir)
    status = run_dir / "status.json"
    eventually(lambda: status.is_file() and read_json(status)["step"] > 3, "steps")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert read_json(run_dir / "summary.json")["state"] == "interrupted"


def test_it_begins_goes_on_and_leaves_a_finished_run_alone(store: Path, around: Services, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _interrupt(around, run_dir)
    code, said = _train(around, run_dir)
    assert code == 0, said
    assert "going on from step" in said
    undisturbed = complete_run(store, tmp_path / "other", "--recipe", *RECIPE[1:])
    assert read_json(run_dir / "summary.json")["receipt"]["digest"] == undisturbed["receipt"]["digest"]

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.rglob("*") if path.is_file()}
    code, said = _train(around, run_dir, "--set", "train.epochs=9")
    assert code == 0, said
    assert "is done" in said
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run_dir.rglob("*") if p.is_file()}


def test_changed_settings_are_named_and_another_run_is_refused(around: Services, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _interrupt(around, run_dir)
    settings = (run_dir / "settings.toml").read_text()
    code, said = _train(around, run_dir, "--set", "seed=7")
    assert code == 1
    assert "seed = 7, but the run began with 0" in said
    assert (run_dir / "settings.toml").read_text() == settings
    code, said = _train(around, run_dir, "--set", "train.epochs=3")
    assert code == 0, said
    assert "other than before: train.epochs = 3, was 2" in said
    assert said.count("other than before") == 1
    assert tomllib.loads((run_dir / "settings.toml").read_text())["train"]["epochs"] == 3


def test_a_second_trainer_wrote_its_settings_over_those_of_the_run(around: Services, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _interrupt(around, run_dir)
    settings = (run_dir / "settings.toml").read_text()
    with locks.held(run_dir, locks.ENGINE):
        code, said = _train(around, run_dir, "--set", "train.epochs=3")
    assert code == 2
    assert f"fourstage run looks after {run_dir}" in said
    with locks.held(run_dir, locks.TRAINER):
        process = _begin(around, run_dir, "--set", "train.epochs=3")
        assert process.stdout is not None
        assert any("another trainer still writes" in line for line in iter(process.stdout.readline, ""))
        assert (run_dir / "settings.toml").read_text() == settings
        assert (run_dir / "status.json").is_file()
        # What it writes in the end is not to be taken for what the next one says.
        (run_dir / "summary.json").write_text("{}")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "other than before: train.epochs = 3, was 2" in said
    assert read_json(run_dir / "summary.json")["state"] == "done"


def test_continue_and_resume_exclude_each_other(tmp_path: Path) -> None:
    done = fourstage("trainer", "--run-dir", str(tmp_path / "run"), "--continue", "--resume", *RECIPE)
    assert done.returncode == 2
    assert "leave --resume out" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_there_is_left_as_it_is(store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    done = fourstage("demo", "--only-store", "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert "train 240, val 48 images" in done.stderr.replace("\n", " ")
    assert before == {path: path.stat().st_mtime_ns for path in store.iterdir()}
