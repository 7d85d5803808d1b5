from dataclasses import dataclass
from pathlib import Path

import pytest

from fourstage.demo import write_photographs
from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, complete_run


@dataclass(frozen=True)
class Examined:
    """Two short runs on a store of ten classes; they differ in crop, seed and where the mean is taken."""

    store: Path
    first: Path
    second: Path


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    folder = tmp_path_factory.mktemp("examined")
    write_photographs(folder, seed=1, train_per_class=6, validation_per_class=4)
    store = folder / "store"
    prepare(folder / "train", store, size=SIZE, workers=1)
    prepare(folder / "val", store, split="val", size=SIZE, workers=1)
    for name, settings in (
        ("first", ("augmenter.crop=32", "seed=1", "batch_size=16")),
        ("second", ("augmenter.crop=27", "seed=2", "batch_size=12", "mean_place=centre")),
    ):
        flags = [part for value in settings for part in ("--set", value)]
        complete_run(store, folder / name, "--recipe", "cifar-relu", "--epochs", "2", "--augmenters", "1", *flags)
    return Examined(store, folder / "first", folder / "second")
