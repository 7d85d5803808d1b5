"""Synthetic photographs for the demonstration: paper cut-outs of ten kinds, under a lamp, seen at an angle.

The kinds differ in shape and arrangement alone. Colours, light, texture, place and angle are drawn from one
distribution for all of them, so that a histogram of colours says next to nothing and a net has to look. No
kind has a handedness: a reflected photograph is one of the same kind.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.floating]
"""float32 (height, width)."""

SMALLEST_SIDE = 120
LARGEST_SIDE = 256

VALIDATION_NUMBERS = 500_000
"""Validation photographs are numbered from here, so that none is ever a training photograph as well."""


def write_photographs(
    folder: Path, *, seed: int, train_per_class: int, validation_per_class: int, workers: int = 2
) -> None:
    """Write ``folder/train/CLASS/CLASS-NUMBER.jpg`` and the same under ``folder/val``.

    The bytes are the same for any number of workers. Photographs that are already there are written again.
    """
    splits = {
        "train": range(train_per_class),
        "val": range(VALIDATION_NUMBERS, VALIDATION_NUMBERS + validation_per_class),
    }
    tasks: list[tuple[Path, int, int]] = []
    for (split, numbers), (class_index, name) in product(splits.items(), enumerate(CLASSES)):
        directory = folder / split / name
        directory.mkdir(parents=True, exist_ok=True)
        tasks += [(directory / f"{name}-{number:06d}.jpg", class_index, number) for number in numbers]

    def write(task: tuple[Path, int, int]) -> None:
        path, class_index, number = task
        path.write_bytes(encode_photograph(seed, class_index, number))

    # Threads suffice: OpenCV, and NumPy on arrays of this size, release the interpreter.
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, tasks):
            pass


def encode_photograph(seed: int, class_index: int, number: int) -> bytes:
    """One photograph as a JPEG file; the quality varies, as that of found photographs does."""
    pixels = cv2.cvtColor(draw_photograph(seed, class_index, number), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80 + number % 16])[1]
    return encoded.tobytes()


def draw_photograph(seed: int, class_index: int, number: int) -> NDArray[np.uint8]:
    """One photograph, uint8 (height, width, 3) RGB: a pure function of its arguments.

    It takes NumPy's distributions, so another version of NumPy or OpenCV may draw another photograph.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, class_index << 32 | number]))
    height, width = draw.integers(SMALLEST_SIDE, LARGEST_SIDE, 2, endpoint=True).tolist()
    short = min(height, width)

    u, v = _table(draw, height, width)
    distance = _KINDS[CLASSES[class_index]](draw, u, v)
    blur = max(2 / short, draw.uniform(0.004, 0.024))
    figure = np.clip(0.5 - distance / blur, 0, 1)

    lamp = draw.uniform(0, 2 * math.pi)
    light = _light(draw, height, width, lamp)
    paper = _paper(draw, height, width)
    ground_light = light * paper * (1 - _shadow(draw, figure, lamp, short)) * (1 - figure)
    # Turned round, so that the ground's texture does not run on in the figure.
    figure_light = light * paper[::-1, ::-1] * figure
    grain = draw.random((height, width), np.float32) * draw.uniform(4, 24)

    # Colour by colour: NumPy is slow where the last axis is three long.
    colours = [
        np.clip(ground_light * ground + figure_light * cutout + grain, 0, 255).astype(np.uint8)
        for ground, cutout in zip(*_two_colours(draw), strict=True)
    ]
    return np.stack(colours, axis=-1)


def _table(draw: np.random.Generator, height: int, width: int) -> tuple[Plane, Plane]:
    """Each pixel's place on the table, turned, tilted and shifted; the unit is half the shorter side."""
    unit = min(height, width) / 2
    turn = draw.uniform(0, 2 * math.pi)
    tilt_x, tilt_y = draw.uniform(-0.15, 0.15, 2).tolist()
    shift_x, shift_y = draw.uniform(-0.22, 0.22, 2).tolist()
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / unit
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / unit
    nearness = 1 / (1 + tilt_x * x + tilt_y * y)
    x, y = (x - shift_x) * nearness, (y - shift_y) * nearness
    return math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x


