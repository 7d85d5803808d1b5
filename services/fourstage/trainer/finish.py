"""The last arithmetic on pixels: from the augmenters' uint8 crops to the network's input.

The augmenters send crops as they are in the store, with where each was cut, whether it was reflected and its
colour shift. What is left is ``(pixel - mean) + shift`` in float32, on the device that trains: a quarter of
the bytes travel. On a CPU it is one pass from the slot into the input buffer, without temporaries.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourstage.errors import PeerError, SettingsError, StoreError
from fourstage.views import View


class Finish:
    """Finishes batches of one view; results are equal to the last bit on every device."""

    def __init__(
        self,
        mean: NDArray[np.float32],
        view: View,
        *,
        subtract: Literal["mean-image", "mean-colour"],
        device: torch.device,
        mean_place: Literal["crop", "centre"] = "crop",
        colour_divide: bool = False,
    ) -> None:
        """Take the store's mean image, float32 (S,S,3) on the scale 0..255, and the view that the batches show.

        mean_place: ``crop`` takes the mean at the crop's own place in the stored image, reflected with the crop
        (paper, section 2: the mean activity of each pixel); ``centre`` the centre of the mean image whatever the
        crop, not reflected (the 2012 code)
        colour_divide: divide by 1 + the standard deviation of the colour shift's coefficients in epochs that have
        a shift (the 2012 code: training pixels keep the scale of those without a shift)

        Raises StoreError for a mean image of another form and SettingsError for a crop that is larger than it.
        """
        if mean.ndim != 3 or mean.shape[0] != mean.shape[1] or mean.shape[2] != 3 or mean.dtype != np.float32:
            raise StoreError(
                f"the store's mean image is {mean.dtype} {mean.shape}, not float32 (S,S,3)",
                hint="prepare the store again",
            )
        self._size = mean.shape[0]
        self._crop = crop = view.crop
        self._margin = self._size - crop
        if self._margin < 0:
            raise SettingsError(
                f"crops of {crop} pixels cannot be cut from stored images of {self._size}",
                hint=f"set augmenter.crop to {self._size} or less",
            )
        if subtract == "mean-colour":
            mean = np.broadcast_to(mean.mean((0, 1), np.float64).astype(np.float32), mean.shape)
        self._mean = np.ascontiguousarray(mean)
        self._reflected_mean = np.ascontiguousarray(mean[:, ::-1])
        self._device_mean = torch.tensor(mean, device=device)
        self._device = device
        self._view = view
        self._at_centre = mean_place == "centre"
        self._divide = colour_divide
        self._divisor = np.float32(1.0 + view.colour_std)
        # A tensor: CUDA multiplies by the reciprocal of a plain number, which differs in the last bit.
        self._device_divisor = torch.tensor(self._divisor, device=device)

    def __call__(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        offsets: NDArray[np.integer],
        reflections: NDArray[np.bool_],
        shifts: NDArray[np.float32],
        out: Tensor,
        *,
        epoch: int,
    ) -> Tensor:
        """Write the finished batch into ``out`` and return it as (N,3,crop,crop), channels_last.

        ``pixels`` are uint8 (N,crop,crop,3): an array (a slot, read only once) where ``out`` is on the CPU, a
        tensor on the device of ``out`` otherwise. On the host lie ``offsets``, (N,2), y and x of each crop in
        its stored image, ``reflections``, (N,) bool, and ``shifts``, float32 (N,3), RGB on the scale 0..255.
        ``out`` is float32 (N,crop,crop,3), contiguous. ``epoch`` is the batch's, from 0.

        Raises PeerError for a batch of another form.
        """
        self._check(tuple(pixels.shape), offsets, reflections, shifts)
        places = offsets.astype(np.int64)
        divide = self._divide and self._view.std(epoch) > 0.0
        if self._at_centre:
            places, reflections = np.full_like(places, self._margin // 2), np.zeros_like(reflections)
        if isinstance(pixels, Tensor):
            self._on_device(pixels, places, reflections, shifts, out, divide)
        else:
            self._on_host(pixels, places, reflections, shifts, out.numpy(), divide)
        return out.permute(0, 3, 1, 2)

    def _on_host(
        self,
        pixels: NDArray[np.uint8],
        places: NDArray[np.int64],
        reflections: NDArray[np.bool_],
        shifts: NDArray[np.float32],
        out: NDArray[np.float32],
        divide: bool,
    ) -> None:
        # Whole rows of 3 * crop numbers: NumPy's inner loops are then long, also in the views of the mean.
        width = 3 * self._crop
        rows = (len(pixels), self._crop, width)
        means = (self._mean.reshape(self._size, -1), self._reflected_mean.reshape(self._size, -1))
        tops, lefts = places[:, 0], np.where(reflections, self._margin - places[:, 1], places[:, 1])
        row_shifts = np.tile(shifts, self._crop)
        for image, finished, top, left, reflected, shift in zip(
            pixels.reshape(rows), out.reshape(rows), tops, lefts, reflections, row_shifts, strict=True
        ):
            mean = means[int(reflected)][top : top + self._crop, 3 * left : 3 * left + width]
            np.subtract(image, mean, out=finished)
            if shift.any():
                finished += shift
            if divide:
                finished /= self._divisor

    def _on_device(
        self,
        pixels: Tensor,
        places: NDArray[np.int64],
        reflections: NDArray[np.bool_],
        shifts: NDArray[np.float32],
        out: Tensor,
        divide: bool,
    ) -> None:
        corners = self._upload(places)
        steps = torch.arange(self._crop, device=self._device)
        rows = corners[:, :1] + steps
        columns = corners[:, 1:] + torch.where(self._upload(reflections)[:, None], self._crop - 1 - steps, steps)
        torch.sub(pixels, self._device_mean[rows[:, :, None], columns[:, None, :]], out=out)
        out.add_(self._upload(shifts)[:, None, None, :])
        if divide:
            out.div_(self._device_divisor)

    def _upload(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.tensor(values)
        # From page-locked memory: from any other the upload would wait for the device.
        return (tensor.pin_memory() if self._device.type == "cuda" else tensor).to(self._device, non_blocking=True)

    def _check(
        self,
        shape: tuple[int, ...],
        offsets: NDArray[np.integer],
        reflections: NDArray[np.bool_],
        shifts: NDArray[np.float32],
    ) -> None:
        count = shape[0]
        received = (shape, offsets.shape, reflections.shape, shifts.shape)
        if received != ((count, self._crop, self._crop, 3), (count, 2), (count,), (count, 3)):
            raise PeerError(f"a batch for crop {self._crop} has pixels, offsets, reflections and shifts of {received}")
        if count and not 0 <= offsets.min() <= offsets.max() <= self._margin:
            raise PeerError(
                f"crop offsets from {offsets.min()} to {offsets.max()} do not lie in 0 to {self._margin}",
                hint="loader, augmenter and trainer must read the same store with the same augmenter.crop",
            )
