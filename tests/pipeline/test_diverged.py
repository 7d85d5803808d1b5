"""A run whose loss is no number any more ends with these words, whatever loss it is."""

from pathlib import Path

import pytest

from fourstage import rundir
from tests.pipeline.harness import CROP, start_run

DIVERGING = [
    "--recipe", "cifar-relu", "--device", "cpu", "--augmenters", "1", "--epochs", "1", "--set",
    f"augmenter.crop={CROP}", "--set", "batch_size=240", "--set", "model.init_std=10.0", "--set",
    "train.learning_rate=100.0",
]  # fmt: skip
"""The only step's loss is finite, those of the weights that it leaves are not."""


def test_a_validation_loss_that_is_no_number_ends_the_run_as_a_training_loss_does(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *DIVERGING)
    code, _, error = run.finish()
    assert code == 1
    assert "the validation loss after step 1 is " in error
    assert "training has diverged" in error
    assert "internal error" not in error
    assert (run.run_dir / rundir.EPOCHS).read_text() == ""


def test_a_number_that_json_has_not_reaches_no_line(tmp_path: Path) -> None:
    lines = rundir.Lines(tmp_path / rundir.EPOCHS)
    with pytest.raises(ValueError, match="JSON compliant"):
        lines.add({"loss": float("nan")})
    lines.close()
    assert (tmp_path / rundir.EPOCHS).read_text() == ""
