"""Several trainers of one network: the same losses, the same receipt, whoever dies, and on to any other number."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fourstage.store.prepare import prepare
from tests.pipeline.harness import (
    Run,
    complete_run,
    eventually,
    is_alive,
    losses,
    services,
    start_run,
    write_photographs,
)

CROP, BATCH = 67, 19
"""The smallest crop that AlexNet takes. 39 samples in batches of 19 leave a remainder of 1: of three shares two are
empty."""
STEPS = 10
EXACT, ROUNDED = 1e-10, 1e-4
NETWORK = [
    "--recipe", "alexnet", "--receipt", "pixels", "--epochs", "5", "--seed", "3", "--device", "cpu",
    "--augmenters", "1", "--set", f"augmenter.crop={CROP}", "--set", f"batch_size={BATCH}",
    "--set", "train.keep_checkpoints=1",
]  # fmt: skip
DOUBLE = ["--set", "train.precision=float64"]
NARROW = ["--set", 'model.without=["fc7"]']
"""Without fc7 a checkpoint is a third as large; dropout of fc6 stays."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 training and 7 validation images of three classes, 72x72."""
    folder = tmp_path_factory.mktemp("ranks")
    write_photographs(folder, "train", 13)
    write_photographs(folder, "val", 2)
    (folder / "val" / "dash" / "extra.jpg").write_bytes((folder / "train" / "dash" / "000.jpg").read_bytes())
    path = folder / "store"
    prepare(folder / "train", path, size=72, workers=1)
    prepare(folder / "val", path, split="val", size=72, workers=1)
    return path


