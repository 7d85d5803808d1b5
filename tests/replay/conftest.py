from collections.abc import Callable
from pathlib import Path

import pytest

from fourstage.store.prepare import prepare
from tests.pipeline.harness import CROP, SIZE, complete_run, write_photographs
from tests.streams import BATCH, PER_CLASS, SEED

RunOf = Callable[..., Path]

DRAIN = ["--recipe", "drain", "--set", "colour_std=0.1"]
NETWORK = ["--recipe", "cifar-augmented", "--device", "cpu", "--set", "colour_std=0.1"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 training and 9 validation images of three classes, 40x40."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", PER_CLASS)
    write_photographs(folder, "val", 3)
    path = folder / "store"
    prepare(folder / "train", path, size=SIZE, workers=1)
    prepare(folder / "val", path, split="val", size=SIZE, workers=1)
    return path


@pytest.fixture(scope="session")
def run_of(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """The directory of a finished run of two epochs with these arguments; each is trained once. Do not write there."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*arguments: str) -> Path:
        if arguments not in made:
            run_dir = tmp_path_factory.mktemp("runs") / "run"
            complete_run(
                store, run_dir, "--seed", str(SEED), "--epochs", "2", "--augmenters", "1", "--set",
                f"augmenter.crop={CROP}", "--set", f"batch_size={BATCH}", *arguments,
            )  # fmt: skip
            made[arguments] = run_dir
        return made[arguments]

    return run
