"""How every figure looks, said once. Colours are told apart with any kind of colour vision.

``LINES`` is the palette of Okabe and Ito (2008) without its yellow, too pale for a line on white; ``BATCHES`` is the
"muted" scheme of Paul Tol, whose nine colours still differ side by side in small areas.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BATCHES = ("#332288", "#88CCEE", "#CC6677", "#117733", "#DDCC77", "#882255", "#44AA99", "#AA4499", "#999933")
INK, QUIET, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
TRUE, OTHER = "#D55E00", "#9fb4c7"
"""The right answer, and every other one."""

DPI = 200


@contextmanager
def house_style() -> Iterator[None]:
    """Figures that are made within look like one another; matplotlib's settings are as before afterwards."""
    settings = mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9.0,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "axes.titlepad": 8.0,
            "axes.labelsize": 9.0,
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "text.color": INK,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": 8.0,
            "ytick.labelsize": 8.0,
            "legend.frameon": False,
            "legend.fontsize": 8.0,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
        }
    )
    with settings:
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, outside pyplot: it belongs to its caller alone."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=DPI)
    temporary.rename(path)


def line_colours(count: int) -> list[str]:
    """A colour for each of ``count`` lines; beyond the palette, evenly spaced ones of a sequential scale."""
    if count <= len(LINES):
        return list(LINES[:count])
    scale = mpl.colormaps["viridis"]
    return [mpl.colors.to_hex(scale(0.95 * number / (count - 1))) for number in range(count)]


def tint(colour: str, share: float) -> str:
    """A colour mixed with white: what it would be at this opacity, yet nothing shines through."""
    red, green, blue = (1.0 - share * (1.0 - part) for part in mpl.colors.to_rgb(colour))
    return mpl.colors.to_hex((red, green, blue))


def readable_on(colour: str) -> str:
    """Black or white, whichever is read more easily on a colour (relative luminance, WCAG 2)."""
    linear = [((part + 0.055) / 1.055) ** 2.4 if part > 0.03928 else part / 12.92 for part in mpl.colors.to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.18 else INK


def shortened(name: str, length: int) -> str:
    """A name from outside as matplotlib shows it literally, with its end cut off beyond ``length`` characters."""
    cut = name if len(name) <= length else name[: length - 1] + "…"
    return cut.replace("$", r"\$")


def show_pixels(axes: Axes, pixels: NDArray[np.generic], *, interpolation: str = "auto") -> None:
    """An image without axes around it; ``pixels`` is (height,width,3), uint8 or float from 0 to 1."""
    axes.imshow(pixels, interpolation=interpolation)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
