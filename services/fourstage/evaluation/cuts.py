"""Which parts of a stored image a network is shown when it is tested (paper, section 4.1)."""

from typing import NamedTuple

from fourstage.errors import SettingsError


class Cut(NamedTuple):
    """A square of a stored image by its upper left corner in pixels, reflected from left to right or not."""

    top: int
    left: int
    reflected: bool


def cuts(size: int, crop: int, views: int) -> tuple[Cut, ...]:
    """The squares of ``crop`` pixels that are cut from images of ``size`` pixels.

    views: 1, the centre, or 10, the four corners, the centre, and the reflections of these five. Raises SettingsError
    for another number and for a crop larger than the images.
    """
    if views not in (1, 10):
        raise SettingsError(f"--views {views}", hint="1 is the centre, 10 the paper's corners, centre and reflections")
    if crop > size:
        raise SettingsError(
            f"the network sees {crop}x{crop} pixels, the store's images have {size}x{size}",
            hint=f"evaluate on a store prepared with --size {crop} or more",
        )
    far, middle = size - crop, (size - crop) // 2
    if views == 1:
        return (Cut(middle, middle, False),)
    places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    return tuple(Cut(top, left, reflected) for reflected in (False, True) for top, left in places)
