from pathlib import Path

import pytest

from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, write_photographs


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 training and 48 validation images of three classes, 40x40."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 80)
    write_photographs(folder, "val", 16)
    path = folder / "store"
    prepare(folder / "train", path, size=SIZE, workers=1)
    prepare(folder / "val", path, split="val", size=SIZE, workers=1)
    return path
