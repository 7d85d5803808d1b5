"""Runs whose trainer decodes: the same pixels and losses as with augmenters, whatever happens on the way."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from fourstage.store.prepare import prepare
from fourstage.trainer.feed import Feed
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
from tests.pipeline.test_frozen_worker import request
from tests.ports import free_address

EPOCHS, SAMPLES, BATCH = 2, 240, 16
STEPS = EPOCHS * SAMPLES // BATCH
NETWORK = [
    "--recipe", "cifar-augmented", "--receipt", "pixels", "--epochs", str(EPOCHS), "--seed", "7", "--device", "cpu",
    "--set", f"augmenter.crop={CROP}", "--set", f"batch_size={BATCH}", "--set", "colour_std=0.1",
    "--set", "loader.silence_seconds=2.0",
]  # fmt: skip
DEVICE = [*NETWORK, "--set", "decode=device"]
SLOW = ["--set", "loader.batch_seconds=0.1"]
"""Slow enough that a kill falls into the middle of something."""
ENDLESS = (
    "decode=device", f"augmenter.crop={CROP}", f"batch_size={BATCH}", "loader.batch_seconds=0.05", "train.epochs=10000",
)  # fmt: skip
"""Of services one by one: the trainer goes on until it is stopped."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 training and 48 validation images of three classes."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 80)
    write_photographs(folder, "val", 16)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    prepare(folder / "val", folder / "store", split="val", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def by_augmenters(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float], Any]:
    """Digest of all pixels, losses and validation errors of a run with augmenters."""
    return outcome(tmp_path_factory.mktemp("plain") / "run", store, *NETWORK, "--augmenters", "1")


def outcome(run_dir: Path, store: Path, *arguments: str) -> tuple[str, list[float], Any]:
    summary = complete_run(store, run_dir, *arguments)
    check_complete(summary, run_dir)
    return summary["receipt"]["digest"], losses(run_dir), summary["final"]


def check_complete(summary: dict[str, Any], run_dir: Path) -> None:
    assert summary["steps"] == STEPS
    assert [line["samples"] for line in lines(run_dir / "receipt.jsonl")] == [SAMPLES] * EPOCHS
    assert summary["receipt"]["delivered"] == EPOCHS * SAMPLES


@pytest.mark.parametrize("transport", ["arena", "inline"])
def test_the_pixels_and_losses_are_those_of_augmenters_and_no_augmenter_runs(
    store: Path, tmp_path: Path, by_augmenters: tuple[str, list[float], Any], transport: str
) -> None:
    run_dir = tmp_path / "run"
    assert outcome(run_dir, store, *DEVICE, "--transport", transport) == by_augmenters
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["augmenters"] == 0
    assert sorted(path.name for path in (run_dir / "logs").iterdir()) == ["loader.log", "trainer.log"]
    assert summary["stages"]["copy"]["busy_seconds"] > summary["stages"]["transform"]["busy_seconds"]
    status = json.loads((run_dir / "status.json").read_text())
    assert status["decode"] == "device"
    assert status["augmenters_wanted"] == 0


def test_one_slot_of_jpeg_bytes_is_enough(
    store: Path, tmp_path: Path, by_augmenters: tuple[str, list[float], Any]
) -> None:
    memory = ["--set", "augmenter.memory=70000", "--augmenters", "0"]
    assert outcome(tmp_path / "run", store, *DEVICE, *memory) == by_augmenters


def test_the_trainer_killed_goes_on_from_its_checkpoint(
    store: Path, tmp_path: Path, by_augmenters: tuple[str, list[float], Any]
) -> None:
    run = start_run(store, tmp_path / "run", *DEVICE, *SLOW, "--set", "train.checkpoint_seconds=0.5")
    run.reach(12)
    run.kill("trainer")
    code, out, error = run.finish()
    assert code == 0, error
    check_complete(json.loads(out), run.run_dir)
    assert (json.loads(out)["receipt"]["digest"], losses(run.run_dir)) == by_augmenters[:2]


@pytest.mark.parametrize("transport", ["arena", pytest.param("inline", marks=pytest.mark.slow)])
def test_the_loader_killed_twice(
    store: Path, tmp_path: Path, by_augmenters: tuple[str, list[float], Any], transport: str
) -> None:
    run = start_run(store, tmp_path / "run", *DEVICE, *SLOW, "--transport", transport)
    for step in (5, 15):
        run.reach(step)
        run.kill("loader")
    code, out, error = run.finish()
    assert code == 0, error
    check_complete(json.loads(out), run.run_dir)
    assert (json.loads(out)["receipt"]["digest"], losses(run.run_dir)) == by_augmenters[:2]


def test_stopped_and_resumed_with_augmenters(
    store: Path, tmp_path: Path, by_augmenters: tuple[str, list[float], Any]
) -> None:
    run = start_run(store, tmp_path / "run", *DEVICE, *SLOW)
    run.reach(4)
    run.process.send_signal(signal.SIGINT)
    code, out, error = run.finish()
    assert code == 130, error
    assert 4 <= json.loads(out)["steps"] < STEPS
    resumed = start_run(store, run.run_dir, "--resume", "--augmenters", "2", "--set", "decode=augmenter")
    code, out, error = resumed.finish()
    assert code == 0, error
    check_complete(json.loads(out), run.run_dir)
    assert (json.loads(out)["receipt"]["digest"], losses(run.run_dir)) == by_augmenters[:2]


