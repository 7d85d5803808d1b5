"""The ten views of the paper's section 4.1."""

import pytest

from fourstage.errors import SettingsError
from fourstage.evaluation.cuts import cuts


def test_ten_views_are_four_corners_the_centre_and_their_reflections() -> None:
    places = {(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)}
    views = cuts(256, 224, 10)
    assert {(cut.top, cut.left) for cut in views if not cut.reflected} == places
    assert {(cut.top, cut.left) for cut in views if cut.reflected} == places
    assert len(views) == 10


@pytest.mark.parametrize(("size", "crop", "corner"), [(256, 224, 16), (40, 27, 6), (32, 32, 0)])
def test_one_view_is_the_centre(size: int, crop: int, corner: int) -> None:
    assert cuts(size, crop, 1) == ((corner, corner, False),)


@pytest.mark.parametrize(
    ("size", "crop", "views", "words"),
    [(256, 224, 5, "--views 5; 1 is the centre"), (40, 41, 1, "sees 41x41 pixels, the store's images have 40x40")],
)
def test_what_cannot_be_cut_is_refused(size: int, crop: int, views: int, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        cuts(size, crop, views)
