"""What a network says of stored images: the mean of its softmax over several views (paper, section 4.1)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourstage.evaluation.cuts import cuts
from fourstage.evaluation.trained import Trained
from fourstage.trainer.finish import Finish
from fourstage.views import view_of


class Predictor:
    """One run's network on one view of each image or on ten."""

    def __init__(self, trained: Trained, mean: NDArray[np.float32], *, views: int) -> None:
        """mean: the store's mean image, float32 (S,S,3). Raises SettingsError for views that cannot be cut."""
        self._trained = trained
        self._crop = trained.settings.augmenter.crop
        self._cuts = cuts(mean.shape[0], self._crop, views)
        self._finish = Finish(
            mean,
            view_of(trained.settings, "centre"),
            subtract=trained.settings.subtract,
            device=trained.device,
            mean_place=trained.settings.mean_place,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """float64 (N,classes): logarithms of the mean probabilities of uint8 images (N,S,S,3) on the device."""
        rows, crop = images.shape[0], self._crop
        no_shifts = np.zeros((rows, 3), np.float32)
        # One view after the other: ten at once would need ten times the memory, and a batch fills a device alone.
        out = torch.empty((rows, crop, crop, 3), dtype=torch.float32, device=self._trained.device)
        said = []
        for cut in self._cuts:
            pixels = images[:, cut.top : cut.top + crop, cut.left : cut.left + crop]
            places = np.tile(np.array([cut.top, cut.left]), (rows, 1))
            finished = self._finish(
                pixels.flip(2) if cut.reflected else pixels,
                places,
                np.full(rows, cut.reflected),
                no_shifts,
                out,
                epoch=0,
            )
            said.append(self._trained.log_probabilities(finished))
        return log_mean(said)


def log_mean(logs: Sequence[Tensor]) -> Tensor:
    """(N,classes): logarithms of the means of probabilities, from logarithms, each (N,classes).

    In logarithms no probability is too small to be told from zero, and the mean of one is that one to the last bit.
    """
    return torch.logsumexp(torch.stack(list(logs)), 0) - math.log(len(logs))
