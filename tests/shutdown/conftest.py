from pathlib import Path

import pytest

from tests.shutdown.moments import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("w"))


@pytest.fixture(scope="session")
def store(world: World) -> Path:
    return world.store


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path leaves room for a Unix socket's."""
    return tmp_path_factory.mktemp("s")
