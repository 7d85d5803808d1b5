"""Where images are decoded to, and what a transform makes of them there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourstage.augmenter.draws import Draws
from fourstage.augmenter.transform import scratch_for, transform


@pytest.mark.parametrize("size", [1, 8, 32, 64, 255, 256, 500])
def test_no_row_of_the_first_image_lies_where_the_decoder_would_write_past_the_cache(size: int) -> None:
    scratch = scratch_for(size)
    assert scratch.shape == (size, size, 3)
    assert scratch.flags.c_contiguous
    assert scratch.ctypes.data % 16 == 8


@given(
    size=st.integers(2, 40),
    data=st.data(),
)
def test_a_crop_is_cut_and_reflected_as_numpy_would(size: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, size), label="crop")
    rows = data.draw(st.integers(0, 4), label="rows")
    places = st.integers(0, size - crop)
    offsets = np.array(data.draw(st.lists(st.tuples(places, places), min_size=rows, max_size=rows)), np.int32)
    reflections = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)
    images = np.random.default_rng(size).integers(0, 256, (rows, size, size, 3), np.uint8)

    def as_stored(image: memoryview, scratch: NDArray[np.uint8]) -> None:
        scratch[:] = np.frombuffer(image, np.uint8).reshape(size, size, 3)

    out = np.zeros((rows, crop, crop, 3), np.uint8)
    draws = Draws(offsets.reshape(rows, 2), reflections, np.zeros((rows, 3), np.float32))
    transform([memoryview(image.tobytes()) for image in images], draws, as_stored, scratch=scratch_for(size), out=out)
    for row in range(rows):
        top, left = draws.offsets[row]
        expected = images[row, top : top + crop, left : left + crop]
        assert np.array_equal(out[row], expected[:, ::-1] if reflections[row] else expected)
