"""The number of augmenters changes while a run goes on: by hand, or by what the trainer needs."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.harness import CROP, Run, complete_run, eventually, fourstage, is_alive, page_metric, start_run
from tests.pipeline.test_nothing_left import shared_memory, traces

__all__ = ["traces"]

DRAIN = [
    "--recipe", "drain", "--epochs", "100", "--set", f"augmenter.crop={CROP}", "--set", "batch_size=16",
    "--receipt", "pixels",
]  # fmt: skip
STEPS = 150
WORK = [*DRAIN, "--max-steps", str(STEPS), "--set", "augmenter.batch_seconds=0.15", "--set", "train.step_seconds=0.05"]
"""One augmenter makes 7 batches a second, the trainer takes 20."""


def interrupt(run: Run) -> str:
    """What the run said until it was interrupted."""
    run.process.send_signal(signal.SIGINT)
    code, _, error = run.finish(30)
    assert code == 130, error
    return error


def augmenters(run: Run) -> list[str]:
    """Those that run, leaving ones included, by name."""
    return sorted(name for name in run.processes() if name.startswith("augmenter-"))


def scale(run: Run, number: str) -> None:
    done = fourstage("scale", number, "--run-dir", str(run.run_dir))
    assert done.returncode == 0, done.stderr


def batches(run: Run, name: str) -> float:
    """What an augmenter's own page says that it has made."""
    entry = json.loads((run.run_dir / "processes.json").read_text()).get(name, {})
    return page_metric(entry["metrics"], "fourstage_batches_total", stage="transform") if "metrics" in entry else 0.0


def test_scaled_up_and_down_while_it_runs_with_the_same_bytes(store: Path, tmp_path: Path, traces: Path) -> None:
    plain = complete_run(store, tmp_path / "plain", *DRAIN, "--max-steps", str(STEPS), "--augmenters", "1")
    before = shared_memory()
    run = start_run(store, tmp_path / "run", *WORK, "--augmenters", "1")
    run.reach(5)
    scale(run, "4")
    eventually(lambda: augmenters(run) == [f"augmenter-{number}" for number in range(4)], "four augmenters", 5.0)
    new = [f"augmenter-{number}" for number in (1, 2, 3)]
    eventually(lambda: all(batches(run, name) >= 3 for name in new), "load on the new ones", 10.0)
    eventually(lambda: run.status().get("augmenters") == 4, "a status with all of them", 5.0)
    pids = run.processes()
    scale(run, "2")
    eventually(lambda: augmenters(run) == ["augmenter-0", "augmenter-1"], "two augmenters", 10.0)
    assert not is_alive(pids["augmenter-2"])
    assert not is_alive(pids["augmenter-3"])
    assert run.process.poll() is None
    pids = run.processes()
    code, out, error = run.finish()
    assert code == 0, error
    assert "augmenters 1 -> 4: asked by hand" in error
    assert "augmenters 4 -> 2: asked by hand" in error
    summary = json.loads(out)
    assert summary["receipt"]["digest"] == plain["receipt"]["digest"]
    assert summary["receipt"]["delivered"] == plain["receipt"]["delivered"]
    # Whoever leaves finishes the batch in work and gives back the leases that it had not begun: two at most.
    assert summary["receipt"]["redispatched"] <= 4
    words = (run.run_dir / "logs" / "loader.log").read_text()
    assert len(re.findall(r"augmenter-[23]@\S+ left", words)) == 2
    assert "is gone" not in words
    assert not any(is_alive(pid) for pid in pids.values())
    assert list(traces.iterdir()) == []
    assert shared_memory() == before
    assert not (run.run_dir / "scale.json").exists()


@pytest.mark.slow
def test_a_frozen_one_is_killed_and_does_not_hold_up_who_comes_next(store: Path, tmp_path: Path) -> None:
    long = ["--set", "loader.silence_seconds=2.0", "--max-steps", "1000"]
    run = start_run(store, tmp_path / "run", *WORK, *long, "--augmenters", "2")
    run.reach(5)
    frozen = run.processes()["augmenter-1"]
    os.kill(frozen, signal.SIGSTOP)
    scale(run, "1")
    entry = eventually(lambda: leaving(run, "augmenter-1"), "the list says that it leaves", 5.0)
    assert entry["pid"] == frozen
    # Its name is taken until it has gone.
    scale(run, "3")
    there = ["augmenter-0", "augmenter-1", "augmenter-2", "augmenter-3"]
    eventually(lambda: augmenters(run) == there, "two new ones beside it", 5.0)
    eventually(lambda: not is_alive(frozen), "its end", 20.0)
    eventually(lambda: augmenters(run) == [there[0], *there[2:]], "the rest", 5.0)
    assert "started again" not in interrupt(run)


