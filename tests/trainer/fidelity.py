"""Pixels and rule once more in NumPy and float64, from the texts alone: the paper's words and what is known of the
released 2012 code. No fourstage here."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOAT64, FLOAT32 = 1e-10, 1e-5
"""Bounds of ``relative_error`` for arithmetic of these precisions."""


def relative_error(found: NDArray[np.floating], expected: Floats) -> float:
    """Norm of the difference over norm of what was expected."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def paper_shift(alphas: Floats, vectors: Floats, values: Floats) -> Floats:
    """Section 4.1 for pixels on 0..1, on the scale 0..255: (3,).

    values, vectors: of the covariance of pixels on 0..255; on 0..1 the values are 255 squared times smaller.
    """
    unit = values / 255.0**2
    p1, p2, p3 = vectors.T
    shift: Floats = 255.0 * (p1 * alphas[0] * unit[0] + p2 * alphas[1] * unit[1] + p3 * alphas[2] * unit[2])
    return shift


def code_shift(alphas: Floats, vectors: Floats, values: Floats) -> Floats:
    """The 2012 code: coefficients times standard deviations, on the scale 0..255: (3,)."""
    shift: Floats = vectors @ (alphas * np.sqrt(values))
    return shift


def cut(image: NDArray[np.generic], top: int, left: int, crop: int, *, reflected: bool) -> NDArray[np.generic]:
    """A crop of (S,S,3), reflected left to right or not: (crop,crop,3)."""
    window = image[top : top + crop, left : left + crop]
    return window[:, ::-1] if reflected else window


def paper_input(
    image: NDArray[np.uint8], mean: Floats, place: tuple[int, int], crop: int, *, reflected: bool, shift: Floats
) -> Floats:
    """Each pixel less the mean activity of that pixel, then cut, reflected and shifted: (crop,crop,3)."""
    return cut(image.astype(np.float64) - mean, *place, crop, reflected=reflected).astype(np.float64) + shift


def code_input(
    image: NDArray[np.uint8],
    mean: Floats,
    place: tuple[int, int],
    crop: int,
    *,
    reflected: bool,
    shift: Floats,
    coefficient: float,
) -> Floats:
    """Cut and reflected, less the centre of the mean image as it is, shifted, over 1 + coefficient."""
    middle = (len(mean) - crop) // 2
    pixels = cut(image, *place, crop, reflected=reflected).astype(np.float64)
    return (pixels - mean[middle : middle + crop, middle : middle + crop] + shift) / (1.0 + coefficient)


def follow_rule(weight: Floats, gradients: list[Floats], rates: list[float], decay: float) -> tuple[Floats, Floats]:
    """Section 5: v <- 0.9 v - decay eps w - eps g; w <- w + v. The weight and its velocity after all steps."""
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity - decay * rate * weight - rate * gradient
        weight = weight + velocity
    return weight, velocity
