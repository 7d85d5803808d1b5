"""Broken JPEGs, in a process of their own for each decoder: its death, a hang or a giant allocation would show."""

import importlib.util
import subprocess
import sys

import pytest

from fourstage.augmenter.decode import make_decoder
from fourstage.errors import SettingsError
from tests.fuzz.jpegs import DECODERS, SIZE, corpus, photographs

CASES = 300


def _is_here(name: str) -> bool:
    if name == "dali":
        return importlib.util.find_spec("nvidia.dali") is not None
    try:
        make_decoder("turbojpeg" if name == "turbojpeg" else "auto")
    except SettingsError:
        return False
    return True


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_broken_jpeg_is_pixels_of_the_right_size_or_the_documented_error(decoder: str) -> None:
    if not _is_here(decoder):
        pytest.skip(f"{decoder} is not installed")
    command = [sys.executable, "-m", "tests.fuzz.jpegs", decoder, "--cases", str(CASES), "--seed", "2012"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, f"case {ran.stdout.splitlines()[-1:]} ended it: {ran.stderr[-2000:]}"
    decoded = int(ran.stdout.splitlines()[-1].split()[0])
    assert 0 < decoded < CASES, "whole ones must come through, and broken ones must not"


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    assert corpus(1, 5) == corpus(1, 5) != corpus(2, 5)
    assert len(photographs()) == 60


def test_a_progressive_image_of_a_thousand_scans_is_a_bomb_and_takes_no_hours() -> None:
    from fourstage.store.images import MAX_PIXELS, Converter, UnusableImageError

    progressive = next(data for data in photographs() if data.count(b"\xff\xda") > 3)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    converter = Converter(SIZE, 90, MAX_PIXELS)
    converter.convert(progressive)
    with pytest.raises(UnusableImageError, match="scans"):
        converter.convert(progressive[:-2] + scan * 1000 + b"\xff\xd9")


def test_an_image_that_announces_four_gigapixels_makes_turbojpeg_allocate_nothing() -> None:
    import tracemalloc

    import numpy as np

    from fourstage.errors import CorruptSampleError

    if not _is_here("turbojpeg"):
        pytest.skip("turbojpeg is not installed")
    decode = make_decoder("turbojpeg")
    huge = bytearray(photographs()[0])
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = (65_500).to_bytes(2, "big") * 2
    tracemalloc.start()
    try:
        with pytest.raises(CorruptSampleError, match="65500x65500"):
            decode(memoryview(bytes(huge)), np.empty((SIZE, SIZE, 3), np.uint8))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
