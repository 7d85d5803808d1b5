import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from fourstage.demo import write_photographs
from fourstage.figures.runs import Run
from fourstage.figures.style import house_style
from fourstage.resolve import load_settings, write_settings
from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, complete_run


@dataclass(frozen=True)
class Drawn:
    """A store of ten classes, eight training images of each, and two short runs on it; that with ReLU is traced."""

    store: Path
    relu: Path
    tanh: Path


@pytest.fixture(autouse=True)
def _house_style() -> Iterator[None]:
    with house_style():
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("drawn")
    write_photographs(folder, seed=3, train_per_class=8, validation_per_class=2)
    store = folder / "store"
    prepare(folder / "train", store, size=SIZE, workers=1)
    prepare(folder / "val", store, split="val", size=SIZE, workers=1)
    for name, trace in (("relu", ["--trace"]), ("tanh", [])):
        complete_run(
            store, folder / name, "--recipe", f"cifar-{name}", "--epochs", "3", "--augmenters", "2", *trace, "--set",
            "batch_size=8", "--set", "augmenter.crop=32",
        )  # fmt: skip
    return Drawn(store, folder / "relu", folder / "tanh")


def write_run(path: Path, activation: str, errors: Sequence[float], *, steps_per_epoch: int = 10) -> Run:
    """A run directory with a line for each epoch and its training error, and nothing else."""
    path.mkdir(parents=True)
    settings = load_settings("cifar-relu", environment={}, flags={"model.activation": activation})
    (path / "settings.toml").write_text(write_settings(settings))
    lines = [
        {"epoch": epoch, "step": (epoch + 1) * steps_per_epoch, "train": {"top1_error": error}, "val": None}
        for epoch, error in enumerate(errors)
    ]
    (path / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(path.name, path)


def points(line: Line2D) -> list[tuple[float, float]]:
    """What a line is drawn through."""
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
