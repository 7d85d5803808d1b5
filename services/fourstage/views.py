"""What a stream shows of each stored image."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class View:
    """``random``: a crop at drawn offsets, reflected or not, with a colour shift; ``centre``: the central crop;
    ``full``: the whole stored image."""

    kind: Literal["random", "centre", "full"]
    crop: Annotated[int, Field(ge=1, le=65_500)]
    """Width and height in pixels; for ``full`` the store's size."""
    preset: Literal["paper", "code-2012"] = "paper"
    colour_std: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Standard deviation of the colour shift's coefficients; 0: no shift."""


def colour_matrix(
    eigenvectors: NDArray[np.float64], eigenvalues: NDArray[np.float64], preset: str
) -> NDArray[np.float64]:
    """3x3 float64: a colour shift on the scale 0..255 is this matrix times the three coefficients.

    ``paper`` (section 4.1): [p1 p2 p3][a1 l1, a2 l2, a3 l3] for pixels on 0..1, so eigenvalues of 0..255 pixels are
    divided by 255 squared and the shift is multiplied by 255. ``code-2012``: square roots of the eigenvalues.
    """
    scales = eigenvalues / 255.0 if preset == "paper" else np.sqrt(np.maximum(eigenvalues, 0.0))
    return eigenvectors * scales
