"""A learning rate set by hand outlives whatever ends the trainer, before a checkpoint and after it."""

import json
import os
import signal
from pathlib import Path

from fourstage.by_hand import RATE
from tests.pipeline.harness import CROP, complete_run, eventually, lines, start_run

BEFORE, ASKED = 0.002, 0.0005
ARGUMENTS = [
    "--recipe", "cifar-augmented", "--set", "model.name=none", "--epochs", "2",
    "--augmenters", "1", "--set", "batch_size=16", "--set", f"augmenter.crop={CROP}",
]  # fmt: skip
SLOW = ["--set", "train.step_seconds=0.1"]


def rates(run_dir: Path) -> list[float]:
    return [line["learning_rate"] for line in lines(run_dir / "steps.jsonl")]


def test_a_rate_set_by_hand_is_not_lost_where_the_trainer_is_killed_before_its_next_checkpoint(
    store: Path, tmp_path: Path
) -> None:
    run = start_run(store, tmp_path / "run", *ARGUMENTS, *SLOW, "--max-steps", "25")
    run.reach(2)
    RATE.ask(run.run_dir, ASKED)
    eventually(lambda: run.status().get("learning_rate") == ASKED, "the rate was taken")
    taken = rates(run.run_dir).index(ASKED)
    run.kill("trainer")
    code, _, error = run.finish()
    assert code == 0, error
    assert rates(run.run_dir) == [BEFORE] * taken + [ASKED] * (25 - taken)


def test_a_rate_is_taken_by_the_run_that_goes_on_where_the_one_that_was_asked_is_stopped_first(
    store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    complete_run(store, run_dir, *ARGUMENTS, "--max-steps", "2")
    RATE.ask(run_dir, ASKED)
    run = start_run(store, run_dir, *ARGUMENTS, "--resume", "--max-steps", "4", "--set", "augmenter.batch_seconds=600")
    eventually(lambda: run.status().get("state") == "running", "the trainer waits for its first batch")
    os.kill(run.process.pid, signal.SIGINT)
    code, _, error = run.finish()
    assert code == 130, error
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 2
    complete_run(store, run_dir, *ARGUMENTS, "--resume", "--max-steps", "4", "--set", "augmenter.batch_seconds=0")
    assert rates(run_dir) == [BEFORE, BEFORE, ASKED, ASKED]
    assert not list(run_dir.glob("*rate*")) + list(run_dir.glob(".*rate*"))
