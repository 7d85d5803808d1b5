"""Runs that go on from anywhere say of every epoch what an undisturbed run says, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest

from fourstage.store.prepare import prepare
from tests.pipeline.harness import CROP, SIZE, complete_run, lines, write_photographs

EPOCHS, PER_EPOCH = 2, 5
ARGUMENTS = [
    "--recipe", "cifar-relu", "--device", "cpu", "--augmenters", "1", "--epochs", str(EPOCHS), "--set",
    f"augmenter.crop={CROP}", "--set", "batch_size=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def unvalidated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training images of three classes, and no validation split."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 10)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def undisturbed(unvalidated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    complete_run(unvalidated, run_dir, *ARGUMENTS)
    return run_dir


@pytest.fixture(scope="module")
def half(unvalidated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ended within its second epoch."""
    run_dir = tmp_path_factory.mktemp("half") / "run"
    complete_run(unvalidated, run_dir, *ARGUMENTS, "--max-steps", str(PER_EPOCH + 2))
    return run_dir


def test_an_epoch_that_is_resumed_within_has_the_training_error_of_all_of_it(
    unvalidated: Path, undisturbed: Path, half: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(half, tmp_path / "run")
    summary = complete_run(unvalidated, run_dir, *ARGUMENTS, "--resume")
    assert lines(run_dir / "epochs.jsonl") == lines(undisturbed / "epochs.jsonl")
    assert summary["final"] == json.loads((undisturbed / "summary.json").read_text())["final"]


@pytest.mark.parametrize(("finished", "more"), [("undisturbed", []), ("half", ["--max-steps", str(PER_EPOCH + 2)])])
def test_a_finished_run_that_is_resumed_says_the_same_of_its_epochs_again(
    unvalidated: Path, tmp_path: Path, finished: str, more: list[str], request: pytest.FixtureRequest
) -> None:
    before: Path = request.getfixturevalue(finished)
    run_dir = shutil.copytree(before, tmp_path / "run")
    summary = complete_run(unvalidated, run_dir, *ARGUMENTS, *more, "--resume")
    assert lines(run_dir / "epochs.jsonl") == lines(before / "epochs.jsonl")
    assert summary["final"] == json.loads((before / "summary.json").read_text())["final"]
