from pathlib import Path

import pytest

from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, write_photographs


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 training images of three classes, 40x40."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 80)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"
