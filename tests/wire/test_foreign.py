"""The specification suffices: a program that was written from it alone does an augmenter's work."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fourstage.resolve import load_settings
from fourstage.store.prepare import prepare
from fourstage.stream import StreamBatch
from fourstage.views import view_of
from tests.decoding.stores import with_a_truncated_image
from tests.pipeline.harness import CROP, SIZE, eventually, services, write_photographs
from tests.streams import BATCHES, PER_CLASS, Expected, assert_same, make, without
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


def two_epochs(store: Path, folder: Path, settings: dict[str, Any]) -> list[list[StreamBatch]]:
    """Of a stream that only the foreign program serves."""
    with services(store, folder, augmenters=0) as running:
        eventually((folder / "loader.address").exists, "the loader's address")
        foreign = subprocess.Popen([sys.executable, "-m", "tests.wire.foreign", running.address], cwd=ROOT)
        try:
            with make(running.address, settings=settings) as stream:
                return [list(stream), list(stream)]
        finally:
            foreign.kill()
            foreign.wait()


@pytest.mark.parametrize("preset", ["paper", "code-2012"])
def test_it_serves_a_stream_byte_for_byte(store: Path, tmp_path: Path, preset: str) -> None:
    received = two_epochs(store, tmp_path, {"preset": preset})
    settings = load_settings("drain", overrides=[f"preset={preset}", f"augmenter.crop={CROP}"], environment={})
    expected = Expected.of(store, view=view_of(settings, "random"))
    for epoch, batches in enumerate(received):
        assert len(batches) == BATCHES
        assert_same(batches, expected.epoch(epoch))


def test_it_leaves_out_what_cannot_be_decoded(store: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    keys = {with_a_truncated_image(damaged, number) for number in (7, 8)}
    received = two_epochs(damaged, tmp_path, {"on_corrupt": "skip", "corrupt_share": 0.5})
    expected = Expected.of(store)
    for epoch, batches in enumerate(received):
        assert_same(batches, [without(batch, keys) for batch in expected.epoch(epoch)])
