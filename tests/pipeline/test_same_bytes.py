"""Promises 1 and 2: whatever happens on the way, the same batches arrive, each once, and the same losses."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.harness import CROP, complete_run, lines, losses, start_run

EPOCHS, SAMPLES, BATCH = 2, 240, 16
STEPS = EPOCHS * SAMPLES // BATCH
WORK = ["--set", "augmenter.batch_seconds=0.15"]
"""Slow enough that a kill falls into the middle of something."""
NETWORK = [
    "--recipe", "cifar-augmented", "--receipt", "pixels", "--epochs", str(EPOCHS), "--seed", "7", "--device", "cpu",
    "--set", f"augmenter.crop={CROP}", "--set", f"batch_size={BATCH}", "--set", "colour_std=0.1",
    "--set", "loader.silence_seconds=2.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """Digest and losses of an undisturbed run with one augmenter."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    summary = complete_run(store, run_dir, *NETWORK, "--augmenters", "1")
    check_complete(summary, run_dir)
    return summary["receipt"]["digest"], losses(run_dir)


def check_complete(summary: dict[str, Any], run_dir: Path) -> None:
    assert summary["steps"] == STEPS
    assert [line["samples"] for line in lines(run_dir / "receipt.jsonl")] == [SAMPLES] * EPOCHS
    assert [line["step"] for line in lines(run_dir / "steps.jsonl")] == list(range(1, STEPS + 1))
    assert lines(run_dir / "receipt.jsonl")[-1]["digest"] == summary["receipt"]["digest"]
    assert summary["receipt"]["delivered"] == EPOCHS * SAMPLES


@pytest.mark.parametrize(
    ("augmenters", "transport"),
    [("2", "arena"), ("5", "inline"), pytest.param("5", "arena", marks=pytest.mark.slow),
     pytest.param("1", "inline", marks=pytest.mark.slow), pytest.param("2", "inline", marks=pytest.mark.slow)],
)  # fmt: skip
def test_any_number_of_augmenters_and_either_carrier(
    store: Path, tmp_path: Path, plain: tuple[str, list[float]], augmenters: str, transport: str
) -> None:
    run_dir = tmp_path / "run"
    summary = complete_run(store, run_dir, *NETWORK, "--augmenters", augmenters, "--transport", transport)
    check_complete(summary, run_dir)
    assert (summary["receipt"]["digest"], losses(run_dir)) == plain


def test_the_other_decoder(store: Path, tmp_path: Path, plain: tuple[str, list[float]]) -> None:
    pytest.importorskip("turbojpeg").TurboJPEG()
    run_dir = tmp_path / "run"
    summary = complete_run(store, run_dir, *NETWORK, "--set", "augmenter.decoder=turbojpeg")
    assert (summary["receipt"]["digest"], losses(run_dir)) == plain


@pytest.mark.parametrize("seed", [1, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6)]])
@pytest.mark.parametrize("transport", ["arena", pytest.param("inline", marks=pytest.mark.slow)])
def test_each_augmenter_killed_at_random_moments(
    store: Path, tmp_path: Path, plain: tuple[str, list[float]], seed: int, transport: str
) -> None:
    chance = random.Random(seed)
    run_dir = tmp_path / "run"
    arguments = [*NETWORK, *WORK, "--augmenters", "2", "--transport", transport]
    run = start_run(store, run_dir, *arguments)
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS - 6), 4))):
        run.reach(step)
        run.kill(f"augmenter-{number % 2}")
    code, out, error = run.finish()
    assert code == 0, error
    summary = json.loads(out)
    check_complete(summary, run_dir)
    assert len(run.killed) == 4
    assert (summary["receipt"]["digest"], losses(run_dir)) == plain


@pytest.mark.parametrize("transport", ["arena", pytest.param("inline", marks=pytest.mark.slow)])
def test_the_loader_killed_twice(store: Path, tmp_path: Path, plain: tuple[str, list[float]], transport: str) -> None:
    run_dir = tmp_path / "run"
    run = start_run(store, run_dir, *NETWORK, *WORK, "--augmenters", "2", "--transport", transport)
    for step in (5, 15):
        run.reach(step)
        run.kill("loader")
    code, out, error = run.finish()
    assert code == 0, error
    summary = json.loads(out)
    check_complete(summary, run_dir)
    assert (summary["receipt"]["digest"], losses(run_dir)) == plain


def test_the_trainer_killed_goes_on_from_its_checkpoint(
    store: Path, tmp_path: Path, plain: tuple[str, list[float]]
) -> None:
    run_dir = tmp_path / "run"
    run = start_run(store, run_dir, *NETWORK, *WORK, "--augmenters", "2", "--set", "train.checkpoint_seconds=0.5")
    run.reach(12)
    run.kill("trainer")
    code, out, error = run.finish()
    assert code == 0, error
    summary = json.loads(out)
    check_complete(summary, run_dir)
    assert (summary["receipt"]["digest"], losses(run_dir)) == plain


@pytest.mark.parametrize("stopped_at", [4, pytest.param(17, marks=pytest.mark.slow)])
def test_stopped_and_resumed_within_an_epoch(
    store: Path, tmp_path: Path, plain: tuple[str, list[float]], stopped_at: int
) -> None:
    run_dir = tmp_path / "run"
    run = start_run(store, run_dir, *NETWORK, *WORK, "--augmenters", "1")
    run.reach(stopped_at)
    run.process.send_signal(signal.SIGINT)
    code, out, error = run.finish()
    assert code == 130
    assert "--resume" in error
    assert stopped_at <= json.loads(out)["steps"] < STEPS
    resumed = start_run(store, run_dir, "--resume", "--augmenters", "3", "--transport", "inline")
    code, out, error = resumed.finish()
    assert code == 0, error
    check_complete(json.loads(out), run_dir)
    assert (json.loads(out)["receipt"]["digest"], losses(run_dir)) == plain
