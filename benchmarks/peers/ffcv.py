"""FFCV on a .beton file with the JPEG bytes as they are: whole decode, crop, reflection, compiled by Numba.

It has no plain random crop: its decoder for a random crop and resize is given the crop's own share of the area, so
that the resize is a copy (https://docs.ffcv.io/api/decoders.html).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ffcv.fields import RGBImageField
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray

from benchmarks.peers.stream import BATCH, CROP, Plan, measure, read_plan

JPEG_MODE = 0
"""FFCV's number for an image that is stored as JPEG."""


class JpegField(RGBImageField):  # type: ignore[misc]  # FFCV is not installed where types are checked
    """FFCV's image field, but for JPEG bytes: its own would compress pixels anew."""

    def __init__(self, size: int) -> None:
        super().__init__(write_mode="jpg")
        self.size = size

    def encode(
        self,
        destination: NDArray[np.void],
        jpeg: NDArray[np.uint8],
        malloc: Callable[[int], tuple[int, NDArray[np.uint8]]],
    ) -> None:
        """Called by the writer for every sample."""
        destination["mode"], destination["height"], destination["width"] = JPEG_MODE, self.size, self.size
        destination["data_ptr"], storage = malloc(jpeg.nbytes)
        storage[:] = jpeg


class Files:
    """The files' bytes as FFCV's writer wants them."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8]]:
        return (np.fromfile(self.files[position], np.uint8),)


def batches(plan: Plan) -> Iterator[int]:
    """Each batch's images."""
    beton = plan.folder / "images.beton"
    files = sorted(plan.folder.glob("*.jpg"))
    if not beton.exists():
        writer = DatasetWriter(str(beton), {"image": JpegField(plan.size)}, num_workers=plan.workers)
        writer.from_indexed_dataset(Files(files))
    share = (CROP / plan.size) ** 2
    crop = RandomResizedCropRGBImageDecoder((CROP, CROP), scale=(share, share), ratio=(1.0, 1.0))
    positions = {str(path): position for position, path in enumerate(files)}
    loader = Loader(
        str(beton),
        batch_size=BATCH,
        num_workers=plan.workers,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        indices=np.array([positions[path] for path in plan.order()], np.uint64),
        pipelines={"image": [crop, RandomHorizontalFlip(), ToTensor()]},
        custom_fields={"image": RGBImageField},
    )
    for (images,) in loader:
        yield len(images)


if __name__ == "__main__":
    plan = read_plan("jpeg")
    measure(batches(plan), plan, ("ffcv", "numba", "torch", "numpy"))
