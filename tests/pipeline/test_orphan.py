"""A run that is resumed while the trainer of the killed one still ends."""

from pathlib import Path

import pytest

from tests.pipeline.harness import CROP, complete_run, is_alive, lines, start_run

STEPS, BATCH = 5, 8
RUN = [
    "--recipe", "drain", "--augmenters", "1", "--epochs", "1", "--receipt", "pixels", "--set", f"batch_size={BATCH}",
    "--set", f"augmenter.crop={CROP}", "--set", f"train.max_steps={STEPS}",
]  # fmt: skip


@pytest.mark.slow
def test_two_trainers_wrote_into_one_run_directory(store: Path, tmp_path: Path) -> None:
    """The first one finished its step and saved, in the middle of what the second had written."""
    plain = complete_run(store, tmp_path / "plain", *RUN)
    run = start_run(store, tmp_path / "run", *RUN, "--set", "train.step_seconds=6.0")
    run.reach(1)
    trainer = run.processes()["trainer"]
    run.process.kill()
    run.process.communicate()
    assert is_alive(trainer), "it is amid a step"
    summary = complete_run(store, run.run_dir, "--resume", "--set", "train.step_seconds=0.0")
    assert summary["receipt"]["digest"] == plain["receipt"]["digest"]
    assert [line["step"] for line in lines(run.run_dir / "steps.jsonl")] == list(range(1, STEPS + 1))
    assert (run.run_dir / "samples.u32").read_bytes() == (tmp_path / "plain" / "samples.u32").read_bytes()
