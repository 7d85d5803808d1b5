"""The specification suffices: a program that was written from it alone does an augmenter's work."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourstage.resolve import load_settings
from fourstage.store.prepare import prepare
from fourstage.views import view_of
from tests.pipeline.harness import CROP, SIZE, eventually, services, write_photographs
from tests.streams import BATCHES, PER_CLASS, Expected, assert_same, make
from tests.wire.foreign import identity
from tests.wire.reference import VECTORS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f")
    write_photographs(folder, "train", PER_CLASS)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


def test_its_pixels_have_the_golden_identity() -> None:
    assert identity().hex() == VECTORS["identity"]["identity"]


@pytest.mark.parametrize("preset", ["paper", "code-2012"])
def test_it_serves_a_stream_byte_for_byte(store: Path, tmp_path: Path, preset: str) -> None:
    with services(store, tmp_path, augmenters=0) as running:
        eventually((tmp_path / "loader.address").exists, "the loader's address")
        foreign = subprocess.Popen([sys.executable, "-m", "tests.wire.foreign", running.address], cwd=ROOT)
        try:
            with make(running.address, settings={"preset": preset}) as stream:
                received = [list(stream), list(stream)]
        finally:
            foreign.kill()
            foreign.wait()
    settings = load_settings("drain", overrides=[f"preset={preset}", f"augmenter.crop={CROP}"], environment={})
    expected = Expected.of(store, view=view_of(settings, "random"))
    for epoch, batches in enumerate(received):
        assert len(batches) == BATCHES
        assert_same(batches, expected.epoch(epoch))