@pytest.fixture(scope="module")
def alone(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One trainer, float64."""
    return outcome(photographs, tmp_path_factory.mktemp("alone") / "run", *NARROW, *DOUBLE, "--max-steps", str(STEPS))


def outcome(store: Path, run_dir: Path, *arguments: str) -> dict[str, Any]:
    summary = complete_run(store, run_dir, *NETWORK, *arguments)
    return {"losses": losses(run_dir), "digest": summary["receipt"]["digest"], "final": summary["final"]}


def check_equal(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """The same batches to the last byte, the same training but for rounding."""
    assert found["digest"] == expected["digest"]
    assert len(found["losses"]) == len(expected["losses"])
    for step, (mine, theirs) in enumerate(zip(found["losses"], expected["losses"], strict=True), 1):
        assert math.isclose(mine, theirs, rel_tol=tolerance), f"step {step}: {mine} and {theirs}"
    assert math.isclose(found["final"]["loss"], expected["final"]["loss"], rel_tol=10 * tolerance)
    assert found["final"]["top1_error"] == expected["final"]["top1_error"]


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(["--parallel", "columns"], id="columns"),
        pytest.param(["--parallel", "data", "--set", "replicas=3"], id="three-shares"),
        pytest.param(["--parallel", "data", "--set", "replicas=2"], id="two-shares", marks=pytest.mark.slow),
        pytest.param(["--parallel", "columns", "--set", "replicas=2"], id="two-by-two", marks=pytest.mark.slow),
        pytest.param(["--parallel", "columns", "--transport", "inline"], id="inline", marks=pytest.mark.slow),
    ],
)
def test_ten_steps_of_training_equal_those_of_one_process(
    photographs: Path, tmp_path: Path, alone: dict[str, Any], group: list[str]
) -> None:
    found = outcome(photographs, tmp_path / "run", *NARROW, *DOUBLE, "--max-steps", str(STEPS), *group)
    check_equal(found, alone, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["columns", "data"])
def test_ten_steps_in_float32_of_the_whole_network(photographs: Path, tmp_path: Path, mode: str) -> None:
    expected = outcome(photographs, tmp_path / "alone", "--max-steps", str(STEPS))
    found = outcome(photographs, tmp_path / mode, "--max-steps", str(STEPS), "--parallel", mode)
    check_equal(found, expected, ROUNDED)


MODES = {
    "none": ["--parallel", "none"],
    "columns": ["--parallel", "columns"],
    "data": ["--parallel", "data", "--set", "replicas=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("columns", "none"), ("none", "columns"), ("data", "columns")])
def test_a_checkpoint_goes_on_in_any_mode(
    photographs: Path, tmp_path: Path, alone: dict[str, Any], before: str, after: str
) -> None:
    run_dir = tmp_path / "run"
    outcome(photographs, run_dir, *NARROW, *DOUBLE, "--max-steps", "4", *MODES[before])
    found = outcome(photographs, run_dir, *NARROW, *DOUBLE, "--max-steps", str(STEPS), *MODES[after], "--resume")
    check_equal(found, alone, EXACT)


SLOW_STEPS = ["--set", "augmenter.batch_seconds=0.3"]
"""So that a step, and a kill, take their time."""


COLUMN = {"trainer-0": "first", "trainer-1": "second"}


def pids(run: Run) -> set[int]:
    """Every process of a run."""
    family = psutil.Process(run.process.pid)
    return {family.pid, *(child.pid for child in family.children(recursive=True))}


@pytest.mark.parametrize(
    ("mode", "victim", "step"),
    [("columns", "trainer-1", 3), pytest.param("columns", "trainer-0", 5, marks=pytest.mark.slow),
     pytest.param("data", "trainer-2", 4, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_killed_trainer_ends_the_run_with_the_reason_and_resume_gives_the_same_losses(
    photographs: Path, tmp_path: Path, alone: dict[str, Any], mode: str, victim: str, step: int
) -> None:
    run_dir = tmp_path / "run"
    arguments = [*NETWORK, *NARROW, *DOUBLE, "--max-steps", str(STEPS), *MODES[mode]]
    run = start_run(photographs, run_dir, *arguments, *SLOW_STEPS, "--set", "train.checkpoint_seconds=0.5")
    run.reach(step)
    family = pids(run)
    killed_at = time.monotonic()
    run.kill(victim)
    code, _, error = run.finish()
    eventually(lambda: not any(is_alive(pid) for pid in family), "every process gone", 5.0)
    seconds = time.monotonic() - killed_at
    assert code == 1
    # Whoever notices first says it: the watch by its number, the relay between two columns by its column.
    assert re.search(rf"trainer ({victim[-1]} of|of the {COLUMN.get(victim)} column).*is gone", error), error
    assert "--resume" in error
    assert seconds < 15.0, f"gone after {seconds:.1f} s"
    check_equal(outcome(photographs, run_dir, *arguments[len(NETWORK) :], "--resume"), alone, EXACT)


@pytest.mark.parametrize("after", ["data", pytest.param("columns", marks=pytest.mark.slow)])
def test_one_interrupt_stops_both_columns_after_the_same_step_and_shares_of_the_batch_go_on(
    photographs: Path, tmp_path: Path, alone: dict[str, Any], after: str
) -> None:
    run_dir = tmp_path / "run"
    arguments = [*NARROW, *DOUBLE, "--max-steps", str(STEPS)]
    run = start_run(photographs, run_dir, *NETWORK, *arguments, *MODES["columns"], *SLOW_STEPS)
    run.reach(3)
    family = pids(run)
    os.kill(run.process.pid, signal.SIGINT)
    code, _, error = run.finish()
    assert code == 130, error
    assert not any(is_alive(pid) for pid in family)
    check_equal(outcome(photographs, run_dir, *arguments, *MODES[after], "--resume"), alone, EXACT)


def test_trainers_under_a_torchrun_of_ones_own(store: Path, tmp_path: Path) -> None:
    settings = ["train.device=cpu", "train.max_steps=4", "augmenter.crop=32", "batch_size=16", "parallel=data"]
    with services(store, tmp_path, 1) as running:
        flags = [f"loader.address={running.address}", f"sockets={tmp_path}", *settings]
        ended = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                "fourstage", "trainer", "--run-dir", str(tmp_path / "run"), "--settings", "cifar-augmented",
                *(part for flag in flags for part in ("--set", flag)),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path / "run")) == 4
