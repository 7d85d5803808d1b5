"""The benchmark of decoders."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import decoders
from fourstage.augmenter.decode import Decoder, make_decoder
from fourstage.store import open_store


def test_it_compares_pixels_and_time(store: Path) -> None:
    opened = open_store(store)
    assert decoders.differences(opened, "simplejpeg", 70) == {"largest_difference": 0, "differing_share": 0.0}
    figures = decoders.cost(opened, ("simplejpeg", "auto"), 2, 0.05, overrides=["augmenter.crop=32"])
    assert figures["simplejpeg"]["ratio"] == [1.0, 1.0]
    assert min(figures["auto"]["microseconds"]) > 0


def test_it_sees_other_pixels(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def darker(name: str) -> Decoder:
        decode = make_decoder("auto")

        def decode_darker(jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
            decode(jpeg, pixels)
            pixels[: len(pixels) // 2] ^= 3

        return decode_darker if name == "turbojpeg" else decode

    monkeypatch.setattr(decoders, "make_decoder", darker)
    assert decoders.differences(open_store(store), "turbojpeg", 10) == {"largest_difference": 3, "differing_share": 0.5}