def leaving(run: Run, name: str) -> dict[str, Any]:
    entry = json.loads((run.run_dir / "processes.json").read_text()).get(name, {})
    return entry if entry.get("leaving") else {}


@pytest.mark.slow
def test_one_that_is_killed_after_scaling_is_started_again(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *WORK, "--augmenters", "1")
    run.reach(5)
    scale(run, "2")
    eventually(lambda: batches(run, "augmenter-1") >= 1, "load on the new one", 10.0)
    run.kill("augmenter-1")
    eventually(lambda: run.processes().get("augmenter-1", 0) not in {0, *run.killed}, "a new one of that name", 5.0)
    assert "augmenter-1 was killed by SIGKILL: started again" in interrupt(run)


def test_scaling_is_refused_where_it_cannot_work(store: Path, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    complete_run(store, ended, *DRAIN, "--max-steps", "2", "--augmenters", "1")
    run = start_run(store, tmp_path / "run", *WORK, "--augmenters", "1")
    run.reach(1)
    for arguments, words in (
        (("3", "--run-dir", str(tmp_path / "none")), "holds no run"),
        (("3", "--run-dir", str(ended)), "is over: done"),
        (("0", "--run-dir", str(run.run_dir)), "1 to 1024, or auto"),
        (("some", "--run-dir", str(run.run_dir)), "scale 'some'"),
        (("3",), "--run-dir"),
    ):
        done = fourstage("scale", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    # Nor can a second engine take the run over.
    twice = fourstage("run", "--store", str(store), "--run-dir", str(run.run_dir), "--resume")
    assert twice.returncode == 2
    assert "goes on already" in twice.stderr
    assert augmenters(run) == ["augmenter-0"]
    run.process.kill()
    run.process.wait()
    done = fourstage("scale", "3", "--run-dir", str(run.run_dir))
    assert done.returncode == 2
    # Its trainer leaves by itself, and says so if it comes to it.
    assert "no fourstage run looks after" in done.stderr or "is over: interrupted" in done.stderr
    assert not (run.run_dir / "scale.json").exists()


AUTO = [*DRAIN, "--augmenters", "auto:1", "--set", "augmenter.batch_seconds=0.3", "--set", "train.step_seconds=0.1"]
"""Three augmenters just feed it."""


@contextmanager
def told(run: Run) -> Iterator[Callable[[], list[str]]]:
    """The lines of the run's log about augmenters so far; the run is interrupted in the end."""
    lines: list[str] = []

    def read() -> None:
        assert run.process.stderr is not None
        lines.extend(run.process.stderr)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield lambda: [line.split(" INFO ")[1].strip() for line in list(lines) if " run INFO augmenters " in line]
    finally:
        run.process.send_signal(signal.SIGINT)
        thread.join()
        assert run.process.stdout is not None
        run.process.stdout.close()
        assert run.process.stderr is not None
        run.process.stderr.close()
        assert run.process.wait(30) == 130


def changes(words: list[str]) -> list[str]:
    return [line.removeprefix("augmenters ").partition(":")[0] for line in words]


@pytest.mark.slow
def test_auto_reaches_what_the_trainer_needs_and_a_number_by_hand_ends_it(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *AUTO)
    with told(run) as words:
        run.reach(1)
        eventually(lambda: run.status().get("augmenters", 0) == 3, "three augmenters", 30.0)
        assert changes(words()) == ["1 -> 2", "2 -> 3"]
        assert all("the trainer waits" in line and "3 would feed it" in line for line in words())
        scale(run, "1")
        eventually(lambda: run.status().get("augmenters", 0) == 1, "one augmenter", 10.0)
        assert words()[2:] == ["augmenters 3 -> 1: asked by hand"]


@pytest.mark.slow
def test_auto_stays_where_it_is_right_and_begins_again_when_asked(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *AUTO)
    with told(run) as words:
        run.reach(1)
        eventually(lambda: run.status().get("augmenters", 0) == 3, "three augmenters", 30.0)
        stays = time.monotonic() + 45.0
        while time.monotonic() < stays:
            assert run.status().get("augmenters", 3) == 3
            time.sleep(0.2)
        assert changes(words()) == ["1 -> 2", "2 -> 3"]
        scale(run, "6")
        eventually(lambda: run.status().get("augmenters", 0) == 6, "six augmenters", 10.0)
        scale(run, "auto")
        eventually(lambda: run.status().get("augmenters", 0) < 6, "fewer augmenters", 60.0)
        assert changes(words()) == ["1 -> 2", "2 -> 3", "3 -> 6", "6", "6 -> 4"]
