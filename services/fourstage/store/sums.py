"""Sums over pixels, in integers: exact, so the same in any order and for any number of workers."""

from collections.abc import Mapping
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray


class Sums:
    """Sums over images (size, size, 3) of uint8: what mean image and covariance are made of.

    ``pixels`` is int64 or, to travel light, uint32 (enough for 16 million images).
    """

    def __init__(self, pixels: NDArray[Any], products: NDArray[np.int64] | None = None, count: int = 0) -> None:
        self.pixels = pixels
        self.products = np.zeros((3, 3), np.int64) if products is None else products
        self.count = count

    @classmethod
    def empty(cls, size: int, dtype: type[np.int64 | np.uint32]) -> Self:
        """Sums over no image."""
        return cls(np.zeros((size, size, 3), dtype))

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count one image in."""
        np.add(self.pixels, image, out=self.pixels)
        self.products += colour_products(image)
        self.count += 1

    def merge(self, other: "Sums") -> None:
        """Count in what ``other`` has counted."""
        np.add(self.pixels, other.pixels, out=self.pixels, casting="same_kind")
        self.products += other.products
        self.count += other.count

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a .npz file; ``from_arrays`` reads them."""
        return {"pixels": self.pixels, "products": self.products, "count": np.array([self.count], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The sums that ``arrays`` wrote."""
        return cls(arrays["pixels"], arrays["products"], int(arrays["count"][0]))


def colour_products(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sums over all pixels of R*R, R*G ... B*B of an image (H, W, 3), as a matrix (3, 3).

    From squared distances (2ab = a*a + b*b - (a-b)*(a-b)), which OpenCV sums in integers at five times the
    speed of a matrix product. It returns the root, squared again, hence the rounding; exact below 2**48.
    """
    channels = cv2.split(image)
    squares = [round(cv2.norm(channel, cv2.NORM_L2SQR)) for channel in channels]
    products = np.diag(np.array(squares, np.int64))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        distance = round(cv2.norm(channels[a], channels[b], cv2.NORM_L2SQR))
        products[a, b] = products[b, a] = (squares[a] + squares[b] - distance) // 2
    return products
