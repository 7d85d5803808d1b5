"""What a stream shows of each stored image."""

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fourstage.settings import Settings

Kind: TypeAlias = Literal["random", "centre", "full"]

EVERY_EPOCH = 1 << 20
"""More epochs than this no stream has."""


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class View:
    """``random``: a crop at drawn offsets, reflected or not, with a colour shift; ``centre``: the central crop;
    ``full``: the whole stored image. All that follows ``crop`` is for ``random`` alone."""

    kind: Kind
    crop: Annotated[int, Field(ge=1, le=65_500)]
    """Width and height in pixels; for ``full`` the store's size."""
    colour_std: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Standard deviation of the colour shift's coefficients; 0: no shift."""
    colour_scale: Literal["eigenvalues", "deviations"] = "eigenvalues"
    """What multiplies the coefficients."""
    colour_epochs: Annotated[int, Field(ge=0, le=EVERY_EPOCH)] = EVERY_EPOCH
    """Epochs, from the first one on, that have a shift."""
    crop_positions: Literal["exclusive", "inclusive"] = "exclusive"
    """Whether the last position is drawn too."""
    crop_chunk: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Consecutive positions of an epoch that share a crop and a reflection."""

    def std(self, epoch: int) -> float:
        """Standard deviation of the shift's coefficients in an epoch (from 0); 0 where there is no shift."""
        return self.colour_std if self.kind == "random" and epoch < self.colour_epochs else 0.0


def view_of(settings: Settings, kind: Kind) -> View:
    """The view that the settings make of a kind; ``random`` is ``centre`` where nothing is augmented."""
    if kind != "random" or not settings.augment:
        return View("centre" if kind == "random" else kind, settings.augmenter.crop)
    return View(
        kind,
        settings.augmenter.crop,
        colour_std=settings.colour_std,
        colour_scale=settings.colour_scale,
        colour_epochs=EVERY_EPOCH if settings.colour_epochs is None else settings.colour_epochs,
        crop_positions=settings.crop_positions,
        crop_chunk=settings.crop_chunk,
    )


def colour_matrix(
    eigenvectors: NDArray[np.float64], eigenvalues: NDArray[np.float64], scale: Literal["eigenvalues", "deviations"]
) -> NDArray[np.float64]:
    """3x3 float64: a colour shift on the scale 0..255 is this matrix times the three coefficients.

    Vectors and values are of the covariance of pixels on 0..255. ``eigenvalues`` (paper, section 4.1):
    [p1 p2 p3][a1 l1, a2 l2, a3 l3] for pixels on 0..1, so the values are divided by 255 squared and the shift is
    multiplied by 255. ``deviations`` (the 2012 code): the square roots of the values.
    """
    scales = eigenvalues / 255.0 if scale == "eigenvalues" else np.sqrt(np.maximum(eigenvalues, 0.0))
    return eigenvectors * scales
