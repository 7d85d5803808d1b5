"""The paper's figure 4, left: images with the labels that the network finds most probable."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fourstage.evaluation.predict import Predictor
from fourstage.evaluation.trained import Trained
from fourstage.figures import style
from fourstage.figures.pictures import Pictures
from fourstage.store import Store

_COUNT, _PER_ROW, _TOP = 8, 4, 5
_NUMBERS_AT = 1.22
"""Right end of the percentages; a bar ends at 1 at most."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one image."""

    pixels: NDArray[np.uint8]
    """(S,S,3)."""
    label: str
    guesses: tuple[tuple[str, float], ...]
    """The five most probable classes, or all where there are fewer, with their probabilities, highest first."""


def predict(trained: Trained, store: Store) -> list[Prediction]:
    """Eight images of the run's validation split, evenly spaced, each seen as the paper tests (ten views).

    Raises StoreError where the store lacks the split or an image of it cannot be read.
    """
    with Pictures(store, trained.settings.validation_split) as pictures:
        positions = pictures.spaced(_COUNT)
        pixels = pictures.pixels(positions)
        labels = pictures.classes(positions)
    predictor = Predictor(trained, store.statistics.mean, views=10)
    with torch.no_grad():
        shares = predictor(torch.from_numpy(pixels).to(trained.device)).exp().cpu().numpy()
    best = np.argsort(-shares, axis=1, kind="stable")[:, :_TOP]
    return [
        Prediction(image, label, tuple((store.classes[number], float(row[number])) for number in numbers))
        for image, label, row, numbers in zip(pixels, labels, shares, best, strict=True)
    ]


def draw(predictions: Sequence[Prediction]) -> Figure:
    """Each image under its true label, its guesses below as bars; the bar of the true label has a colour of its own."""
    rows = -(-len(predictions) // _PER_ROW)
    figure = style.new_figure(7.2, 3.2 * rows + 0.2)
    # Images, bars, and between two such rows an empty one, or the bars would seem to belong to the image below.
    grid = figure.add_gridspec(3 * rows - 1, _PER_ROW, height_ratios=([1.7, 1.0, 0.08] * rows)[:-1])
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, _PER_ROW)
        image = figure.add_subplot(grid[3 * row, column])
        style.show_pixels(image, prediction.pixels)
        image.set_title(style.shortened(prediction.label, 24), loc="center", color=style.TRUE, pad=4.0)
        _draw_bars(figure.add_subplot(grid[3 * row + 1, column]), prediction)
    figure.supxlabel(
        "Validation images, evenly spaced (the paper's were picked by hand), with their true label above and the "
        "most probable ones below", x=0.01, ha="left", fontsize=7.5, color=style.QUIET,
    )  # fmt: skip
    return figure


def _draw_bars(axes: Axes, prediction: Prediction) -> None:
    for place, (name, share) in enumerate(prediction.guesses):
        right = name == prediction.label
        axes.barh(place, share, height=0.86, color=style.TRUE if right else style.OTHER, alpha=0.75)
        axes.text(0.02, place, style.shortened(name, 20), va="center_baseline", fontsize=7.5)
        percent = f"{100.0 * share:.0f} %" if share >= 0.01 else "<1 %"
        axes.text(_NUMBERS_AT, place, percent, va="center_baseline", ha="right", fontsize=7.0)
    axes.set_xlim(0.0, _NUMBERS_AT)
    # Room for five also where there are fewer classes: bars of all images are of one size.
    axes.set_ylim(_TOP - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
