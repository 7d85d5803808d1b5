"""torch.utils.data.DataLoader over a map-style dataset, one worker process per core, decoder Pillow or simplejpeg.

The default collation stacks a batch straight into shared memory (https://docs.pytorch.org/docs/stable/data.html).
"""

import random
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.stream import BATCH, CROP, Plan, measure, read_plan


class Photographs(Dataset[NDArray[np.uint8]]):
    """Files in their order, cropped and reflected at random."""

    def __init__(self, files: list[str], size: int, decoder: str) -> None:
        self.files = files
        self.spare = size - CROP
        self.decode = pillow if decoder == "pillow" else turbo
        self.pixels = np.empty((size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        pixels = self.decode(self.files[position], self.pixels)
        top, left = random.randint(0, self.spare), random.randint(0, self.spare)
        crop = pixels[top : top + CROP, left : left + CROP]
        # NumPy's reversed view is several times slower to copy, and PyTorch takes no negative strides.
        return np.asarray(cv2.flip(crop, 1), np.uint8) if random.random() < 0.5 else crop.copy()


def pillow(path: str, _pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(size, size, 3) as torchvision's ``ImageFolder`` decodes."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def turbo(path: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(size, size, 3), decoded into ``pixels``."""
    with open(path, "rb") as file:  # noqa: PTH123  a Path costs microseconds a file
        simplejpeg.decode_jpeg(file.read(), "RGB", False, False, 0, 0, 1, pixels)
    return pixels


def batches(plan: Plan) -> Iterator[int]:
    """Each batch's images."""
    # One thread per worker: OpenCV would start one per core in each.
    cv2.setNumThreads(1)
    # The order is shuffled already.
    photographs = Photographs(plan.order(), plan.size, plan.variant)
    for images in DataLoader(photographs, BATCH, num_workers=plan.workers, prefetch_factor=4):
        yield len(images)


if __name__ == "__main__":
    plan = read_plan("pillow", "simplejpeg")
    measure(batches(plan), plan, ("torch", "pillow", "simplejpeg", "opencv-python-headless", "numpy"))
