"""Runs over a store with images that cannot be decoded: left out in the same way however the run is made."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourstage.order import permutation
from fourstage.resolve import load_settings
from fourstage.store import open_store
from fourstage.store.prepare import prepare
from fourstage.view import plain as plain_line
from tests.decoding.stores import with_a_truncated_image
from tests.pipeline.harness import (
    CROP,
    SIZE,
    complete_run,
    eventually,
    fourstage,
    lines,
    losses,
    services,
    start_run,
    write_photographs,
)
from tests.pipeline.test_training import plain_losses

EPOCHS, SAMPLES, BATCH, SEED = 2, 240, 16, 7
STEPS = EPOCHS * SAMPLES // BATCH
RUN = [
    "--recipe", "cifar-augmented", "--receipt", "pixels", "--epochs", str(EPOCHS), "--seed", str(SEED),
    "--device", "cpu", "--set", f"augmenter.crop={CROP}", "--set", f"batch_size={BATCH}", "--set", "colour_std=0.1",
    "--set", "loader.silence_seconds=2.0",
]  # fmt: skip
SKIP = ["--set", "on_corrupt=skip", "--set", "corrupt_share=0.05"]
SLOW = ["--set", "loader.batch_seconds=0.1"]


def corrupt_positions() -> list[int]:
    """In the first epoch: both ends of the first share of two, two one behind another, the last row of all."""
    return [7, 8, 40, 41, SAMPLES - 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", SAMPLES // 3)
    write_photographs(folder, "val", 16)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    prepare(folder / "val", folder / "store", split="val", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def store(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With five images that cannot be decoded."""
    damaged = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(whole, damaged)
    for index in permutation(SEED, 0, SAMPLES)[corrupt_positions()].tolist():
        with_a_truncated_image(damaged, index)
    return damaged


