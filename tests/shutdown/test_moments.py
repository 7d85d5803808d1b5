"""A run stopped at any moment leaves nothing and ends as documented; ``python -m tests.shutdown`` tries a hundred."""

import os
import signal
import time
from pathlib import Path

import pytest

from fourstage import rundir
from fourstage.trainer import saved
from tests.pipeline.harness import eventually, is_alive, lines, losses, start_run
from tests.shutdown.moments import ARGUMENTS, KINDS, PHASES, Moment, World, attempt
from tests.shutdown.traces import Command


def moment(phase: str, kind: str, delay: float = 0.0, *, gap: float = 0.0, resume: bool = False) -> Moment:
    return Moment(PHASES.index(phase), phase, kind, delay, gap, step=3, resume=resume)


@pytest.mark.parametrize(
    "when",
    [
        moment("opening", "INT"),
        moment("training", "INT", resume=True),
        moment("validating", "INT INT"),
        moment("first batch", "KILL"),
    ],
    ids=lambda when: f"{when.phase}-{when.kind}".replace(" ", "-"),
)
def test_a_run_that_is_stopped_leaves_nothing(world: World, when: Moment) -> None:
    assert attempt(world, when).complaints == ()


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_in_any_state_leaves_nothing_and_goes_on(world: World, phase: str, kind: str) -> None:
    assert attempt(world, moment(phase, kind, 0.05, gap=0.05, resume=True)).complaints == ()


def test_moments_are_drawn_from_their_seed_and_every_phase_comes() -> None:
    drawn = [Moment.draw(1, number) for number in range(len(PHASES))]
    assert drawn == [Moment.draw(1, number) for number in range(len(PHASES))]
    assert [each.phase for each in drawn] == list(PHASES)
    assert drawn != [Moment.draw(2, number) for number in range(len(PHASES))]


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    """A check that cannot fail proves nothing: a process, a file and a socket that stay are named."""
    program = (
        "import os, socket, subprocess, sys, tempfile\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "made = socket.socket(socket.AF_UNIX); made.bind(tempfile.mkdtemp() + '/socket')\n"
    )
    command = Command(["-c", program], tmp_path / "command")
    try:
        assert command.end(30.0) == 0
        left = command.left(patience=0.5)
    finally:
        command.kill()
    assert {line.split()[0] for line in left} == {"process", "file"}


@pytest.mark.slow
def test_a_validation_that_was_interrupted_is_made_up_for(world: World, tmp_path: Path) -> None:
    """It decided nothing and was never made again: a plateau was then found in another epoch than without Ctrl-C."""
    arguments = [
        *ARGUMENTS, "--set", "train.drop_epochs=[]", "--set", "train.schedule=plateau", "--set", "train.patience=1",
        "--set", "validation_batch=1", "--set", "window=2",
    ]  # fmt: skip
    undisturbed = start_run(world.store, tmp_path / "undisturbed", *arguments)
    assert undisturbed.finish()[0] == 0
    run = start_run(world.store, tmp_path / "run", *arguments)
    eventually(lambda: run.status().get("state") == "validating", "a validation", 60.0)
    frozen = [pid for name, pid in run.processes().items() if name.startswith("augmenter")]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    eventually((run.run_dir / rundir.SUMMARY).is_file, "the summary", 60.0)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert run.finish()[0] == 130
    checkpoint = saved.latest(run.run_dir)
    assert checkpoint is not None
    assert checkpoint.state.unvalidated, "the validation was over before the interrupt"
    assert not rundir.read_lines(run.run_dir / rundir.EPOCHS)[checkpoint.state.epoch - 1 :]
    code, _, error = start_run(world.store, run.run_dir, *arguments, "--resume").finish()
    assert code == 0, error
    assert losses(run.run_dir) == losses(undisturbed.run_dir)
    for name in (rundir.EPOCHS, rundir.STEPS):
        pairs = zip(lines(run.run_dir / name), lines(undisturbed.run_dir / name), strict=True)
        for mine, theirs in pairs:
            for key in ("epoch", "step", "val", "learning_rate"):
                assert mine.get(key) == theirs.get(key)


def test_a_resume_with_other_settings_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    """``settings.toml`` was overwritten first: the next --resume, without any settings, was refused as well."""
    run = start_run(world.store, tmp_path / "run", *ARGUMENTS, "--max-steps", "3")
    assert run.finish()[0] == 0
    before = {path: path.read_bytes() for path in run.run_dir.iterdir() if path.is_file()}
    code, _, error = start_run(world.store, run.run_dir, *ARGUMENTS, "--resume", "--seed", "9").finish()
    assert code == 1
    assert "seed = 9, but the run began with 0" in error
    assert before == {path: path.read_bytes() for path in run.run_dir.iterdir() if path.is_file()}
    code, _, error = start_run(world.store, run.run_dir, "--resume", "--max-steps", "4").finish()
    assert code == 0, error


@pytest.mark.slow
def test_several_trainers_leave_nothing_in_the_folder_of_temporary_files(world: World, short: Path) -> None:
    """torchrun's own folder of logs, /tmp/torchelastic_…, was left by every run of several trainers."""
    where = ["--store", str(world.store), "--run-dir", str(short / "run")]
    arguments = [*ARGUMENTS, "--parallel", "data", "--max-steps", "4"]
    command = Command(["-m", "fourstage", "run", *where, "--json", *arguments], short / "command")
    try:
        assert command.end(180.0) == 0, command.said
        # PyTorch keeps the cache of its compiler there for every later process of this user.
        assert [line for line in command.left() if "torchinductor_" not in line] == []
    finally:
        command.kill()


def test_a_closed_terminal_is_one_interrupt_however_often_it_says_so(world: World, tmp_path: Path) -> None:
    """SIGHUP killed the engine: its run was left to the orphans, without a summary."""
    run = start_run(world.store, tmp_path / "run", *ARGUMENTS)
    run.reach(3)
    for _ in range(3):
        run.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    pids = run.processes().values()
    code, _, error = run.finish(60)
    assert code == 130, error
    assert rundir.read_json(run.run_dir / rundir.SUMMARY)["state"] == "interrupted"
    assert not any(is_alive(pid) for pid in pids)
