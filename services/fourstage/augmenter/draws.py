"""Every random number of a sample: crop offsets, reflection, colour coefficients.

A sample's draws are a pure function of (seed, epoch, position in the epoch): four words each, always, so they do
not depend on batch size, ranks or workers. Word 0 places the crop: its low 32 bits the row, the next 31 the column,
its highest bit the reflection; where a chunk of positions shares a crop, word 0 of the first of them. Words 1 to 3
pick the colour coefficients from a table of normal quantiles.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fourstage import philox
from fourstage.views import View

QUANTILE_BITS = 12
_QUANTILE_SCALE = 1 << 20


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one batch.

    offsets: int32 (rows, 2), row and column of the crop's upper left corner in the stored image
    reflections: bool (rows,)
    shifts: float32 (rows, 3), added to the red, green and blue of every pixel on the scale 0..255
    """

    offsets: NDArray[np.int32]
    reflections: NDArray[np.bool_]
    shifts: NDArray[np.float32]

    def rows(self, rows: slice) -> "Draws":
        """Those of some of the rows."""
        return Draws(self.offsets[rows], self.reflections[rows], self.shifts[rows])


@cache
def normal_quantiles() -> NDArray[np.float32]:
    """Quantiles of N(0, 1) at (i + 1/2) / 4096, rounded to multiples of 2^-20: float32 (4096,).

    The rounding makes the table the same whatever the last bit of a machine's logarithm.
    """
    entries = 1 << QUANTILE_BITS
    normal = NormalDist()
    table = [round(normal.inv_cdf((i + 0.5) / entries) * _QUANTILE_SCALE) for i in range(entries)]
    return (np.array(table, np.float64) / _QUANTILE_SCALE).astype(np.float32)


def crop_positions(size: int, crop: int, bound: Literal["exclusive", "inclusive"]) -> int:
    """Positions of a crop along one side: 32 for 224 in 256 by the paper's count (32 x 32 x 2 = 2048, section 4.1),
    33 in the 2012 code, which includes the last one."""
    return max(1, size - crop + (bound == "inclusive"))


def draw(
    view: View,
    *,
    size: int,
    seed: int,
    epoch: int,
    first: int,
    rows: int,
    colours: NDArray[np.float64],
) -> Draws:
    """The draws of ``rows`` samples at consecutive positions from ``first`` of an epoch.

    colours: 3x3 as ``views.colour_matrix`` gives it. Centre and full views draw nothing.
    """
    if view.kind != "random":
        corner = 0 if view.kind == "full" else (size - view.crop) // 2
        return Draws(np.full((rows, 2), corner, np.int32), np.zeros(rows, np.bool_), np.zeros((rows, 3), np.float32))
    chunk_begin = first - first % view.crop_chunk
    words = philox.words(seed, epoch, philox.DRAWS, chunk_begin, first - chunk_begin + rows)
    own = np.arange(first, first + rows)
    place = words[own - own % view.crop_chunk - chunk_begin, 0]
    positions = np.uint64(crop_positions(size, view.crop, view.crop_positions))
    offsets = np.empty((rows, 2), np.int32)
    offsets[:, 0] = ((place & np.uint64(0xFFFF_FFFF)) * positions) >> np.uint64(32)
    offsets[:, 1] = (((place >> np.uint64(32)) & np.uint64(0x7FFF_FFFF)) * positions) >> np.uint64(31)
    reflections = (place >> np.uint64(63)).astype(np.bool_)
    std = view.std(epoch)
    if std == 0.0:
        return Draws(offsets, reflections, np.zeros((rows, 3), np.float32))
    normals = normal_quantiles()[words[own - chunk_begin, 1:] >> np.uint64(64 - QUANTILE_BITS)].astype(np.float64)
    coefficients = normals * std
    # Summed by hand: a BLAS product may order the three terms differently on another machine.
    shifts = (
        coefficients[:, 0:1] * colours[:, 0]
        + coefficients[:, 1:2] * colours[:, 1]
        + coefficients[:, 2:3] * colours[:, 2]
    )
    return Draws(offsets, reflections, shifts.astype(np.float32))
