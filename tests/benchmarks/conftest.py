from pathlib import Path

import pytest
from benchmarks.bench import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 images of 40x40."""
    return make_store(tmp_path_factory.mktemp("benchmarks"), images=256, size=40)
