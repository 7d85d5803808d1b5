"""The examples of the documentation do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourstage.store.prepare import prepare
from tests.pipeline.harness import CROP, SIZE, write_photographs

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "train_your_own.py"
EPOCHS, BATCHES = 2, 5
STEPS = [divmod(step, BATCHES) for step in range(1, EPOCHS * BATCHES + 1)]
"""Epoch and batch of each state after a step."""


def command(store: Path, checkpoint: Path, *launcher: str) -> list[str]:
    """The example with small batches; it says a line for each."""
    options = {"checkpoint": checkpoint, "epochs": EPOCHS, "batch-size": 8, "crop": CROP, "workers": 1, "save-every": 1}
    return [
        sys.executable,
        *launcher,
        str(EXAMPLE),
        str(store),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]


def said(output: str) -> list[tuple[int, int]]:
    """Epoch and batch of every line."""
    return [(int(epoch), int(batch)) for epoch, batch in re.findall(r"^epoch (\d+) batch (\d+) loss", output, re.M)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # So slow that the first process is killed long before its end.
    monkeypatch.setenv("FOURSTAGE_AUGMENTER__BATCH_SECONDS", "0.1")
    write_photographs(tmp_path, "train", 15)
    prepare(tmp_path / "train", tmp_path / "store", size=SIZE, workers=1)
    return tmp_path / "store"


def run(arguments: list[str]) -> list[tuple[int, int]]:
    """What the example says when it runs to its end."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return said(done.stdout)


def test_training_your_own_goes_on_after_a_kill(store: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "alone.pt"
    first = subprocess.Popen(command(store, checkpoint), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    lines = [first.stdout.readline() for _ in range(3)]
    first.kill()
    rest, error = first.communicate()
    before = said("".join(lines) + rest)
    assert before == STEPS[: len(before)], error
    assert 3 <= len(before) < len(STEPS) - 1
    # The checkpoint of the next step may have been written, and its line not said.
    assert run(command(store, checkpoint)) in (STEPS[len(before) :], STEPS[len(before) + 1 :])


@pytest.mark.slow
def test_training_your_own_on_two_processes_is_the_same(store: Path, tmp_path: Path) -> None:
    alone, both = tmp_path / "alone.pt", tmp_path / "both.pt"
    assert run(command(store, alone)) == STEPS
    assert run(command(store, both, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")) == STEPS
    mine, theirs = (torch.load(path, weights_only=True) for path in (alone, both))
    assert theirs["stream"] == mine["stream"] | {"world": 2}
    for name, value in mine["model"].items():
        # Halves of a batch are summed in another order: up to 1.1e-5. Samples in another order make 2e-3 of a bias, and
        # 0.07 of a weight.
        assert (value - theirs["model"][name]).norm() <= 1e-4 * value.norm(), name
