"""After a run, however it ended: no process, no socket, no memory, no file that is not the run's."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.pipeline.harness import CROP, Run, eventually, is_alive, start_run

ARGUMENTS = [
    "--recipe", "drain", "--augmenters", "2", "--epochs", "50", "--set", f"augmenter.crop={CROP}", "--set",
    "batch_size=16", "--set", "train.step_seconds=0.05",
]  # fmt: skip


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private folder for temporary files: whatever lies in it in the end was left behind."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def started(store: Path, run_dir: Path) -> tuple[Run, dict[str, int]]:
    run = start_run(store, run_dir, *ARGUMENTS)
    run.reach(5)
    return run, run.processes()


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_and_can_go_on(
    store: Path, tmp_path: Path, traces: Path, number: int
) -> None:
    before = shared_memory()
    run, processes = started(store, tmp_path / "run")
    run.process.send_signal(number)
    code, _, error = run.finish(30)
    assert code == 130, error
    assert not any(is_alive(pid) for pid in processes.values())
    assert list(traces.iterdir()) == []
    assert shared_memory() == before
    assert (tmp_path / "run" / "summary.json").is_file()


def test_children_leave_by_themselves_when_the_run_is_killed(store: Path, tmp_path: Path, traces: Path) -> None:
    before = shared_memory()
    run, processes = started(store, tmp_path / "run")
    run.process.kill()
    run.process.wait()
    eventually(lambda: not any(is_alive(pid) for pid in processes.values()), "the children's end")
    assert len(processes) == 4
    assert list(traces.iterdir()) == []
    assert shared_memory() == before


def test_a_second_interrupt_stops_at_once(store: Path, tmp_path: Path, traces: Path) -> None:
    run, processes = started(store, tmp_path / "run")
    os.kill(processes["trainer"], signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError):
        eventually(lambda: run.process.poll() is not None, "an end that cannot come: the trainer is frozen", 1.0)
    run.process.send_signal(signal.SIGINT)
    code, _, _ = run.finish(10)
    assert code == 130
    assert not any(is_alive(pid) for pid in processes.values())
    assert list(traces.iterdir()) == []


def is_told_to_end(pid: int) -> bool:
    """Whether a stopped process has a SIGTERM to hear once it goes on (proc(5), ShdPnd)."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = int(status.split("ShdPnd:")[1].split()[0], 16)
    return bool(pending & 1 << (signal.SIGTERM - 1))


def test_a_service_that_was_told_to_end_before_its_run_was_killed_left_the_sockets(
    store: Path, tmp_path: Path, traces: Path
) -> None:
    run, processes = started(store, tmp_path / "run")
    loader = processes["loader"]
    os.kill(loader, signal.SIGSTOP)
    run.process.terminate()
    eventually(lambda: is_told_to_end(loader), "the loader's turn to end")
    run.process.kill()
    run.process.communicate()
    os.kill(loader, signal.SIGCONT)
    eventually(lambda: not any(is_alive(pid) for pid in processes.values()), "the children's end")
    assert list(traces.iterdir()) == []