def _light(draw: np.random.Generator, height: int, width: int, lamp: float) -> Plane:
    """Brighter towards the lamp, darker in the corners; about 1."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = draw.uniform(0.05, 0.3)
    vignette = draw.uniform(0, 0.15)
    return (1.05 + slope * math.cos(lamp) * x - vignette * x * x) + (slope * math.sin(lamp) * y - vignette * y * y)


def _paper(draw: np.random.Generator, height: int, width: int) -> Plane:
    """How evenly a sheet returns the light, about 1: broad stains and finer fibres."""
    sheet = np.ones((height, width), np.float32)
    for cells, strength in ((5, 0.2), (24, 0.12)):
        spots = (draw.random((cells, cells), np.float32) - 0.5) * (strength * draw.random())
        sheet += cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC)
    return sheet


def _shadow(draw: np.random.Generator, figure: Plane, lamp: float, short: int) -> Plane:
    """The soft shadow that a sheet a little above the ground throws away from the lamp: 0 none, 1 black."""
    height, width = figure.shape
    reach = draw.uniform(0.01, 0.05) * short
    move = np.array([[1, 0, -reach * math.cos(lamp)], [0, 1, -reach * math.sin(lamp)]])
    thrown = cv2.warpAffine(figure, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
    shadow: Plane = cv2.GaussianBlur(thrown, (0, 0), 0.6 * reach) * draw.uniform(0.25, 0.6)
    return shadow


def _two_colours(draw: np.random.Generator) -> tuple[list[float], list[float]]:
    """Ground and figure, RGB 0..255; apart in lightness, measured in CIELAB, where equal steps look equal."""
    dark = draw.uniform(18, 48)
    lightness = np.array([dark, dark + draw.uniform(32, 45)])
    hue = draw.uniform(0, 2 * math.pi, 2)
    chroma = draw.uniform(8, 48, 2)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1).astype(np.float32)
    first, second = (cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0] * 255).tolist()
    return (first, second) if draw.integers(2) else (second, first)


# A kind is the distance from its outline in the table's unit, negative on the figure, positive on the ground.


def _checks(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    period = draw.uniform(0.5, 1.0)
    across, along = _bands(u, period, 0.5), _bands(v, period, 0.5)
    return np.copysign(np.minimum(np.abs(across), np.abs(along)), across * along)


def _cross(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    length = draw.uniform(0.5, 0.75)
    breadth = length * draw.uniform(0.22, 0.4)
    across, along = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(across - breadth, along - length), np.maximum(across - length, along - breadth))


def _disc(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _radius(u, v) - draw.uniform(0.35, 0.7)


def _dots(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    period = draw.uniform(0.4, 0.7)
    return _radius(_bands(u, period, 0), _bands(v, period, 0)) - period * draw.uniform(0.28, 0.4)


def _ring(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    radius = draw.uniform(0.4, 0.65)
    middle: Plane = np.abs(_radius(u, v) - radius)
    return middle - radius * draw.uniform(0.18, 0.35)


def _square(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - draw.uniform(0.35, 0.6)


def _star(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    point = draw.uniform(0.5, 0.8)
    notch = point * draw.uniform(0.38, 0.5)
    # Folded onto a tenth of the star, all of the outline is one line, from a point to the notch beside it.
    fifth = 2 * math.pi / 5
    angle = np.arctan2(v, u)
    angle = np.abs(angle - fifth * np.round(angle / fifth))
    normal = math.atan2(point - notch * math.cos(fifth / 2), notch * math.sin(fifth / 2))
    return _radius(u, v) * np.cos(angle - normal) - point * math.cos(normal)


def _stripes(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:  # noqa: ARG001
    return _bands(u, draw.uniform(0.3, 0.6), draw.uniform(0.35, 0.65))


def _triangle(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    slanted = math.sqrt(0.75) * np.abs(u) - 0.5 * v
    return np.maximum(slanted, v) - draw.uniform(0.3, 0.45)


def _waves(draw: np.random.Generator, u: Plane, v: Plane) -> Plane:
    period = draw.uniform(0.32, 0.55)
    bend = period * draw.uniform(0.3, 0.5)
    bent = u + bend * np.sin(v * (2 * math.pi / draw.uniform(0.6, 1.1)))
    return _bands(bent, period, draw.uniform(0.35, 0.65))


def _bands(u: Plane, period: float, share: float) -> Plane:
    """Parallel bands that repeat along u and cover ``share`` of it."""
    return np.abs(u - period * np.round(u / period)) - period * share / 2


def _radius(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


_KINDS: dict[str, Callable[[np.random.Generator, Plane, Plane], Plane]] = {
    "checks": _checks,
    "cross": _cross,
    "disc": _disc,
    "dots": _dots,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
    "waves": _waves,
}

CLASSES = tuple(_KINDS)
"""The names of the kinds, sorted as a store sorts its classes."""
