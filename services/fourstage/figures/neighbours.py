"""The paper's figure 4, right: images and the training images that the network's last hidden layer holds for alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fourstage.evaluation.trained import Trained
from fourstage.figures import style
from fourstage.figures.pictures import Pictures
from fourstage.store import Store
from fourstage.store.progress import Progress, ProgressCallback
from fourstage.trainer.finish import Finish
from fourstage.views import view_of

_QUERIES, _NEAREST = 5, 6
_CHUNK = 64
"""Images in memory at one time. They are decoded between passes of the network: a hundredth of AlexNet's time."""


class Nearest:
    """The nearest of all candidates that were shown so far, by Euclidean distance."""

    def __init__(self, queries: NDArray[np.floating], count: int) -> None:
        """``queries`` are (Q,D); ``count`` neighbours of each are kept."""
        self._queries = queries.astype(np.float64)
        self._count = count
        self.positions = np.empty((len(queries), 0), np.int64)
        """(Q,count), nearest first; fewer while fewer were shown."""
        self.distances = np.empty((len(queries), 0))
        """float64, of the same form."""

    def show(self, positions: NDArray[np.int64], features: NDArray[np.floating]) -> None:
        """Candidates at positions (n,) with features (n,D); of equally near ones the lower position is kept."""
        # Differences, not the expanded square: that one loses the small distances, which are asked for.
        distances = np.linalg.norm(self._queries[:, None] - features, axis=2)
        distances = np.concatenate([self.distances, distances], axis=1)
        everyone = np.concatenate([self.positions, np.tile(positions, (len(distances), 1))], axis=1)
        order = np.lexsort((everyone, distances), axis=1)[:, : self._count]
        self.distances = np.take_along_axis(distances, order, axis=1)
        self.positions = np.take_along_axis(everyone, order, axis=1)


class Features:
    """The last hidden layer's units for stored images' centres, as the network is tested."""

    def __init__(self, trained: Trained, mean: NDArray[np.float32]) -> None:
        """``mean``: the store's, float32 (S,S,3). Raises SettingsError where its images are smaller than the crops."""
        settings = trained.settings
        view = view_of(settings, "centre")
        self._trained = trained
        self._crop, self._corner = view.crop, (mean.shape[0] - view.crop) // 2
        self._finish = Finish(
            mean,
            view,
            subtract=trained.settings.subtract,
            device=trained.device,
            mean_place=trained.settings.mean_place,
        )

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        """(n,D), 4096 of AlexNet, of stored images (n,S,S,3)."""
        count, end = len(pixels), self._corner + self._crop
        centres = torch.from_numpy(pixels).to(self._trained.device)[:, self._corner : end, self._corner : end]
        images = self._finish(
            centres,
            offsets=np.full((count, 2), self._corner),
            reflections=np.zeros(count, np.bool_),
            shifts=np.zeros((count, 3), np.float32),
            out=torch.empty(centres.shape, device=self._trained.device),
            epoch=0,
        )
        network = self._trained.network
        weights = next(network.parameters())
        features: NDArray[np.floating] = network.features(images.to(weights.dtype)).cpu().numpy()
        return features


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and its class."""

    pixels: NDArray[np.uint8]
    """(S,S,3)."""
    label: str


@dataclass(frozen=True, slots=True)
class Row:
    """A validation image and its neighbours, nearest first."""

    query: Picture
    neighbours: tuple[Picture, ...]


def find(trained: Trained, store: Store, *, candidates: int, progress: ProgressCallback) -> list[Row]:
    """Five validation images and the six nearest of ``candidates`` training images, all evenly spaced.

    Raises StoreError where the store lacks a split or an image cannot be read, SettingsError where its images are
    smaller than the network's crops.
    """
    features = Features(trained, store.statistics.mean)
    with (
        Pictures(store, trained.settings.validation_split) as validation,
        Pictures(store, trained.settings.train_split) as training,
    ):
        queries = validation.spaced(_QUERIES)
        shown = validation.pixels(queries)
        nearest = Nearest(features(shown), _NEAREST)
        positions = training.spaced(candidates)
        for begin in range(0, len(positions), _CHUNK):
            chunk = positions[begin : begin + _CHUNK]
            nearest.show(chunk, features(training.pixels(chunk)))
            progress(Progress(done=begin + len(chunk), total=len(positions), bytes=0, left_out=0))
        return [
            Row(Picture(pixels, label), tuple(_pictures(training, found)))
            for pixels, label, found in zip(shown, validation.classes(queries), nearest.positions, strict=True)
        ]


def _pictures(pictures: Pictures, positions: NDArray[np.int64]) -> list[Picture]:
    return list(map(Picture, pictures.pixels(positions), pictures.classes(positions)))


def draw(rows: Sequence[Row], *, candidates: int) -> Figure:
    """A row for each query, its neighbours to the right; labels of the query's class have a colour."""
    figure = style.new_figure(7.2, 1.16 * len(rows) + 0.4)
    # An empty column sets the queries apart.
    grid = figure.add_gridspec(len(rows), 2 + _NEAREST, width_ratios=[1.0, 0.12] + [1.0] * _NEAREST)
    for line, row in enumerate(rows):
        for column, picture in enumerate((row.query, *row.neighbours)):
            axes = figure.add_subplot(grid[line, column + (column > 0)])
            style.show_pixels(axes, picture.pixels)
            same = picture.label == row.query.label
            axes.set_xlabel(
                style.shortened(picture.label, 14),
                fontsize=7.0,
                labelpad=2.0,
                color=style.TRUE if same else style.QUIET,
            )
    figure.supxlabel(
        f"Validation images, evenly spaced (left), and of {candidates:,} training images those whose features in the "
        "last hidden\nlayer are nearest, nearest first. Labels of the same class are coloured.",
        x=0.01, ha="left", fontsize=7.5, color=style.QUIET,
    )  # fmt: skip
    return figure