@pytest.fixture(scope="module")
def keys(whole: Path) -> list[str]:
    """Of these images, in the order of the first epoch."""
    return open_store(whole).split("train").keys(permutation(SEED, 0, SAMPLES)[corrupt_positions()])


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one augmenter."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    complete_run(store, run_dir, *RUN, *SKIP, "--augmenters", "1")
    return run_dir


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that must be equal of two runs of the same settings."""
    summary = summary_of(run_dir)
    receipt = [(line["samples"], line["digest"], line["corrupt"]) for line in lines(run_dir / "receipt.jsonl")]
    words = np.fromfile(run_dir / "samples.u32", "<u4").tolist()
    totals = summary["receipt"]
    return totals["digest"], totals["corrupt"], receipt, losses(run_dir), summary["final"], words


def test_the_receipt_names_what_was_left_out_and_counts_the_others(plain: Path, keys: list[str]) -> None:
    first, second = lines(plain / "receipt.jsonl")
    assert first["corrupt"] == keys
    assert sorted(second["corrupt"]) == sorted(keys)
    assert first["samples"] == second["samples"] == SAMPLES - len(keys)
    receipt = summary_of(plain)["receipt"]
    assert receipt["delivered"] == EPOCHS * (SAMPLES - len(keys))
    assert receipt["corrupt"] == EPOCHS * len(keys)
    steps = lines(plain / "steps.jsonl")
    assert [key for step in steps for key in step.get("corrupt", [])] == first["corrupt"] + second["corrupt"]
    assert steps[0]["corrupt"] == keys[:2]
    words = np.fromfile(plain / "samples.u32", "<u4")
    assert len(words) == EPOCHS * SAMPLES
    assert np.flatnonzero(words[:SAMPLES] == 1).tolist() == corrupt_positions()


def test_losses_equal_a_plain_loop_over_the_others_to_the_last_bit(whole: Path, plain: Path) -> None:
    wanted = [f"seed={SEED}", f"augmenter.crop={CROP}", f"batch_size={BATCH}", "colour_std=0.1"]
    settings = load_settings("cifar-augmented", overrides=wanted, environment={})
    corrupt = permutation(SEED, 0, SAMPLES)[corrupt_positions()].tolist()
    expected = plain_losses(open_store(whole), settings, STEPS // EPOCHS, without=corrupt)
    assert losses(plain)[: STEPS // EPOCHS] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--augmenters", "3"],
        pytest.param(["--augmenters", "2", "--transport", "inline"], marks=pytest.mark.slow),
        pytest.param(["--set", "decode=device"], marks=pytest.mark.slow),
        pytest.param(["--set", "decode=device", "--transport", "inline"], marks=pytest.mark.slow),
    ],
    ids=["three", "inline", "device", "device-inline"],
)
def test_it_is_the_same_run(store: Path, tmp_path: Path, plain: Path, arguments: list[str]) -> None:
    complete_run(store, tmp_path / "run", *RUN, *SKIP, *arguments)
    assert outcome(tmp_path / "run") == outcome(plain)


@pytest.mark.slow
def test_it_is_the_same_run_through_kills_of_every_role(store: Path, tmp_path: Path, plain: Path) -> None:
    run = start_run(
        store, tmp_path / "run", *RUN, *SKIP, *SLOW, "--augmenters", "2", "--set", "train.checkpoint_seconds=0.5"
    )
    for step, name in ((3, "augmenter-0"), (8, "trainer"), (14, "loader"), (20, "augmenter-1"), (24, "trainer")):
        run.reach(step)
        run.kill(name)
    code, _, error = run.finish()
    assert code == 0, error
    assert outcome(run.run_dir)[:4] == outcome(plain)[:4]
    assert outcome(run.run_dir)[5] == outcome(plain)[5]


@pytest.mark.slow
def test_stopped_in_an_epoch_and_resumed_the_receipt_names_all(store: Path, tmp_path: Path, plain: Path) -> None:
    run = start_run(store, tmp_path / "run", *RUN, *SKIP, *SLOW)
    run.reach(5)
    run.process.send_signal(signal.SIGINT)
    assert run.finish()[0] == 130
    complete_run(store, run.run_dir, "--resume", "--augmenters", "2", "--set", "decode=device")
    assert outcome(run.run_dir)[:4] == outcome(plain)[:4]
    assert outcome(run.run_dir)[5] == outcome(plain)[5]


@pytest.mark.slow
def test_a_run_that_failed_goes_on_with_what_it_cannot_decode_left_out(
    store: Path, tmp_path: Path, plain: Path, keys: list[str]
) -> None:
    run = start_run(store, tmp_path / "run", *RUN, "--set", "train.checkpoint_seconds=0")
    code, _, error = run.finish()
    assert code == 1
    assert f"sample {keys[0]!r} cannot be decoded: Premature end of JPEG file" in error
    complete_run(store, run.run_dir, "--resume", *SKIP)
    assert outcome(run.run_dir)[:4] == outcome(plain)[:4]


@pytest.mark.slow
def test_the_budget_ends_a_run_at_the_same_sample_whoever_makes_the_batches(
    store: Path, tmp_path: Path, keys: list[str]
) -> None:
    for name, arguments in (("a", ["--augmenters", "1"]), ("b", ["--set", "decode=device"])):
        run = start_run(store, tmp_path / name, *RUN, *SKIP, "--set", "corrupt_count=2", *arguments)
        code, _, error = run.finish()
        assert code == 1
        said = [line for line in error.splitlines() if line.startswith("fourstage: ")]
        words = f"3 different samples cannot be decoded, the last one {keys[2]!r}: corrupt_count allows 2"
        hint = "fourstage verify --decode names all: prepare the store without them, or raise corrupt_count"
        assert said == [f"fourstage: {words}; {hint}"], error
        assert not (run.run_dir / "summary.json").exists()
        complete_run(store, run.run_dir, "--resume", "--set", "corrupt_count=10")


def test_a_batch_without_one_good_sample_ends_the_run(whole: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "store"
    shutil.copytree(whole, damaged)
    keys = [with_a_truncated_image(damaged, index) for index in permutation(SEED, 0, SAMPLES)[4:6].tolist()]
    run = start_run(damaged, tmp_path / "run", *RUN, *SKIP, "--set", "batch_size=2")
    code, _, error = run.finish()
    assert code == 1
    assert f"no sample of batch 2 can be decoded ({keys[0]!r}, {keys[1]!r}), so there is nothing to train on" in error
    status = run.status()
    assert status["state"] == "failed", "whoever asks later is told so too"
    assert f"fourstage: {status['failure']}" in error


@pytest.mark.parametrize("name", ["corrupt_count=5", "corrupt_share=0.5", "corrupt_consecutive=3"])
def test_a_limit_of_what_is_never_left_out_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    done = fourstage("run", "--store", str(whole), "--run-dir", str(tmp_path / "run"), *RUN, "--set", name)
    assert done.returncode == 2
    assert f'{name.replace("=", " = ")} with on_corrupt = "fail"' in done.stderr


@pytest.mark.slow
def test_validation_goes_without_them_and_its_rates_are_of_the_others(whole: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "store"
    shutil.copytree(whole, damaged)
    key = with_a_truncated_image(damaged, 20, split="val")
    complete_run(damaged, tmp_path / "run", *RUN, *SKIP)
    log = (tmp_path / "run" / "logs" / "trainer.log").read_text()
    assert log.count(f"val batch 1 goes without row 4, {key!r}") == 1
    evaluated = fourstage(
        "evaluate", "--run-dir", str(tmp_path / "run"), "--store", str(damaged), "--views", "1", "--json", seconds=120
    )
    assert evaluated.returncode == 0, evaluated.stderr
    said = json.loads(evaluated.stdout)
    assert said["samples"] == 47
    assert said["corrupt"] == [key]
    assert said["top1_error"] == pytest.approx(summary_of(tmp_path / "run")["final"]["top1_error"])


def test_what_is_left_out_is_counted_once_and_said_while_it_runs(store: Path, tmp_path: Path, keys: list[str]) -> None:
    told = ["on_corrupt=skip", "corrupt_share=0.05", f"augmenter.crop={CROP}", f"batch_size={BATCH}", f"seed={SEED}"]
    with services(store, tmp_path, 1, [*told, "train.epochs=100000", "loader.batch_seconds=0.01"]) as running:
        running.start_trainer("drain")
        eventually(lambda: running.status().get("epoch", 0) >= 2, "the third epoch", 60.0)
        assert running.metric("trainer", "fourstage_corrupt_samples_total") == len(keys)
        assert running.metric("trainer", "fourstage_corrupt_budget_samples") == 12
        assert running.metric("loader", "fourstage_corrupt_samples_total") == 0
        status = running.status()
        assert status["corrupt"] >= 2 * len(keys)
        assert f"{status['corrupt']} samples left out, which cannot be decoded" in plain_line(status)
