"""A run goes on, or ends with its own code and words, when nobody can read what it says or a file takes no more."""

import fcntl
import os
import resource
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourstage import rundir
from fourstage.trace import REQUEST, TRACE_FOLDER
from tests.pipeline.harness import CROP, Run, eventually, start_run

SLOWLY = [
    "--recipe",
    "drain",
    "--augmenters",
    "1",
    "--set",
    f"augmenter.crop={CROP}",
    "--set",
    "train.step_seconds=0.03",
]
RUN = [*SLOWLY, "--set", "batch_size=8", "--epochs", "4"]
STEPS = 4 * 30


def command(store: Path, run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "fourstage", "run", "--store", str(store), "--run-dir", str(run_dir), *RUN]


@contextmanager
def on_a_terminal(store: Path, run_dir: Path) -> Iterator[tuple[Run, int]]:
    """A run with a terminal of its own, and the terminal's other end."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command(store, run_dir), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, text=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0), env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Run(process, run_dir), ours
    finally:
        process.kill()
        process.wait()


def test_a_terminal_that_hung_up_made_an_internal_error_of_an_interrupt(store: Path, tmp_path: Path) -> None:
    with on_a_terminal(store, tmp_path / "run") as (run, terminal):
        os.set_blocking(terminal, False)

        def under_way() -> bool:
            with suppress(BlockingIOError):
                os.read(terminal, 1 << 16)
            return (run.run_dir / rundir.STATUS).is_file() and run.step() > 3

        eventually(under_way, "some steps", 60.0)
        os.close(terminal)
        assert run.process.wait(30) == 130
    assert rundir.read_json(run.run_dir / rundir.SUMMARY)["state"] == "interrupted"
    assert list((run.run_dir / "checkpoints").iterdir())


def test_a_reader_that_left_ended_the_run(store: Path, tmp_path: Path) -> None:
    """``fourstage run | head`` stopped the training with the first line that was too much, and said nothing."""
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(store, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 0, said
    assert rundir.read_json(run_dir / rundir.SUMMARY)["steps"] == STEPS


def test_a_full_disk_was_an_internal_error_once_the_last_lines_were_given_up(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *RUN)
    run.reach(3)
    now = (run.run_dir / rundir.STEPS).stat().st_size
    resource.prlimit(run.processes()["trainer"], resource.RLIMIT_FSIZE, (now + 1000, resource.RLIM_INFINITY))
    code, _, error = run.finish()
    assert code == 1
    assert "File too large" in error
    assert "internal error" not in error


def test_a_timeline_that_could_not_be_written_ended_the_training(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *RUN)
    run.reach(3)
    (run.run_dir / TRACE_FOLDER).mkdir()
    (run.run_dir / TRACE_FOLDER / "trainer.jsonl").symlink_to("/dev/full")
    rundir.write_json(run.run_dir / REQUEST, {"until": time.time() + 60.0}, durable=False)
    code, _, error = run.finish()
    assert code == 0, error
    log = (run.run_dir / "logs" / "trainer.log").read_text()
    assert "the timeline ends here, it cannot be written: " in log
    assert "No space left" in log
    assert not (run.run_dir / REQUEST).exists(), "whoever asked waits for it"


def test_a_process_without_standard_output_ended_with_a_traceback(tmp_path: Path) -> None:
    for closed in (1, 2):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -m fourstage --version {closed}>&-', sys.executable],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
    scale = [sys.executable, "-m", "fourstage", "scale", "2", "--run-dir", str(tmp_path), "--debug"]
    with Path("/dev/full").open("w") as full:
        wrong = subprocess.run(scale, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
    assert wrong.returncode == 2


def test_what_standard_output_did_not_take_was_lost_without_a_word(store: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for unbuffered in ({}, {"PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "fourstage", "verify", str(store)],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment | unbuffered,
            )  # fmt: skip
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_summary_that_a_full_disk_did_not_take_was_lost_without_a_word(store: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command(store, tmp_path / "run"), "--json", "--max-steps", "2"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write to standard output: No space left on device" in done.stderr
    assert rundir.is_done(tmp_path / "run")