@pytest.mark.slow
def test_two_trainers_that_share_batches_decode_their_own(store: Path, tmp_path: Path) -> None:
    shares = ["--parallel", "data", "--set", "replicas=2"]
    by_augmenters = outcome(tmp_path / "augmenters", store, *NETWORK, *shares, "--augmenters", "1")
    assert outcome(tmp_path / "device", store, *DEVICE, *shares) == by_augmenters


@pytest.mark.parametrize("decode", ["augmenter", "device"])
def test_a_corrupt_image_ends_the_run_by_its_name(store: Path, tmp_path: Path, decode: str) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(store, altered)
    key = with_a_truncated_image(altered, 7)
    run = start_run(altered, tmp_path / "run", *NETWORK, "--set", f"decode={decode}")
    code, _, error = run.finish(60)
    assert code == 1
    said = [line for line in error.splitlines() if line.startswith("fourstage: ")]
    assert len(said) == 1, error
    assert said[0].startswith(f"fourstage: sample {key!r} cannot be decoded: Premature end of JPEG file"), error


def test_an_augmenter_that_joins_gets_no_lease_of_the_stream(store: Path, tmp_path: Path) -> None:
    with services(store, tmp_path, 1, ENDLESS) as running:
        running.start_trainer("drain")
        eventually(lambda: running.status().get("step", 0) >= 8, "eight steps", 60.0)
        assert running.status()["augmenters"] == 1, "the one that joined: the trainer's own is none"
        assert running.metric("loader", "fourstage_peers", role="augmenter") == 1.0
        assert running.metric("augmenter-0", "fourstage_batches_total", stage="transform") == 0.0
        assert running.metric("augmenter-0", "fourstage_slots", state="free") == 0.0, "it was told of the stream"
        running.kill("trainer")
        eventually(lambda: running.metric("loader", "fourstage_streams") == 0.0, "the stream is closed")
        eventually(lambda: running.metric("loader", "fourstage_trainers_lost") == 1.0, "the trainer is missed")
        assert running.metric("loader", "fourstage_workers_died_total") == 0.0
        assert running.metric("loader", "fourstage_peers", role="augmenter") == 1.0


def test_the_trainer_s_own_worker_makes_no_batches_of_others(store: Path, tmp_path: Path) -> None:
    with services(store, tmp_path, 0, ENDLESS) as running:
        running.start_trainer("drain")
        eventually(lambda: running.status().get("step", 0) >= 2, "two steps", 60.0)
        feed = Feed(running.address, name="other", sockets=tmp_path)
        try:
            inbox = feed.open(request("train", epochs=1))
            inbox.opened(20.0)
            # Its slots are free and it makes any pixels that nobody has pinned, yet it is not even told.
            eventually(lambda: feed.waiting == "no augmenter is connected", "what the other trainer waits for")
            assert inbox.next(0.0) is None
            running.start_augmenter("augmenter-0")
            batch = eventually(lambda: inbox.next(1.0), "a batch")
            assert batch is not None
            assert batch.passage.worker == "augmenter-0"
        finally:
            feed.close()


def test_over_tcp_it_comes_in_by_the_trainer_s_key(store: Path, tmp_path: Path) -> None:
    assert fourstage("keys", "init", str(tmp_path / "keys")).returncode == 0
    told = ["decode=device", f"augmenter.crop={CROP}", f"batch_size={BATCH}", "transport=inline"]
    with services(store, tmp_path, 0, told, loader=free_address(), keys=tmp_path / "keys") as running:
        running.start_trainer("drain")
        assert running.processes["trainer"].wait(60) == 0, (tmp_path / "trainer.log").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["receipt"]["delivered"] == SAMPLES


def test_columns_simulated_work_and_adapting_numbers_are_refused(store: Path, tmp_path: Path) -> None:
    command = ["run", "--store", str(store), "--run-dir", str(tmp_path / "run"), "--set", "decode=device"]
    for flags, words in (
        (["--parallel", "columns"], "decode = 'device' with parallel = 'columns'"),
        (["--set", "augmenter.batch_seconds=0.1"], "augmenter.batch_seconds"),
        (["--augmenters", "auto:2"], "'auto:2' with decode = 'device'"),
    ):
        done = fourstage(*command, *flags)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "run").exists()


def test_more_augmenters_are_refused_while_it_runs(store: Path, tmp_path: Path) -> None:
    run = start_run(store, tmp_path / "run", *DEVICE, *SLOW)
    run.reach(2)
    done = fourstage("scale", "2", "--run-dir", str(run.run_dir))
    assert done.returncode == 2
    assert "decodes itself" in done.stderr
    run.process.send_signal(signal.SIGINT)
    assert run.finish()[0] == 130
