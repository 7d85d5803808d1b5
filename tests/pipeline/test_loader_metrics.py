"""What the loader's page says of those who are not there, for alerts."""

from pathlib import Path

from tests.pipeline.harness import CROP, Services, eventually, services

SETTINGS = (
    "model.name=none", f"augmenter.crop={CROP}", "batch_size=16", "train.epochs=10000", "train.step_seconds=0.05",
    "loader.expect_augmenters=2",
)  # fmt: skip


def lost(running: Services) -> float:
    return running.metric("loader", "fourstage_trainers_lost")


def test_a_killed_trainer_is_lost_until_it_comes_back_and_one_that_leaves_is_not(store: Path, tmp_path: Path) -> None:
    with services(store, tmp_path, 1, SETTINGS) as running:
        running.start_trainer("drain")
        eventually(lambda: running.status().get("step", 0) > 2, "training")
        assert lost(running) == 0
        assert running.metric("loader", "fourstage_streams") == 1
        assert running.metric("loader", "fourstage_window_batches") >= 3
        assert running.metric("loader", "fourstage_augmenters_expected") == 2
        assert running.metric("loader", "fourstage_peers", role="augmenter") == 1
        running.kill("trainer")
        eventually(lambda: lost(running) == 1, "the loss of the trainer")
        step = running.status()["step"]
        running.start_trainer("drain", "--resume")
        eventually(lambda: lost(running) == 0, "its return")
        eventually(lambda: running.status().get("step", 0) > step, "training on")
        running.kill("loader")
        eventually(
            lambda: "the loader has not answered" in running.status().get("bottleneck", ""), "what it waits for", 30.0
        )
        running.start_loader()
        step = running.status()["step"]
        eventually(lambda: running.status()["step"] > step + 20, "training again")
        assert "the loader has not answered" not in running.status()["bottleneck"]
        running.processes["trainer"].terminate()
        running.processes["trainer"].wait(30)
        eventually(lambda: running.metric("loader", "fourstage_streams") == 0, "its goodbye")
        assert lost(running) == 0
